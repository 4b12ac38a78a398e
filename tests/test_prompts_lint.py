"""The linter of prompt sets: every planted defect is found, nothing in a clean set."""

import re
from collections import Counter
from pathlib import Path

import pytest
import tiny_clip
import torch

from feature_extraction.configuration import conf_folder
from feature_extraction.encoders.demo import DemoSource
from feature_extraction.errors import InputError
from feature_extraction.prompt_lint import RULES, errors_of, lint, lint_file, measure
from feature_extraction.prompt_words import estimated_tokens
from feature_extraction.prompts import parse_prompt_set, read_prompt_set
from feature_extraction.text_bank import build_bank
from mil.cli import main

SETS = sorted((conf_folder() / "prompts").glob("*.yaml"))
PLANTED = Path(__file__).parent / "prompt_defects.yaml"
CLEAN = """
templates: ["CLASSNAME.", "an H&E image of CLASSNAME."]
classes:
  a: {names: [gland tumor, tumor of glands], concepts: {shape: [round lumens]}}
  n: {role: background, names: [normal lung stroma], concepts: {wall: [pink stroma]}}
nontask: {blood: [red blood cells]}
source: a test
"""


@pytest.fixture(scope="module")
def encoder():
    return DemoSource().load(torch.device("cpu"))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "set.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_planted_defect_is_found_and_nothing_else():
    lines = PLANTED.read_text(encoding="utf-8").splitlines()
    planted = Counter(found[1] for line in lines if (found := re.search(r"# kind: ([\w-]+)", line)))
    defects = lint_file(PLANTED)
    assert len(planted) >= 12
    assert Counter(defect.rule for defect in defects) == planted
    for defect in defects:  # each says where it is, what was found, and what to do
        assert defect.place
        assert defect.what
        assert defect.remedy


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_nothing_is_found_in_a_shipped_set(path: Path):
    assert lint_file(path) == ()


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_a_shipped_set_is_far_from_the_limit_of_a_clip_tower(path: Path):
    """Of CLIP's own tokenizer the estimate was at most 13 % short on these sets, and 77 tokens is its context."""
    assert max(estimated_tokens(row.text) for row in read_prompt_set(path).rows()) <= 50


def test_a_clean_set_is_clean(tmp_path: Path, encoder):
    assert lint_file(written(tmp_path, CLEAN)) == ()
    rules = {defect.rule for defect in lint_file(written(tmp_path, CLEAN), encoder=encoder)}
    assert rules <= {"concept-of-another-class"}  # what a toy makes of it is its own affair


@pytest.mark.parametrize(
    ("change", "rule", "place"),
    [
        (("  n: {role: background,", "  #"), "too-few-classes", "classes"),
        (("[red blood cells]", "[pink stroma]"), "shared-text", "class n, concept wall and nontask blood"),
        (("[round lumens]", "[no lumens]"), "negation", "class a, concept shape"),
        (("[round lumens]", "[12]"), "not-a-text", "class a: concepts shape"),
        (('"CLASSNAME."', '"CLASSNAME.", "CLASSNAME."'), "repeated-text", "templates"),
        (("tumor of glands]", "CLASSNAME]"), "unfilled-placeholder", "class a, names"),
        (("source: a test", "source: DRAFT by a model"), "unreviewed-draft", "source"),
        (("nontask: {", "nontask: [blood]\nmore: {"), "unknown-key", "the file"),
    ],
)
def test_a_single_defect_is_named_with_its_place(tmp_path: Path, change: tuple[str, str], rule: str, place: str):
    assert change[0] in CLEAN
    found = lint_file(written(tmp_path, CLEAN.replace(*change)))
    assert (rule, place) in [(defect.rule, defect.place) for defect in found]


def test_names_and_templates_that_make_one_sentence_are_found(tmp_path: Path):
    text = CLEAN.replace('"an H&E image of CLASSNAME."', '"lung CLASSNAME."').replace(
        "tumor of glands", "lung gland tumor"
    )
    (defect,) = lint_file(written(tmp_path, text))
    assert (defect.rule, defect.severity) == ("repeated-text", "error")
    assert "'lung gland tumor.'" in defect.what


@pytest.mark.parametrize(
    "word", ["β-catenin positive cells", "αSMA rich stroma", "cells of Käfer's type", "5 µm cells"]
)
def test_a_letter_that_belongs_there_is_no_look_alike(tmp_path: Path, word: str):
    assert lint_file(written(tmp_path, CLEAN.replace("round lumens", word))) == ()


@pytest.mark.parametrize("word", ["breast carcinoma of no special type", "non-keratinizing squamous carcinoma"])
def test_a_diagnosis_is_no_negation(tmp_path: Path, word: str):
    assert lint_file(written(tmp_path, CLEAN.replace("tumor of glands", word))) == ()


def test_labels_without_prompts_and_classes_without_labels_are_named(tmp_path: Path):
    path = written(tmp_path, CLEAN.replace("  a: {", "  LUAD: {"))
    found = {defect.rule: defect for defect in lint_file(path, labels=["luad", "n"])}
    assert found["label-without-prompts"].severity == "error"
    assert "'luad'" in found["label-without-prompts"].what
    assert "LUAD" in found["class-without-label"].place
    assert lint_file(path, labels=["LUAD", "n"]) == ()


