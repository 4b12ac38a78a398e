"""Prompt sets and text banks: every defect named, every vector what it says."""

import re
from pathlib import Path

import numpy as np
import pytest
import tiny_clip
import torch

from feature_extraction.configuration import conf_folder
from feature_extraction.encoders.demo import DemoSource
from feature_extraction.encoders.hf_clip import HfClipSource
from feature_extraction.errors import DamagedFileError, InputError, MismatchError
from feature_extraction.prompts import read_prompt_set, write_prompt_set
from feature_extraction.text_bank import (
    bank_name,
    build_bank,
    read_bank,
    require_match,
    require_same_prompts,
    write_bank,
)
from mil.cli import main

SETS = sorted((conf_folder() / "prompts").glob("*.yaml"))
GOOD = """
templates: ["CLASSNAME.", "an image of CLASSNAME."]
classes:
  a: {names: [one gland, two glands], concepts: {shape: [round lumens]}}
  n: {role: background, names: [normal tissue]}
nontask: {blood: [red blood cells]}
source: a test
"""


@pytest.fixture(scope="module")
def encoder():
    return DemoSource().load(torch.device("cpu"))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "set.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_every_shipped_set_is_sound_and_says_where_it_is_from(path: Path):
    found = read_prompt_set(path)
    assert found.source
    assert sum(entry.is_background for entry in found.classes) <= 1
    assert path.read_text().startswith("# ")


def test_rows_are_every_name_in_every_template(tmp_path: Path):
    rows = list(read_prompt_set(written(tmp_path, GOOD)).rows())
    assert [row.text for row in rows if row.role == "class"] == [
        "one gland.",
        "an image of one gland.",
        "two glands.",
        "an image of two glands.",
    ]
    assert [(row.text, row.owner, row.class_name) for row in rows if row.role == "concept"] == [
        ("round lumens", "shape", "a")
    ]
    assert len(rows) == 4 + 1 + 2 + 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("names: [normal tissue]", "names: []"), "class n: names"),
        (("names: [normal tissue]", "names: normal tissue"), "expected a list"),
        (("names: [normal tissue]", "names: [no]"), "expected a non-empty text, got False"),
        (("role: background", "role: other"), "knows role"),
        (("nontask:", "background:"), "unknown key 'background'"),
        (("  n: {", "  a: {names: [x]}\n  n: {"), "the key 'a' is in one mapping twice"),
        (("classes:", "klasses:"), "expected a mapping with 'classes:'"),
        (("templates: [", "templates: ["[:-1]), "not valid YAML"),
    ],
)
def test_each_defect_of_the_form_is_named(tmp_path: Path, change: tuple[str, str], message: str):
    assert change[0] in GOOD
    with pytest.raises(InputError, match=message):
        read_prompt_set(written(tmp_path, GOOD.replace(*change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("a: {", "a: {role: background, "), "at most one class"),
        (('"CLASSNAME."', '"class."'), "template without CLASSNAME"),
        (("[one gland, two glands]", "[one gland, one gland]"), "same text twice"),
        (("  n: {role: background, names: [normal tissue]}\n", ""), "at least two classes"),
    ],
)
def test_no_bank_is_made_of_words_with_errors(tmp_path: Path, change: tuple[str, str], message: str, encoder):
    assert change[0] in GOOD
    with pytest.raises(InputError, match=message):
        build_bank(read_prompt_set(written(tmp_path, GOOD.replace(*change))), encoder)


def test_all_defects_of_the_form_are_named_at_once(tmp_path: Path):
    text = (
        GOOD.replace("role: background", "role: other")
        .replace("nontask:", "background:")
        .replace("[round lumens]", "[]")
    )
    with pytest.raises(InputError) as caught:
        read_prompt_set(written(tmp_path, text))
    for part in ("knows role", "unknown key", "concepts shape"):
        assert part in str(caught.value)


def test_a_set_that_is_written_is_read_back_the_same(tmp_path: Path):
    first = read_prompt_set(written(tmp_path, GOOD))
    write_prompt_set(tmp_path / "again.yaml", first, comment="who wrote it\nand why")
    again = read_prompt_set(tmp_path / "again.yaml")
    assert again.sha256() == first.sha256()
    assert again.source == first.source
    assert (tmp_path / "again.yaml").read_text().startswith("# who wrote it\n# and why\n")


def test_a_bank_comes_back_and_its_vectors_are_normalised_means(tmp_path: Path, encoder):
    bank = build_bank(read_prompt_set(written(tmp_path, GOOD)), encoder)
    write_bank(tmp_path / "bank.safetensors", bank)
    found = read_bank(tmp_path / "bank.safetensors")
    assert found.rows == bank.rows
    assert np.array_equal(found.embeddings, bank.embeddings)
    assert (found.class_names(), found.background(), found.nontask()) == (("a", "n"), "n", ("blood",))
    assert found.concepts() == (("a", "shape"),)
    np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=1), 1, atol=1e-5)
    mean = (
        encoder.embed_texts([row.text for row in bank.rows if row.owner == "a" and row.role == "class"]).numpy().mean(0)
    )
    np.testing.assert_allclose(found.class_vector("a"), mean / np.linalg.norm(mean), atol=1e-6)
    assert found.logit_scale == encoder.logit_scale
    assert read_bank(tmp_path).rows == bank.rows  # a folder with one bank names it
    write_bank(tmp_path / "other.safetensors", bank)
    with pytest.raises(InputError, match=r"expected one text bank .*bank\.safetensors, other\.safetensors"):
        read_bank(tmp_path)


