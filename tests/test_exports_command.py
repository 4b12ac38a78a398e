"""`promptmil heatmap exports=…`: what is asked for is there, and nothing of an earlier map beside it."""

import json
from pathlib import Path

import pandas as pd
import pytest
from study_files import write_study
from test_case_report import Page, require_page_of

from mil.cli import main

ALL = "exports=[report,gallery,asap,ome_tiff,geojson]"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words that name a run of two folds of a small study."""
    folder = tmp_path_factory.mktemp("study")
    given = write_study(folder, n_folds=2)
    fit = ["-m", "fold=0,1", "seed=0,1", "trainer.max_epochs=1", "parallel=1"]
    assert main(["train", *given, *fit, f"out={folder / 'runs'}"]) == 0
    return ["heatmap", f"runs={folder / 'runs'}", given[0], "slide_ids=[S12]"]


def names_in(maps: Path) -> set[str]:
    return {path.name for path in maps.iterdir() if path.is_file()}


def test_exports_are_those_asked_for_and_go_when_they_are_no_longer(words: list[str], tmp_path: Path):
    assert main([*words, f"out={tmp_path}", ALL]) == 0
    always = {"summary.json", "S12.tiles.parquet", "S12.png", "S12.concepts.csv"}
    geojson = {"S12.tiles.geojson.gz", "S12.regions.geojson.gz", "qupath_import.groovy"}
    others = {"S12.ome.tiff", "S12.asap.xml", "S12.report.html", "S12.report.json"}
    assert names_in(tmp_path) == always | geojson | others  # no slide, no gallery
    content = json.loads((tmp_path / "S12.report.json").read_text())
    require_page_of(Page((tmp_path / "S12.report.html").read_text()), content)
    check_against_table(content, tmp_path)
    before = (tmp_path / "S12.report.html").stat().st_mtime_ns
    assert main([*words, f"out={tmp_path}", ALL]) == 0
    assert (tmp_path / "S12.report.html").stat().st_mtime_ns == before  # nothing is done twice
    (tmp_path / "mine.txt").touch()
    assert main([*words, f"out={tmp_path}"]) == 0
    assert names_in(tmp_path) == always | geojson | {"mine.txt"}


def check_against_table(content: dict[str, object], maps: Path) -> None:
    """The report says what the tile table and the summary say."""
    (line,) = json.loads((maps / "summary.json").read_text())["slides"]
    assert {row["name"]: row["logit"] for row in content["classes"]} == line["logits"]
    assert {row["name"]: row["probability"] for row in content["classes"]} == line["probabilities"]
    assert content["faithfulness"]["figures"] == line["faithfulness"]["layers"][line["layer"]]
    assert content["stability"] == line["stability"]
    assert content["stability"]["runs"] == 3
    said = content["stability"]["probability"]
    assert said["low"] <= line["probabilities"][line["shown"]] <= said["high"]
    table = pd.read_parquet(maps / "S12.tiles.parquet")
    of_class = table[table["class"] == content["shown"]].set_index(["x_lv0", "y_lv0"])
    assert content["map"]["contributions"] == pytest.approx(of_class["contribution"].sum())
    shown = [*content["top_tiles"]["for"], *content["top_tiles"]["against"]]
    assert shown
    for tile in shown:
        row = of_class.loc[(tile["x_lv0"], tile["y_lv0"])]
        assert row[line["layer"]] == tile["value"]
        assert row["contribution"] == tile["contribution"]
    concepts = pd.read_csv(maps / "S12.concepts.csv").set_index("concept")
    for row in content["concepts"]:
        assert concepts.loc[row["concept"], "contribution"] == pytest.approx(row["contribution"], rel=1e-5)


def test_a_run_that_learned_from_the_slide_says_so_and_counts_for_no_range(words: list[str], tmp_path: Path):
    folder = Path(words[1].removeprefix("runs="))
    runs = [path.parent for path in folder.glob("*/done.json")]
    learned = {}
    for run in runs:
        parts = pd.read_csv(run / "predictions.csv", index_col="slide_id")["part"]
        learned[run] = parts["S12"] != "test"
    trained = next(run for run in runs if learned[run])
    single = ["heatmap", f"run={trained}", *words[2:], f"out={tmp_path}", "exports=[report]"]
    assert main(single) == 0
    content = json.loads((tmp_path / "S12.report.json").read_text())
    assert content["learned_from"]
    assert content["stability"]["probability"] is None
    assert "proves nothing" in (tmp_path / "S12.report.html").read_text()
    assert main([*words, f"out={tmp_path / 'all'}", "exports=[report]", "faithfulness=true"]) == 0
    said = json.loads((tmp_path / "all" / "S12.report.json").read_text())
    assert not said["learned_from"]
    assert said["stability"]["probability"]["runs"] == sum(not one for one in learned.values())


def test_an_unknown_export_starts_nothing(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*words, f"out={tmp_path / 'maps'}", "exports=[pdf]"]) == 2
    assert "exports: pdf not known" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "maps" / "summary.json").exists()