def test_what_is_cut_is_shown_and_no_bank_is_made(tmp_path: Path):
    from feature_extraction.encoders.hf_clip import HfClipSource

    clip = HfClipSource(path=str(tiny_clip.save(tmp_path / "clip", "clip"))).load(torch.device("cpu"))
    limit = clip.spec.context_length
    assert limit is not None
    fits, over = " ".join(["gland"] * (limit - 2)), " ".join([*["gland"] * (limit - 2), "keratin pearls"])
    path = written(tmp_path, CLEAN.replace("round lumens", over).replace("pink stroma", fits))
    found = {defect.rule: defect for defect in lint_file(path, encoder=clip)}
    assert f"{limit + 2} tokens" in found["too-long"].what
    assert "cut off: '… keratin pearls'" in found["too-long"].what
    assert f"{limit} of {limit} tokens" in found["near-limit"].what
    assert found["near-limit"].severity == "warning"
    with pytest.raises(InputError, match=r"no bank is made .*\n.* cut off: '… keratin pearls'"):
        build_bank(read_prompt_set(path), clip)


def test_the_directions_an_encoder_gives_are_compared(tmp_path: Path, encoder):
    text = CLEAN.replace("gland tumor, tumor of glands", "adenocarcinoma with gland formation")
    text = text.replace("round lumens", "open alveoli and healthy lung").replace(
        "normal lung stroma", "normal lung alveoli"
    )
    found = [defect.rule for defect in lint_file(written(tmp_path, text), encoder=encoder)]
    assert found == ["concept-of-another-class"]
    twins = text.replace("normal lung alveoli", "adenocarcinoma with gland formation section")
    prompts, _ = parse_prompt_set(written(tmp_path, twins))
    vectors = measure(prompts, encoder).vectors
    assert float(vectors["a", ""] @ vectors["n", ""]) > 0.98
    assert "classes-too-close" in [defect.rule for defect in lint(prompts, encoder=encoder)]


def test_an_encoder_that_does_not_read_the_words_is_noticed(tmp_path: Path):
    from feature_extraction.encoders.hf_clip import HfClipSource

    path = tiny_clip.save(tmp_path / "clip", "clip")
    clip = HfClipSource(path=str(path)).load(torch.device("cpu"))
    assert not [defect for defect in lint_file(written(tmp_path, CLEAN), encoder=clip) if "effect" in defect.rule]
    text = CLEAN.replace("[round lumens]", "[xylophone, zeppelin]")  # neither is a word of this tokenizer
    (defect,) = [d for d in lint_file(written(tmp_path, text), encoder=clip) if d.rule == "words-without-effect"]
    assert (defect.place, defect.severity) == ("class a, concept shape", "warning")
    assert defect.what == "the same vector as 'xylophone': 'zeppelin'"


def test_a_bank_is_refused_for_errors_and_made_with_warnings(tmp_path: Path, encoder):
    path = written(tmp_path, CLEAN.replace("red blood cells", "blood without clots"))
    assert [defect.rule for defect in lint_file(path)] == ["negation"]
    assert errors_of(lint_file(path)) == ()
    assert build_bank(read_prompt_set(path), encoder).nontask() == ("blood",)
    wrong = CLEAN.replace("round lumens", "1. round lumens").replace("[pink stroma]", "['{} stroma']")
    with pytest.raises(InputError, match=r"1\. round lumens") as caught:
        build_bank(read_prompt_set(written(tmp_path, wrong)), encoder)
    assert "{} stroma" in str(caught.value)


def test_every_rule_is_listed_once_and_says_what_it_finds():
    assert len(RULES) == len(set(RULES))
    assert all(rule.__doc__ for rule in RULES)


def lint_command(*words: str) -> int:
    return main(["prompts", "lint", *words])


def test_the_command_ends_with_two_for_errors_and_with_zero_for_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert lint_command(f"prompts={PLANTED}") == 2
    shown = capsys.readouterr().out
    assert "prompt_defects.yaml: error: class ALPHA, concept bullet: starts with '-'" in shown
    assert "prompt_defects.yaml: warning: class ALPHA, concept denial: 'without' in" in shown
    path = written(tmp_path, CLEAN.replace("red blood cells", "blood without clots"))
    assert lint_command(f"prompts={path}") == 0
    assert "set.yaml: 0 errors, 1 warnings" in capsys.readouterr().out
    assert lint_command("prompts=nsclc") == 0
    assert "nsclc.yaml: nothing found" in capsys.readouterr().out


def test_the_command_takes_an_encoder_and_a_labels_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    long = written(tmp_path, CLEAN.replace("round lumens", " ".join(["gland"] * 200)))
    assert lint_command(f"prompts={long}", "encoder=demo") == 2
    assert "200 tokens, demo reads" in capsys.readouterr().out
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,patient_id,label\nS1,P1,LUAD\nS2,P2,SCLC\n")
    assert lint_command("prompts=nsclc", f"labels={labels}") == 2
    assert "label 'SCLC' has no prompts" in capsys.readouterr().out
    labels.write_text("slide_id,patient_id,class\nS1,P1,LUAD\n")
    assert lint_command("prompts=nsclc", f"labels={labels}") == 2
    assert "expected a CSV with a column label" in capsys.readouterr().err
    assert lint_command("prompts=nsclc", "encoder=uni", f"encoder.path={tmp_path}") == 2
    assert "encoder=uni: has no text tower; lint without it" in capsys.readouterr().err


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_a_bank_can_be_made_of_each_shipped_set(path: Path, capsys: pytest.CaptureFixture[str]):
    """What a toy trained on drawings makes of real histology are warnings at most."""
    assert lint_command(f"prompts={path.stem}", "encoder=demo") == 0
    shown = capsys.readouterr().out
    assert f"{path.stem}.yaml: 0 errors" in shown
    assert set(re.findall(r"\[([\w-]+)\]\n", shown)) <= {"concept-of-another-class", "classes-too-close"}
