"""Prompt sets and text banks: every defect named, every vector what it says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from feature_extraction.configuration import conf_folder
from feature_extraction.encoders.demo import DemoSource
from feature_extraction.errors import DamagedFileError, InputError, MismatchError
from feature_extraction.prompts import read_prompt_set
from feature_extraction.text_bank import build_bank, read_bank, require_match, write_bank

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
        (("role: background", "role: other"), "knows role"),
        (("a: {", "a: {role: background, "), "at most one class"),
        (('"CLASSNAME."', '"class."'), "template without CLASSNAME"),
        (("[one gland, two glands]", "[one gland, one gland]"), "same sentence twice"),
        (("nontask:", "background:"), "unknown key 'background'"),
        (("  n: {role: background, names: [normal tissue]}\n", ""), "at least two classes"),
        (("classes:", "klasses:"), "expected a mapping with 'classes:'"),
    ],
)
def test_each_defect_is_named(tmp_path: Path, change: tuple[str, str], message: str):
    assert change[0] in GOOD
    with pytest.raises(InputError, match=message):
        read_prompt_set(written(tmp_path, GOOD.replace(*change)))


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
    with pytest.raises(InputError, match=r"longer than the .* tokens that demo reads: gland gland"):
        build_bank(read_prompt_set(written(tmp_path, GOOD.replace("round lumens", long))), encoder)


def test_only_features_of_the_same_weights_and_the_joint_space_match(tmp_path: Path, encoder):
    bank = build_bank(read_prompt_set(written(tmp_path, GOOD)), encoder)
    require_match(bank, encoder="demo", encoder_fingerprint=encoder.fingerprint, space="joint")
    with pytest.raises(MismatchError, match="their cosine means nothing"):
        require_match(bank, encoder="demo", encoder_fingerprint="0" * 64, space="joint")
    with pytest.raises(MismatchError, match="extract with space=joint"):
        require_match(bank, encoder="demo", encoder_fingerprint=encoder.fingerprint, space="backbone")


def test_what_is_no_bank_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="promptmil prompts"):
        read_bank(tmp_path / "none.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(DamagedFileError, match="not a text bank"):
        read_bank(tmp_path / "x.safetensors")