def test_the_sets_address_is_its_content(tmp_path: Path):
    first = read_prompt_set(written(tmp_path, GOOD)).sha256()
    assert read_prompt_set(written(tmp_path, GOOD.replace("a test", "another source"))).sha256() == first
    assert read_prompt_set(written(tmp_path, GOOD.replace("one gland", "one duct"))).sha256() != first


def test_a_sentence_longer_than_the_context_is_refused_and_shown(tmp_path: Path, encoder):
    long = " ".join(["gland"] * 200)
    with pytest.raises(InputError, match=r"200 tokens, demo reads \d+; cut off: '… gland gland"):
        build_bank(read_prompt_set(written(tmp_path, GOOD.replace("round lumens", long))), encoder)


def test_only_features_of_the_same_weights_and_the_joint_space_match(tmp_path: Path, encoder):
    bank = build_bank(read_prompt_set(written(tmp_path, GOOD)), encoder)
    require_match(bank, encoder="demo", encoder_fingerprint=encoder.fingerprint, space="joint")
    with pytest.raises(MismatchError, match="their cosine means nothing") as caught:
        require_match(bank, encoder="demo", encoder_fingerprint="0" * 64, space="joint")
    assert {encoder.fingerprint[:8], "00000000"} <= set(re.findall(r"[0-9a-f]{8}", str(caught.value)))
    with pytest.raises(
        MismatchError, match=r"extract with space=joint, or convert with project=true, to use text$"
    ) as caught:
        require_match(bank, encoder="demo", encoder_fingerprint=encoder.fingerprint, space="backbone")
    assert str(caught.value).count(encoder.fingerprint[:8]) == 2


def test_banks_of_two_encoders_and_of_two_prompt_sets_are_told_apart(tmp_path: Path, encoder):
    clip = HfClipSource(path=str(tiny_clip.save(tmp_path / "clip", "clip"))).load(torch.device("cpu"))
    prompts = read_prompt_set(written(tmp_path, GOOD))
    ours, theirs = build_bank(prompts, encoder), build_bank(prompts, clip)
    with pytest.raises(MismatchError) as caught:
        require_match(theirs, encoder="demo", encoder_fingerprint=encoder.fingerprint, space="joint")
    assert theirs.encoder_fingerprint[:8] in str(caught.value)
    assert ours.encoder_fingerprint[:8] in str(caught.value)
    require_same_prompts(theirs, prompt_set=ours.prompt_set, prompt_set_sha256=ours.prompt_set_sha256)
    other = build_bank(read_prompt_set(written(tmp_path, GOOD.replace("one gland", "one duct"))), encoder)
    assert other.prompt_set == ours.prompt_set  # equal names are no proof
    with pytest.raises(MismatchError, match="use the bank it was made with") as caught:
        require_same_prompts(other, prompt_set=ours.prompt_set, prompt_set_sha256=ours.prompt_set_sha256)
    assert other.prompt_set_sha256[:8] in str(caught.value)
    assert ours.prompt_set_sha256[:8] in str(caught.value)
    assert len({bank_name(bank) for bank in (ours, theirs, other)}) == 3


def test_the_command_names_the_licence_behind_the_words_and_obeys_the_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    weights = tiny_clip.save(tmp_path / "clip", "clip")
    own = ["encoder=hf_clip", f"encoder.path={weights}", "encoder.licence=MIT"]
    own.append("encoder.licence_ancestry=[CC-BY-NC-ND-4.0]")
    words = [f"prompts={written(tmp_path, GOOD)}", *own]
    line = "licence MIT, derived from CC-BY-NC-ND-4.0; commercial use is not known to be allowed"
    for command in (["prompts", *words, f"out={tmp_path / 'any'}"], ["prompts", "lint", *words]):
        assert main(command) == 0
        assert line in capsys.readouterr().err
        assert main([*command, "licence_profile=commercial"]) == 2
        assert "licence_profile=commercial: the weights of" in capsys.readouterr().err
    assert main(["prompts", *words, f"out={tmp_path / 'no'}", "licence_profile=commercial"]) == 2
    assert list((tmp_path / "any").glob("*.safetensors"))
    assert not list((tmp_path / "no").glob("[!.]*"))


def test_what_is_no_bank_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="promptmil prompts"):
        read_bank(tmp_path / "none.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(DamagedFileError, match="not a text bank"):
        read_bank(tmp_path / "x.safetensors")
