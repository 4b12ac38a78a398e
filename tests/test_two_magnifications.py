"""Commands on a slide at two magnifications: the start is the mean, maps add up over both, gaps are named."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_viewer import said

from feature_extraction.synthetic.cohort import make_cohort
from mil.cli import main

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("two_magnifications")]


ALLOW = "tiling.allow_off_spec=true"


class Study:
    """A drawn cohort extracted twice, the second time coarser."""

    def __init__(self, folder: Path) -> None:
        cohort = make_cohort(folder / "cohort", n_patients=12, seed=3)
        self.folders = [folder / "fine", folder / "coarse"]
        for out, mpp in zip(self.folders, (1.0, 1.5), strict=True):
            assert main(["extract", f"slides={cohort.slides}", f"out={out}", f"tiling.tile_mpp={mpp}", ALLOW]) == 0
        assert main(["prompts", "prompts=demo", f"out={folder / 'bank'}"]) == 0
        assert main(["split", f"labels={cohort.labels}", f"out={folder}", "folds=2"]) == 0
        (self.bank,) = (folder / "bank").glob("*.safetensors")
        self.split, self.labels = folder / "kfold.csv", cohort.labels
        self.both = f"features=[{self.folders[0]},{self.folders[1]}]"

    def train(self, out: Path, *words: str) -> int:
        return main(["train", self.both, f"bank={self.bank}", f"split={self.split}", f"out={out}", *words])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("magnifications"))


def only_run(out: Path) -> Path:
    (run,) = (path.parent for path in out.glob("*/done.json"))
    return run


@pytest.mark.parametrize("words", [["aggregator=dual_scale"], ["aggregator=topj", "+aggregator.scales=2"]])
def test_without_an_epoch_the_logits_are_the_mean_of_both_zero_shots(study: Study, tmp_path: Path, words: list[str]):
    logits = []
    for number, folder in enumerate(study.folders):
        out = tmp_path / str(number)
        given = [f"features={folder}", f"bank={study.bank}", f"labels={study.labels}", f"out={out}"]
        assert main(["zeroshot", *given]) == 0
        shares = np.log(pd.read_csv(out / "predictions.csv", index_col="slide_id").filter(like="p_"))
        logits.append(shares.sub(shares["p_normal"], axis=0))  # the logit of the background is 0
    assert study.train(tmp_path / "runs", *words, "trainer.max_epochs=0") == 0
    found = pd.read_csv(only_run(tmp_path / "runs") / "predictions.csv", index_col="slide_id").filter(like="p_")
    shares = np.log(found)
    expected = ((logits[0] + logits[1]) / 2).loc[found.index, found.columns]
    np.testing.assert_allclose(shares.sub(shares["p_normal"], axis=0), expected, atol=2e-3)
    assert (logits[0] - logits[1]).abs().to_numpy().max() > 0.1  # the magnifications do say different things


def test_maps_of_both_magnifications_and_the_bias_add_up_to_the_logit(study: Study, tmp_path: Path):
    assert study.train(tmp_path / "runs", "aggregator=dual_scale", "trainer.max_epochs=2") == 0
    run = only_run(tmp_path / "runs")
    assert main(["predict", f"run={run}", study.both, f"out={tmp_path / 'new'}"]) == 0
    stored, again = (
        pd.read_csv(folder / "predictions.csv", index_col="slide_id") for folder in (run, tmp_path / "new")
    )
    columns = [name for name in stored.columns if name.startswith("p_")]
    np.testing.assert_allclose(again.loc[stored.index, columns], stored[columns], atol=1e-6)
    slide_id = stored.index[0]
    words = [f"run={run}", study.both, f"out={tmp_path / 'maps'}", f"slide_ids=[{slide_id}]"]
    assert main(["heatmap", *words, "exports=[geojson,ome_tiff,asap,report]", "viewer=true"]) == 0
    for suffix in ("tiles.geojson.gz", "regions.geojson.gz", "ome.tiff", "asap.xml", "report.json"):
        data = [(tmp_path / "maps" / f"{slide_id}{scale}.{suffix}").read_bytes() for scale in ("", ".coarse")]
        assert data[0] != data[1]
    (line,) = json.loads((tmp_path / "maps" / "summary.json").read_text())["slides"]
    tables = [
        pd.read_parquet(tmp_path / "maps" / f"{slide_id}{scale}.tiles.parquet").groupby("class")["contribution"].sum()
        for scale in ("", ".coarse")
    ]
    biases = np.array(list(line["logits"].values())) - sum(table[list(line["logits"])].to_numpy() for table in tables)
    assert (np.abs(biases) < 0.1).all()  # two epochs move a bias by little, a missing magnification by more
    assert all((table.abs() > 0.1).any() for table in tables)
    scales = said(tmp_path / "maps" / "viewer" / "slides" / slide_id / "data.js", "slide")["scales"]
    assert [len(scale["x"]) for scale in scales] == sorted((len(scale["x"]) for scale in scales), reverse=True)
    assert scales[1]["tile_um"] > scales[0]["tile_um"]
    assert (tmp_path / "maps" / f"{slide_id}.coarse.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["features={0}", "aggregator=dual_scale"], "reads 2 magnification(s), features has 1"),
        (["features=[{0},{1}]", "aggregator=prompt"], "reads 1 magnification(s), features has 2"),
        (["features=[{1},{0}]", "aggregator=dual_scale"], "expected the finer magnification first"),
        (["features=[{0},{0},{1}]", "aggregator=dual_scale"], "expected one folder, or [fine,coarse], got 3"),
        (["features=[{0},{1}]", "aggregator=prompt", "+aggregator.scales=3"], "expected 1 or 2"),
    ],
)
def test_folders_that_do_not_fit_the_aggregator_are_refused(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
):
    given = [word.format(*study.folders) for word in words]
    assert main(["train", *given, f"bank={study.bank}", f"split={study.split}", f"out={tmp_path}"]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_slide_that_lacks_a_magnification_is_left_out_and_named(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (folder,) = {path.parent for path in study.folders[1].glob("*/*.h5")}
    part = tmp_path / "part"
    part.mkdir()
    for path in sorted(folder.glob("*.h5"))[1:]:
        (part / path.name).symlink_to(path)
    missing = min(folder.glob("*.h5")).stem
    both = f"features=[{study.folders[0]},{part}]"
    words = [f"bank={study.bank}", f"split={study.split}", f"out={tmp_path / 'runs'}", "trainer.max_epochs=0"]
    assert main(["train", both, "aggregator=dual_scale", *words]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert f"not used: slide={missing}: coarse: no feature file" in said
    table = pd.read_csv(only_run(tmp_path / "runs") / "predictions.csv")
    assert missing not in set(table["slide_id"])
