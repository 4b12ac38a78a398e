"""Prompts in the layouts of other projects; the words here are our own."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from feature_extraction.commands.prompts_import import run
from feature_extraction.configuration import conf_folder
from feature_extraction.errors import InputError
from feature_extraction.prompt_import import LAYOUTS, import_prompts
from feature_extraction.prompt_lint import lint_file
from feature_extraction.prompts import read_prompt_set
from feature_extraction.text_bank import read_bank
from mil.cli import main

TWO_SCALES = "".join(
    f'"A slide of kidney {name} tumor at {scale} resolution with visually descriptive characteristics of {what}."\n'
    for name, scale, what in (
        ("onion", "low", "round, layered nests"),
        ("leek", "low", "long pale cords"),
        ("onion", "high", "clear cells"),
        ("leek", "high", "green, bright nuclei"),
    )
)
DRAWS = {
    "0": {"classnames": {"Onion": "onion tumor", "Normal": "benign kidney"}, "templates": "CLASSNAME."},
    "1": {
        "classnames": {"Onion": "tumor of onion type", "Normal": "benign kidney"},
        "templates": "a slide of CLASSNAME.",
    },
}
LISTS = {
    "classnames": {"Onion": ["onion tumor", "tumor of onion type"], "Normal": ["benign kidney", "kidney cortex"]},
    "templates": ["CLASSNAME.", "a slide of CLASSNAME."],
}
SCALED = {
    "Onion": {"small_mag": ["layered nests", "a thick capsule"], "big_mag": ["clear cells"]},
    "Leek": {"small_mag": ["long pale cords"], "big_mag": ["bright nuclei", "thin walls"]},
}
TERMS = {
    "Onion": {"Layered Nests": "nests of concentric layers", "Clear Cells": "cells of empty cytoplasm"},
    "Leek": {"Pale Cords": "cords of pale tall cells", "Bright Nuclei": "nuclei with open chromatin"},
}


def file(tmp_path: Path, content: object, name: str = "theirs.json") -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("layout", ["vila_mil", "focus"])
def test_rows_are_read_by_scale_then_class_and_the_name_is_taken_from_the_sentence(tmp_path: Path, layout: str):
    path = file(tmp_path, TWO_SCALES, "two_scale.csv")
    found = import_prompts(layout, [path], name="x", classes=["ONION", "LEEK"])
    assert [(entry.name, entry.names) for entry in found.classes] == [
        ("ONION", ("kidney onion tumor",)),
        ("LEEK", ("kidney leek tumor",)),
    ]
    assert found.classes[0].concepts == {
        "low resolution": ("round, layered nests.",),
        "high resolution": ("clear cells.",),
    }
    assert found.classes[1].concepts["high resolution"] == ("green, bright nuclei.",)


def test_positions_need_names_and_a_wrong_order_is_noticed(tmp_path: Path):
    path = file(tmp_path, TWO_SCALES, "two_scale.csv")
    with pytest.raises(InputError, match=r"its classes are positions.*classes=\[…\]"):
        import_prompts("vila_mil", [path], name="x")
    with pytest.raises(InputError, match="no multiple of the 3 classes"):
        import_prompts("vila_mil", [path], name="x", classes=["A", "B", "C"])
    lines = TWO_SCALES.splitlines(keepends=True)
    by_class = file(tmp_path, "".join([lines[0], lines[2], lines[1], lines[3]]), "by_class.csv")
    with pytest.raises(InputError, match="by position class A is called 'kidney onion tumor' and 'kidney leek tumor'"):
        import_prompts("vila_mil", [by_class], name="x", classes=["A", "B"])


def test_rows_that_state_one_scale_twice_lose_nothing(tmp_path: Path):
    path = file(tmp_path, TWO_SCALES.replace("high resolution", "low resolution"), "one_scale.csv")
    found = import_prompts("focus", [path], name="x", classes=["A", "B"])
    assert found.classes[0].concepts == {"low resolution": ("round, layered nests.", "clear cells.")}


def test_sentences_of_another_form_are_kept_whole(tmp_path: Path):
    path = file(tmp_path, '"layered nests, round"\n"pale cords"\n"clear cells"\n"bright nuclei"\n', "plain.csv")
    found = import_prompts("vila_mil", [path], name="x", classes=["A", "B"])
    assert found.classes[0].names == ("A",)
    assert found.classes[0].concepts == {
        "low resolution": ("layered nests, round",),
        "high resolution": ("clear cells",),
    }


@pytest.mark.parametrize("content", [DRAWS, {"0": LISTS}, LISTS], ids=["keep draws", "conch", "bare"])
@pytest.mark.parametrize("layout", ["conch", "keep"])
def test_draws_become_the_union_of_their_names_and_templates(tmp_path: Path, layout: str, content: object):
    found = import_prompts(layout, [file(tmp_path, content)], name="x", background="Normal")
    assert found.templates == ("CLASSNAME.", "a slide of CLASSNAME.")
    assert found.classes[0].names == ("onion tumor", "tumor of onion type")
    assert [entry.is_background for entry in found.classes] == [False, True]


def test_descriptions_at_two_magnifications_become_concepts(tmp_path: Path):
    found = import_prompts("mscpt", [file(tmp_path, SCALED)], name="x")
    assert {entry.name: dict(entry.concepts) for entry in found.classes} == {
        "Onion": {"small mag": ("layered nests", "a thick capsule"), "big mag": ("clear cells",)},
        "Leek": {"small mag": ("long pale cords",), "big mag": ("bright nuclei", "thin walls")},
    }


def test_terms_become_concepts_and_classes_are_keyed_by_name_whatever_their_order(tmp_path: Path):
    found = import_prompts("hive_mil", [file(tmp_path, TERMS)], name="x", classes=["Leek", "Onion"])
    assert [entry.name for entry in found.classes] == ["Leek", "Onion"]
    assert found.classes[0].concepts["pale cords"] == ("cords of pale tall cells",)


def test_several_files_are_put_together(tmp_path: Path):
    more = {"Onion": {"small_mag": ["a pale rim"]}, "Chive": {"small_mag": ["thin stalks"]}}
    paths = [file(tmp_path, SCALED), file(tmp_path, more, "more.json")]
    found = {entry.name: entry.concepts for entry in import_prompts("mscpt", paths, name="x").classes}
    assert found["Onion"]["small mag"] == ("layered nests", "a thick capsule", "a pale rim")
    assert list(found) == ["Onion", "Leek", "Chive"]


@pytest.mark.parametrize(
    ("layout", "content", "message"),
    [
        ("nobody", SCALED, "unknown layout; known are vila_mil, focus, mscpt, conch, keep, hive_mil"),
        ("mscpt", LISTS, "templates: expected an object with entries; is it another layout"),
        ("conch", TERMS, "expected classnames and templates"),
        ("mscpt", '{"A": {"small_mag": ["x"]}, "A": {"small_mag": ["y"]}}', "'A' is in one object twice"),
        ("keep", "not json", "not JSON"),
        ("vila_mil", "two,cells\n", "one quoted sentence a row"),
        ("hive_mil", {"A": {"term": 5}}, "A: term: expected a text"),
    ],
)
def test_another_layout_is_refused_with_the_place(tmp_path: Path, layout: str, content: object, message: str):
    with pytest.raises(InputError, match=message):
        import_prompts(layout, [file(tmp_path, content)], name="x", classes=["A", "B"] if layout == "vila_mil" else ())


def test_a_class_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"class Garlic, normal is not in theirs\.json; it has Onion, Leek"):
        import_prompts("mscpt", [file(tmp_path, SCALED)], name="x", classes=["Garlic"], background="normal")


SOURCES = {
    "vila_mil": ("prompts.csv", TWO_SCALES, ["ONION", "LEEK"], set()),
    "focus": ("prompts.csv", TWO_SCALES, ["ONION", "LEEK"], set()),
    "mscpt": ("prompts.json", SCALED, ["Onion", "Leek"], {"label-as-name"}),
    "conch": ("prompts.json", {"0": LISTS}, ["Onion", "Normal"], set()),
    "keep": ("prompts.json", DRAWS, ["Onion", "Normal"], set()),
    "hive_mil": ("prompts.json", TERMS, ["Onion", "Leek"], {"label-as-name"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_imported_linted_and_made_a_bank_of(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    name, content, classes, warnings = SOURCES[layout]
    out = tmp_path / "mine.yaml"
    words = [
        f"from={layout}",
        f"source={file(tmp_path, content, name)}",
        f"out={out}",
        f"classes=[{','.join(classes)}]",
    ]
    assert main(["prompts", "import", *words]) == 0
    assert f"2 classes, {len(list(read_prompt_set(out).rows()))} sentences" in capsys.readouterr().err
    found = read_prompt_set(out)
    assert [entry.name for entry in found.classes] == classes
    assert found.source.startswith(f"imported from {name}, layout of {layout}")
    assert {defect.rule for defect in lint_file(out)} == warnings
    assert main(["prompts", "lint", f"prompts={out}"]) == 0
    assert main(["prompts", f"prompts={out}", "encoder=demo", f"out={tmp_path / 'bank'}"]) == 0
    assert [row.text for row in read_bank(tmp_path / "bank").rows] == [row.text for row in found.rows()]


def config(*words: str):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("prompts_import", list(words))


def test_the_command_writes_a_set_that_a_bank_can_be_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = file(tmp_path, TWO_SCALES, "two_scale.csv")
    out = tmp_path / "mine.yaml"
    words = ["from=vila_mil", f"source={path}", f"out={out}", "classes=[ONION,LEEK]"]
    assert run(config(*words)) == 0
    found = read_prompt_set(out)
    assert [entry.name for entry in found.classes] == ["ONION", "LEEK"]
    assert "two_scale.csv" in found.source
    assert str(tmp_path) not in out.read_text()
    assert out.read_text().startswith("# Imported from the layout of vila_mil")
    with pytest.raises(InputError, match="is there already"):
        run(config(*words))


def test_the_command_says_what_is_wrong_with_imported_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content = {name: {**scales, "more": ["the same in both"]} for name, scales in SCALED.items()}
    out = tmp_path / "mine.yaml"
    assert run(config("from=mscpt", f"source=[{file(tmp_path, content)}]", f"out={out}")) == 3
    shown = capsys.readouterr().err
    assert "mine.yaml: error: class Onion, concept more and class Leek, concept more" in shown
    assert "[label-as-name]" in shown
    assert out.is_file()
