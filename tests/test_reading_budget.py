"""`extract reading=budget`: a coarse pass, then the tiles it points to, with the extractor's own promises."""

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from forked import Forker, rows_of
from pyramids import tissue_pixels, write_slide

from feature_extraction.reading import REASONS, find_defect, tiles_in
from feature_extraction.store import FeatureFile
from feature_extraction.synthetic.cohort import make_cohort
from mil.cli import main

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("reading_budget")]
N_SLIDES = 3
BUDGET = 0.3


class Study:
    """Slides, a text bank, and both ways to read them."""

    def __init__(self, folder: Path) -> None:
        self.slides, self.bank = folder / "slides", folder / "bank"
        for index in range(N_SLIDES):
            write_slide(self.slides / f"S{index}.svs", tissue_pixels(1500, 1400 + 100 * index, seed=index))
        assert main(["prompts", "prompts=demo", f"out={self.bank}"]) == 0
        self.all, self.some = folder / "all", folder / "some"
        assert main(["extract", f"slides={self.slides}", f"out={self.all}"]) == 0
        assert self.extract(self.some) == 0

    def extract(self, out: Path, *words: str, slides: Path | None = None) -> int:
        given = [f"slides={slides or self.slides}", f"reading.bank={self.bank}", f"reading.budget={BUDGET}"]
        return main(["extract", "reading=budget", *given, f"out={out}", *words])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("budget"))


def files_in(out: Path) -> dict[str, FeatureFile]:
    return {path.stem: FeatureFile(path) for path in sorted(out.glob("*/*.h5"))}


def test_a_file_holds_the_budget_with_parent_and_reason_of_each_tile(study: Study):
    whole, coarse = files_in(study.all), files_in(study.some / "coarse")
    found = files_in(study.some)
    assert sorted(found) == sorted(whole) == sorted(coarse) == [f"S{index}" for index in range(N_SLIDES)]
    for name, file in found.items():
        n_candidates = whole[name].shape[0]
        assert file.shape[0] == tiles_in(BUDGET, n_candidates) < n_candidates
        assert file.chosen is not None
        assert find_defect(file.chosen, file.shape[0]) is None
        said = json.loads(file.header.reading)
        assert said["n_candidates"] == n_candidates
        assert said["coarse_content_sha256"] == coarse[name].content_sha256
        assert said["coarse_fingerprint"] == coarse[name].header.extraction_fingerprint
        assert (said["coarse_mpp"], file.header.tile_mpp) == (2.0, 1.0)
        assert {REASONS[reason] for reason in file.chosen.reasons} == {"similar", "uncertain"}
        known = {tuple(corner) for corner in coarse[name].coords_lv0.tolist()}
        assert {tuple(corner) for corner in file.chosen.parents_lv0.tolist()} <= known


def test_its_rows_are_those_of_the_same_tiles_of_a_complete_extraction(study: Study):
    whole = files_in(study.all)
    for name, file in files_in(study.some).items():
        place = {tuple(corner): row for row, corner in enumerate(whole[name].coords_lv0.tolist())}
        rows = [place[tuple(corner)] for corner in file.coords_lv0.tolist()]
        assert rows == sorted(rows)
        np.testing.assert_allclose(file.features(), whole[name].features()[rows], atol=2e-3)
        np.testing.assert_array_equal(file.tissue_fraction, whole[name].tissue_fraction[rows])


def test_a_second_run_does_nothing_and_verify_finds_both_folders_whole(study: Study):
    before = {path: path.stat().st_mtime_ns for path in study.some.rglob("*.h5")}
    assert len(before) == 2 * N_SLIDES
    assert study.extract(study.some) == 0
    assert {path: path.stat().st_mtime_ns for path in study.some.rglob("*.h5")} == before
    assert json.loads((study.some / "summary.json").read_text())["new"] == 0
    for out in (study.some, study.some / "coarse"):
        assert main(["verify", f"features={out}", f"slides={study.slides}"]) == 0


