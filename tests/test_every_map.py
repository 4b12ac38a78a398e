"""Every yaml of conf/aggregator: the prediction of its map, in double precision, is the one that its run stored."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from bags import CLASSES, bag, bank, rows, scaled
from study_files import N_SLIDES, N_TILES, write_study
from test_kept_tiles import CONFIGS, STARTS, moved
from test_store import HEADER

from feature_extraction.store import FeatureRows, write_features
from mil.aggregator import n_scales
from mil.bag import pack_tiles
from mil.cli import main
from mil.heatmap.contributions import explain
from mil.heatmap.explain import PREDICTION_TOLERANCE
from mil.runs import find_runs, write_done
from mil.tasks.classification import Classification


@pytest.mark.parametrize(("name", "init"), STARTS)
def test_a_map_in_double_precision_predicts_what_the_run_did_in_single(name: str, init: str):
    """The prediction that a run stores is of single precision; on a bag of a thousand tiles the map's is the same."""
    aggregator, slide = moved(name, init), scaled(n_scales(CONFIGS[name]), bag(1000, 3))
    tiles = [one.tensor() for one in slide.scales()]
    with torch.inference_mode():
        stored = Classification().probabilities(aggregator(torch.cat(tiles), pack_tiles([tiles])).logits)[0]
    found = explain(aggregator, Classification(), slide)[0].probabilities
    assert np.abs(found - stored.numpy()).max() < PREDICTION_TOLERANCE


@pytest.mark.parametrize(("name", "init"), STARTS)
def test_what_is_said_of_a_tile_goes_with_it_whatever_the_order_of_the_tiles(name: str, init: str):
    aggregator, slide = moved(name, init), scaled(n_scales(CONFIGS[name]), bag(30, 3))
    order = np.random.default_rng(0).permutation(30)
    shuffled = replace(slide, features=slide.features[order], coords_lv0=slide.coords_lv0[order])
    before, after = (explain(aggregator, Classification(), one)[0] for one in (slide, shuffled))
    for layer in ("contribution", "evidence", "attention"):
        given, found = (getattr(one, layer)[:, :2] for one in (before, after))  # of the background all tiles are ties
        np.testing.assert_allclose(found, given[order], atol=1e-9)


class Study:
    """Features at two magnifications, and a run of every yaml."""

    def __init__(self, folder: Path) -> None:
        words = write_study(folder)
        self.fine, self.coarse = folder / "features", folder / "coarse"
        for number in range(N_SLIDES):
            _write_coarse(self.coarse, number)
        self.runs = folder / "runs"
        both = f"features=[{self.fine},{self.coarse}]"
        for scale, features in ((1, words[0]), (2, both)):
            names = ",".join(name for name, one in CONFIGS.items() if n_scales(one) == scale)
            given = [
                features,
                *words[1:],
                f"aggregator={names}",
                "trainer.max_epochs=1",
                f"out={self.runs}",
                "parallel=1",
            ]
            assert main(["train", "-m", *given]) == 0
        self.run_of = {str(run.cell["aggregator"]): run.folder for run in find_runs(self.runs)}

    def maps(self, name: str, out: Path) -> int:
        features = self.fine if n_scales(CONFIGS[name]) == 1 else f"[{self.fine},{self.coarse}]"
        words = [f"run={self.run_of[name]}", f"features={features}", f"out={out}", "slide_ids=[S12]", "parallel=1"]
        return main(["heatmap", *words, "faithfulness=false"])


def _write_coarse(folder: Path, number: int) -> None:
    words = bank()
    n_tiles = N_TILES // 2
    header = replace(
        HEADER, slide_id=f"S{number}", encoder=words.encoder, encoder_fingerprint=words.encoder_fingerprint,
        tile_mpp=2 * HEADER.tile_mpp,
    )  # fmt: skip
    tiles = FeatureRows(
        spaces={"joint": rows(n_tiles, seed=1000 + number).astype(np.float16)},
        coords_lv0=np.stack([np.arange(n_tiles) * 384, np.zeros(n_tiles)], axis=1).astype(np.int64),
        tissue_fraction=np.ones(n_tiles, np.float32),
        failed_coords_lv0=np.empty((0, 2), np.int64),
    )
    write_features(folder / f"S{number}.h5", header, tiles)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("every_map"))


@pytest.mark.long
@pytest.mark.pipeline
@pytest.mark.parametrize("name", CONFIGS)
def test_the_map_of_every_aggregator_predicts_what_the_run_stored(study: Study, tmp_path: Path, name: str):
    assert study.maps(name, tmp_path) == 0
    (line,) = json.loads((tmp_path / "summary.json").read_text())["slides"]
    stored = pd.read_csv(study.run_of[name] / "predictions.csv", index_col="slide_id").loc["S12"]
    for name_of_class in CLASSES:
        assert line["probabilities"][name_of_class] == pytest.approx(stored[f"p_{name_of_class}"], abs=1e-4)
    table = pd.read_parquet(tmp_path / "S12.tiles.parquet")
    assert len(table) == N_TILES * len(CLASSES)


@pytest.mark.pipeline
def test_a_map_that_would_predict_something_else_is_not_made(tmp_path: Path):
    words = write_study(tmp_path)
    assert main(["train", *words, "aggregator=transformer", "trainer.max_epochs=1", f"out={tmp_path / 'runs'}"]) == 0
    (run,) = find_runs(tmp_path / "runs")
    path = run.folder / "predictions.csv"
    table = pd.read_csv(path)
    table.loc[table["slide_id"] == "S12", "p_alpha"] += 2e-3
    table.to_csv(path, index=False)
    write_done(run.folder)
    given = [f"run={run.folder}", words[0], f"out={tmp_path / 'maps'}", "slide_ids=[S12,S13]", "faithfulness=false"]
    assert main(["heatmap", *given]) == 3
    (failure,) = json.loads((tmp_path / "maps" / "summary.json").read_text())["failures"]
    assert "S12" in failure
    assert "prediction differs" in failure
    assert not list((tmp_path / "maps").glob("S12*"))
    assert (tmp_path / "maps" / "S13.png").is_file()