def test_a_complete_file_among_chosen_ones_is_refused_by_its_fingerprint(
    study: Study, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    (folder,) = (path.parent for path in study.some.glob("*/S0.h5"))
    (complete,) = study.all.glob("*/S1.h5")
    assert folder.name != complete.parent.name
    mixed = tmp_path / folder.name
    shutil.copytree(folder, mixed)
    shutil.copy(complete, mixed / "S1.h5")
    assert main(["verify", f"features={mixed}"]) == 3
    assert "S1.h5: made by another configuration" in " ".join(capfd.readouterr().err.split())
    labels = tmp_path / "labels.csv"
    rows = [f"P{index},S{index},{'normal' if index % 2 else 'glandular'}" for index in range(N_SLIDES)]
    labels.write_text("\n".join(["patient_id,slide_id,label", *rows]))
    words = [f"features={mixed}", f"bank={study.bank}", f"labels={labels}", f"out={tmp_path / 'out'}"]
    assert main(["zeroshot", *words]) == 3
    assert set(pd.read_csv(tmp_path / "out" / "predictions.csv")["slide_id"]) == {"S0", "S2"}


def test_another_budget_bank_or_level_is_another_folder(study: Study, tmp_path: Path):
    one = tmp_path / "slides"
    one.mkdir()
    shutil.copy(study.slides / "S0.svs", one)
    out, others = tmp_path / "out", (["reading.budget=7"], ["reading.uncertain=0"], ["reading.coarse_mpp=4.0"])
    for words in others:
        assert study.extract(out, *words, slides=one) == 0
    found = list(out.glob("*/S0.h5"))
    assert len({path.parent for path in found}) == len(others)
    assert len(list((out / "coarse").glob("*/S0.h5"))) == 2  # only the level changes the coarse look
    assert 7 in [FeatureFile(path).shape[0] for path in found]


def test_a_slide_that_cannot_be_read_costs_itself_in_both_passes(study: Study, tmp_path: Path):
    slides = tmp_path / "slides"
    shutil.copytree(study.slides, slides)
    (slides / "S1.svs").write_bytes((slides / "S1.svs").read_bytes()[:5000])
    assert study.extract(tmp_path / "out", slides=slides) == 3
    assert sorted(files_in(tmp_path / "out")) == ["S0", "S2"]
    for out in (tmp_path / "out", tmp_path / "out" / "coarse"):
        assert pd.read_csv(out / "failures.csv")["slide_id"].tolist() == ["S1"]


def test_a_slide_without_tissue_is_empty_and_one_smaller_than_a_coarse_tile_is_read_wholly(
    study: Study, tmp_path: Path
):
    slides = tmp_path / "slides"
    write_slide(slides / "glass.svs", np.full((1700, 1700, 3), 245, np.uint8))
    write_slide(slides / "tiny.svs", tissue_pixels(700, 700))
    assert study.extract(tmp_path / "out", "reading.coarse_mpp=4.0", slides=slides) == 0
    found = files_in(tmp_path / "out")
    assert found["glass"].shape[0] == 0
    assert found["tiny"].shape[0] == 9
    assert found["tiny"].chosen is not None
    assert {REASONS[reason] for reason in found["tiny"].chosen.reasons} == {"unseen"}
    assert main(["verify", f"features={tmp_path / 'out'}"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reading.budget=0"], "reading.budget=0: expected a number of tiles (500) or a share"),
        (["reading.budget=1.5"], "reading.budget=1.5"),
        (["reading.uncertain=2"], "reading.uncertain=2: expected a share of the budget"),
        (["reading.coarse_mpp=1.0"], "reading.coarse_mpp=1.0: expected µm per pixel above the tiles' (1.0)"),
        (["reading.bank=/nowhere"], "bank=/nowhere: no such file"),
        (["reading.method=some"], "reading.method=some: unknown; known: all, budget"),
        (["encoder=uni"], "encoder uni has no text tower to choose tiles by"),
        (["encoder=[demo,uni]"], "extract with one encoder at a time"),
    ],
)
def test_what_cannot_be_read_by_is_refused_before_anything_is_written(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
):
    assert study.extract(tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.rglob("*.h5")) == []


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    with Forker(tmp_path_factory.mktemp("said")) as forker:
        yield forker


@pytest.mark.parametrize("n_kills", [pytest.param(6, id="6"), pytest.param(200, id="200", marks=pytest.mark.long)])
def test_kills_at_any_moment_of_either_pass_change_nothing(study: Study, forker: Forker, tmp_path: Path, n_kills: int):
    options = {
        "reading": "budget",
        "reading.bank": study.bank,
        "reading.budget": BUDGET,
        "slides": study.slides,
        "batch_size": 4,
        "threads": 1,
        "mix_slides": "false",
    }
    begin = time.monotonic()
    assert forker.run({**options, "out": tmp_path / "calm"}).code == 0
    longest = time.monotonic() - begin
    calm = [rows_of(tmp_path / "calm"), rows_of(tmp_path / "calm" / "coarse")]
    generator = random.Random(4)
    n_killed = n_rounds = 0
    while n_killed < n_kills:
        out, n_rounds = tmp_path / f"round{n_rounds}", n_rounds + 1
        for _ in range(3):
            run = forker.start({**options, "out": out})
            time.sleep(generator.uniform(0, longest))
            n_killed += run.is_running()
            run.kill()
            run.wait()
            for folder in (out, out / "coarse"):
                for path in folder.glob("*/*.h5"):
                    FeatureFile(path).features()
        assert forker.run({**options, "out": out}).code == 0
        assert [rows_of(out), rows_of(out / "coarse")] == calm


@pytest.mark.long
def test_chosen_tiles_are_trained_on_predicted_and_mapped_like_any_other(study: Study, tmp_path: Path):
    cohort = make_cohort(tmp_path / "cohort", n_patients=12, seed=3)
    features = tmp_path / "features"
    assert study.extract(features, slides=cohort.slides) == 0
    assert main(["split", f"labels={cohort.labels}", f"out={tmp_path}", "folds=2"]) == 0
    given = [f"features={features}", f"bank={study.bank}", f"split={tmp_path / 'kfold.csv'}", "trainer.max_epochs=2"]
    assert main(["train", *given, "aggregator=prompt", f"out={tmp_path / 'runs'}"]) == 0
    (run,) = (path.parent for path in (tmp_path / "runs").glob("*/done.json"))
    assert main(["predict", f"run={run}", f"features={features}", f"out={tmp_path / 'predicted'}"]) == 0
    words = [f"run={run}", f"features={features}", f"slides={cohort.slides}", f"out={tmp_path / 'maps'}"]
    assert main(["heatmap", *words]) == 0
    found = files_in(features)
    for path in (tmp_path / "maps").glob("*.tiles.parquet"):
        tiles = pd.read_parquet(path, columns=["x_lv0", "y_lv0"]).drop_duplicates()
        assert len(tiles) == found[path.name.partition(".")[0]].shape[0]
