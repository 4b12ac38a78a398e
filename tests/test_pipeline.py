"""Whole commands on a small drawn cohort: what each promises, seen from the console."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from feature_extraction.synthetic.cohort import make_cohort
from mil.cli import main

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("drawn_cohort")]
CLASSES = ["normal", "glandular", "keratinizing"]


class Study:
    """A drawn cohort with features, bank and split, made once through the console."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        cohort = make_cohort(folder / "cohort", n_patients=12, seed=3)
        self.labels, self.slides, self.truth = cohort.labels, cohort.slides, cohort.truth
        self.features = folder / "features"
        assert main(["prompts", "prompts=demo", f"out={folder / 'bank'}"]) == 0
        assert main(["extract", f"slides={self.slides}", f"out={self.features}"]) == 0
        assert main(["split", f"labels={self.labels}", f"out={folder / 'splits'}", "folds=2"]) == 0
        (self.bank,) = (folder / "bank").glob("*.safetensors")
        self.split = folder / "splits" / "kfold.csv"

    def inputs(self) -> list[str]:
        return [f"features={self.features}", f"bank={self.bank}"]

    def train(self, out: Path, *words: str) -> int:
        return main(["train", *self.inputs(), f"split={self.split}", f"out={out}", *words])

    def zeroshot(self, out: Path, *words: str) -> pd.DataFrame:
        assert main(["zeroshot", *self.inputs(), f"labels={self.labels}", f"out={out}", *words]) == 0
        return pd.read_csv(out / "predictions.csv", index_col="slide_id")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("study"))


def run_folders(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob("*/done.json"))


@pytest.mark.parametrize("pooling", ["margin", "topj", "mean", "max"])
def test_without_an_epoch_prompt_predicts_what_zeroshot_predicts(study: Study, tmp_path: Path, pooling: str):
    expected = study.zeroshot(tmp_path / "zs", f"pooling={pooling}")
    assert study.train(tmp_path / "runs", f"pooling={pooling}", "trainer.max_epochs=0") == 0
    (run,) = run_folders(tmp_path / "runs")
    found = pd.read_csv(run / "predictions.csv", index_col="slide_id")
    assert len(found) == len(expected) == 15
    columns = [f"p_{name}" for name in CLASSES]
    np.testing.assert_allclose(found[columns], expected.loc[found.index, columns], atol=1e-4)


def test_sweep_names_its_cells_and_does_nothing_twice(study: Study, tmp_path: Path):
    words = ["-m", "fold=0,1", "aggregator=prompt,gated_abmil", "trainer.max_epochs=2"]
    assert study.train(tmp_path, *words) == 0
    folders = run_folders(tmp_path)
    assert len(folders) == 4
    assert all(len(folder.name) == 12 and int(folder.name, 16) >= 0 for folder in folders)
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()}
    assert study.train(tmp_path, *words) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_cells_trained_as_one_are_the_runs_that_they_are_alone(study: Study, tmp_path: Path, monkeypatch):
    plain = ["aggregator=gated_abmil", "aggregator.embed.random.dropout=0.0", "trainer.max_epochs=2"]
    words = ["-m", "fold=0,1,9", "seed=0,1", *plain]  # there is no fold 9, which costs its cells only
    assert study.train(tmp_path / "alone", *words, "parallel=1") == 3
    monkeypatch.setattr("mil.commands.train.train_cell", None)  # no cell is trained by itself
    assert study.train(tmp_path / "one", *words, "parallel=stacked") == 3
    folders = run_folders(tmp_path / "one")
    alone = run_folders(tmp_path / "alone")
    assert [folder.name for folder in folders] == [folder.name for folder in alone]
    assert len(folders) == 4
    for found, expected in zip(folders, alone, strict=True):
        assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in expected.iterdir())
        assert (found / "cell.json").read_bytes() == (expected / "cell.json").read_bytes()
        for name in ("predictions.csv", "log.csv"):
            pd.testing.assert_frame_equal(pd.read_csv(found / name), pd.read_csv(expected / name), atol=1e-4)
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()}
    assert study.train(tmp_path / "one", *words, "parallel=stacked") == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_control_trains_with_other_words_and_is_told_apart(study: Study, tmp_path: Path):
    words = ["-m", "words=own,shuffled,nonsense,names", "trainer.max_epochs=1", "parallel=1"]
    assert study.train(tmp_path / "runs", *words) == 0
    folders = run_folders(tmp_path / "runs")
    assert len(folders) == 4
    assert len({(folder / "predictions.csv").read_bytes() for folder in folders}) >= 3  # concepts may not matter yet
    for folder in folders:
        kind = json.loads((folder / "cell.json").read_text())["words"]
        drift = pd.read_csv(folder / "drift.csv")
        assert ("concept" in set(drift["part"])) == (kind != "names")
        red = json.loads((folder / "metrics.json").read_text())["drift"]["red"]
        assert len(red) == (drift["rank"] > 1).sum()
    assert main(["summarize", f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'summary'}"]) == 0
    methods = set(pd.read_csv(tmp_path / "summary" / "results.csv")["method"])
    assert {"prompt · own words", "prompt · shuffled words", "prompt · nonsense words"} <= methods
    said = (tmp_path / "summary" / "results.md").read_text()
    drift = said.split("## Do the prototypes still mean their words?")[1].split("\n## ")[0]
    assert "| prompt · own words, all labels | head | glandular |" in drift
    assert drift.count("| 0 of 1 runs |") + drift.count("| 1 of 1 runs |") == drift.count("\n| prompt")


def test_a_damaged_run_is_trained_again(study: Study, tmp_path: Path):
    assert study.train(tmp_path, "trainer.max_epochs=1") == 0
    (run,) = run_folders(tmp_path)
    expected = (run / "predictions.csv").read_bytes()
    (run / "predictions.csv").write_bytes(expected[:-30])
    assert study.train(tmp_path, "trainer.max_epochs=1") == 0
    assert (run / "predictions.csv").read_bytes() == expected  # and the same seed gives the same bytes
    assert study.train(tmp_path / "again", "trainer.max_epochs=1", "in_memory=true") == 0
    assert (tmp_path / "again" / run.name / "predictions.csv").read_bytes() == expected  # wherever the bags lie


def test_training_keeps_the_test_part_out_of_every_choice(study: Study, tmp_path: Path):
    """Other labels of the test patients: the same weights, to the last bit."""
    table = pd.read_csv(study.split, dtype=str, keep_default_na=False)
    swapped = table.copy()
    is_test = swapped["fold_0"] == "test"
    patients = swapped.loc[is_test, ["patient_id", "label"]].drop_duplicates()
    rotated = dict(zip(patients["patient_id"], np.roll(patients["label"], 1), strict=True))
    swapped.loc[is_test, "label"] = swapped.loc[is_test, "patient_id"].map(rotated)
    assert (swapped["label"] != table["label"]).any()
    swapped[["patient_id", "slide_id", "label", "site", "fold_0"]].to_csv(tmp_path / "kfold.csv", index=False)
    table[["patient_id", "slide_id", "label", "site", "fold_0"]].to_csv(tmp_path / "kfold_true.csv", index=False)
    weights = []
    for name in ("kfold", "kfold_true"):
        words = [
            *study.inputs(),
            f"split={tmp_path / name}.csv",
            f"out={tmp_path / 'runs' / name}",
            "trainer.max_epochs=3",
        ]
        assert main(["train", *words]) == 0
        (run,) = run_folders(tmp_path / "runs" / name)
        weights.append((run / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_maps_add_up_to_the_logit_and_find_the_lesion(study: Study, tmp_path: Path):
    runs, maps = tmp_path / "runs", tmp_path / "maps"
    assert study.train(runs, "-m", "fold=0,1", "trainer.max_epochs=5") == 0
    words = [
        f"runs={runs}",
        f"features={study.features}",
        f"slides={study.slides}",
        f"truth={study.truth}",
        f"out={maps}",
        "parallel=2",
        "viewer=true",
    ]
    assert main(["heatmap", *words]) == 0
    summary = json.loads((maps / "summary.json").read_text())
    assert summary["maps"] == 15  # each slide is explained by the run in which it is test
    assert summary["tile_auc"]["auc_evidence"] >= 0.9
    assert 0 < summary["tile_auc"]["top20_similarity"] <= 1
    assert summary["faithfulness"]["evidence"]["gain"] > summary["faithfulness"]["attention"]["gain"] > 0
    check_metadata(maps, summary["slides"])
    check_viewer(maps / "viewer", summary["slides"])
    for line in summary["slides"]:
        table = pd.read_parquet(maps / f"{line['slide_id']}.tiles.parquet")
        for name, logit in line["logits"].items():
            total = table.loc[table["class"] == name, "contribution"].sum()
            run = runs / line["run"]
            bias = 0.0 if name == "normal" else float(bias_of(run, name))
            assert abs(total + bias - logit) <= 1e-5 * max(1, abs(logit))
    check_geojson(maps, next(line["slide_id"] for line in summary["slides"] if line["label"] == "keratinizing"))
    assert main(["summarize", f"runs={runs}", f"maps={maps}", f"out={tmp_path / 'summary'}", "resamples=100"]) == 0
    said = (tmp_path / "summary" / "results.md").read_text()
    assert "| prompt | all labels | evidence (shown) |" in said.split("## Do the maps find the true regions?")[1]
    figures = pd.read_csv(tmp_path / "summary" / "maps.csv", index_col=["layer", "figure"])
    assert figures.loc[("evidence", "gain_less_random"), "low"] > 0
    assert figures.loc[("evidence", "tile_auc"), "value"] == pytest.approx(
        summary["tile_auc"]["auc_evidence"], abs=0.05
    )
    with Image.open(maps / f"{summary['slides'][0]['slide_id']}.png") as picture:
        assert picture.width > 800
        assert np.asarray(picture.convert("RGB")).std() > 10


def check_metadata(maps: Path, lines: list[dict[str, object]]) -> None:
    """The table says of itself what the summary says of the slide, and more."""
    for line in lines:
        table = pq.read_table(maps / f"{line['slide_id']}.tiles.parquet")
        about = json.loads(table.schema.metadata[b"promptmil"])
        assert {name: about[name] for name in line} == line
        assert about["use"] == "research use only"
        assert about["dropping"] == about["faithfulness"]["how"] == "closed form"
        assert about["stability"]["runs"] == 1
        assert about["classes"] == list(line["logits"])
        rows = table.to_pandas()
        assert {"similarity", "occlusion", "concept", "share keratin pearls"} <= set(rows.columns)
        assert not rows[["similarity", "occlusion"]].isna().to_numpy().any()
        owned = rows["share keratin pearls"].notna()
        assert set(rows.loc[owned, "class"]) == {"keratinizing"}
        concepts = pd.read_csv(maps / f"{line['slide_id']}.concepts.csv")
        total = rows.loc[rows["class"] == "keratinizing", "contribution"].sum()
        assert np.isclose(concepts.loc[concepts["class"] == "keratinizing", "contribution"].sum(), total, atol=1e-3)


def check_viewer(viewer: Path, lines: list[dict[str, object]]) -> None:
    """A page with a picture for every slide, in the order and with the figures of the summary."""
    from test_viewer import said

    rows = said(viewer / "slides.js", "slides")
    assert [row["slide_id"] for row in rows] == [line["slide_id"] for line in lines]
    for row, line in zip(rows, lines, strict=True):
        assert (row["predicted"], row["agrees"]) == (line["predicted"].split()[1], row["predicted"] == line["label"])
        assert row["probability"] == line["probabilities"][row["predicted"]]
        assert row["gain"] == line["faithfulness"]["layers"][line["layer"]]["gain"]["value"]
        folder = viewer / "slides" / row["slide_id"]
        assert (folder / "index.html").is_file()
        picture = said(folder / "picture.js", "picture")
        assert (folder / picture["folder"] / str(picture["first_level"]) / "0_0.jpg").is_file()


def bias_of(run: Path, name: str) -> float:
    from safetensors.numpy import load_file

    classes = json.loads((run / "model.json").read_text())["classes"]
    return load_file(run / "model.safetensors")["head.bias"][classes.index(name)]


def check_geojson(maps: Path, slide_id: str) -> None:
    """What QuPath's reader needs: FeatureCollection, object types, classes with colours, numbers, level-0 polygons."""
    import shapely

    tiles = json.loads(gzip.decompress((maps / f"{slide_id}.tiles.geojson.gz").read_bytes()))
    table = pd.read_parquet(maps / f"{slide_id}.tiles.parquet")
    assert len(tiles["features"]) == len(table) // len(CLASSES)
    for feature in tiles["features"]:
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        assert set(properties["classification"]) == {"name", "color"}
        assert all(isinstance(value, float) for value in properties["measurements"].values())
    first = shapely.from_geojson(json.dumps(tiles["features"][0]["geometry"])).bounds
    assert first[:2] == (table["x_lv0"][0], table["y_lv0"][0])
    regions = json.loads(gzip.decompress((maps / f"{slide_id}.regions.geojson.gz").read_bytes()))
    assert {feature["properties"]["objectType"] for feature in regions["features"]} == {"annotation"}


def test_a_map_of_other_features_than_the_run_saw_is_refused(study: Study, tmp_path: Path):
    assert study.train(tmp_path / "runs", "trainer.max_epochs=1") == 0
    (run,) = run_folders(tmp_path / "runs")
    other = tmp_path / "other"
    words = [f"slides={study.slides}", f"out={other}", "tiling.tile_mpp=0.9"]
    assert main(["extract", *words]) == 0
    assert main(["heatmap", f"run={run}", f"features={other}", f"out={tmp_path / 'maps'}"]) == 2


def test_predict_gives_what_the_run_stored(study: Study, tmp_path: Path):
    assert study.train(tmp_path / "runs", "trainer.max_epochs=2") == 0
    (run,) = run_folders(tmp_path / "runs")
    words = [f"run={run}", f"features={study.features}", f"labels={study.labels}", f"out={tmp_path / 'new'}"]
    assert main(["predict", *words]) == 0
    found = pd.read_csv(tmp_path / "new" / "predictions.csv", index_col="slide_id")
    stored = pd.read_csv(run / "predictions.csv", index_col="slide_id")
    columns = [f"p_{name}" for name in CLASSES]
    np.testing.assert_allclose(found.loc[stored.index, columns], stored[columns], atol=1e-6)
    assert len(pd.read_csv(tmp_path / "new" / "patients.csv")) == 12


def test_an_aggregator_of_existing_parts_is_one_yaml(study: Study, tmp_path: Path):
    """A stranger's own folder, no code: attention by text with context, mean for the rest."""
    folder = tmp_path / "conf" / "aggregator"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# My own: self-attention before the top-J of the prompts.\n"
        "name: mine\n"
        "init: text\n"
        "embed: {_target_: mil.embed.UnitEmbed}\n"
        "context: {_target_: mil.context.SelfAttentionContext, heads: 4}\n"
        "bank: {_target_: mil.bank.PromptBank}\n"
        "assign: {_target_: mil.assign.StraightThroughTopJ, hidden: 16}\n"
        "route: {_target_: mil.route.PerClass}\n"
        "head: {_target_: mil.head.TextHead}\n"
    )
    words = ["--config-dir", str(tmp_path / "conf"), "aggregator=mine", "trainer.max_epochs=2"]
    assert study.train(tmp_path / "runs", *words) == 0
    (run,) = run_folders(tmp_path / "runs")
    assert json.loads((run / "cell.json").read_text())["aggregator"] == "mine"
    assert main(["heatmap", f"run={run}", f"features={study.features}", f"out={tmp_path / 'maps'}"]) == 0


def test_a_part_outside_the_package_is_refused(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert study.train(tmp_path, "aggregator.head._target_=torch.load") == 2
    assert "only classes of mil may be named here" in capsys.readouterr().err
    assert study.train(tmp_path, "aggregator.head._target_=mil.assign.Uniform") == 2
    assert "expected a Head" in capsys.readouterr().err


def test_a_bank_of_another_encoder_is_refused(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import tiny_clip

    weights = tiny_clip.save(tmp_path / "tiny", "clip")
    prompts = tmp_path / "words.yaml"
    prompts.write_text(
        "classes:\n  glandular: {names: [tumor gland]}\n  keratinizing: {names: [keratin pearls]}\n"
        "  normal: {role: background, names: [normal lung]}\n"
    )
    words = [f"prompts={prompts}", "encoder=hf_clip", f"encoder.path={weights}", f"out={tmp_path / 'bank'}"]
    assert main(["prompts", *words]) == 0
    (bank,) = (tmp_path / "bank").glob("*.safetensors")
    for command in (["train", f"split={study.split}"], ["zeroshot"]):
        words = [*command, f"features={study.features}", f"bank={bank}", f"out={tmp_path / 'out'}"]
        assert main(words) == 2
        message = capsys.readouterr().err
        assert "the text bank is of encoder tiny" in message
        assert "make the bank with the features' encoder" in message


def test_backbone_features_meet_the_words_by_the_encoders_projection_or_not_at_all(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    expected = study.zeroshot(tmp_path / "zs")
    out, runs = tmp_path / "backbone", tmp_path / "runs"
    assert main(["extract", f"slides={study.slides}", f"out={out}", "space=backbone"]) == 0
    words = [f"features={out}", f"bank={study.bank}"]
    assert main(["zeroshot", *words, f"out={tmp_path / 'no'}"]) == 2
    assert "the features are in the backbone space" in capsys.readouterr().err
    given = ["train", *words, f"split={study.split}"]
    assert main([*given, f"out={tmp_path / 'no'}", "filter_nontask=true"]) == 2
    assert main([*given, f"out={runs}", "trainer.max_epochs=0"]) == 0
    assert main(["predict", f"runs={runs}", f"features={out}", f"out={tmp_path / 'new'}"]) == 0
    found = pd.read_csv(tmp_path / "new" / "predictions.csv", index_col="slide_id")
    columns = [f"p_{name}" for name in CLASSES]
    np.testing.assert_allclose(found[columns], expected.loc[found.index, columns], atol=3e-3)  # of half precision
    assert main([*given, f"out={tmp_path / 'other'}", "aggregator=gated_abmil", "trainer.max_epochs=1"]) == 0


def test_a_class_missing_from_the_prompts_is_named(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = pd.read_csv(study.labels).replace({"label": {"glandular": "mucinous"}})
    table.to_csv(tmp_path / "labels.csv", index=False)
    words = [*study.inputs(), f"labels={tmp_path / 'labels.csv'}", f"out={tmp_path / 'zs'}"]
    assert main(["zeroshot", *words]) == 2
    assert "class mucinous is in the labels but not in the prompt set demo" in capsys.readouterr().err


def test_a_patient_with_two_labels_is_named(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = pd.read_csv(study.labels)
    patient = table["patient_id"].value_counts().index[0]
    table.loc[table.index[table["patient_id"] == patient][0], "label"] = "other"
    table.to_csv(tmp_path / "labels.csv", index=False)
    assert main(["split", f"labels={tmp_path / 'labels.csv'}", f"out={tmp_path}"]) == 2
    assert patient in capsys.readouterr().err


def test_slides_without_features_are_listed_and_the_rest_is_trained(study: Study, tmp_path: Path):
    import shutil

    (source,) = {path.parent for path in study.features.glob("*/*.h5")}
    folder = tmp_path / "features"
    shutil.copytree(source, folder)
    table = pd.read_csv(study.split, dtype=str)
    lost = table.loc[table["fold_0"] == "train", "slide_id"].iloc[0]
    (folder / f"{lost}.h5").unlink()
    words = [f"features={folder}", f"bank={study.bank}", f"split={study.split}", f"out={tmp_path / 'runs'}"]
    assert main(["train", *words, "trainer.max_epochs=1"]) == 3
    assert list(json.loads((tmp_path / "runs" / "summary.json").read_text())["unused_slides"]) == [lost]
    (run,) = run_folders(tmp_path / "runs")
    assert json.loads((run / "unused.json").read_text()) == {
        lost: f"no feature file in {folder.name}; extract this slide"
    }
    assert "unused.json" in json.loads((run / "done.json").read_text())["files"]


def test_auto_top_j_is_chosen_on_val_and_the_same_in_both(study: Study, tmp_path: Path):
    words = ["pooling.top_j=auto", f"split={study.split}", "fold=0"]
    expected = study.zeroshot(tmp_path / "zs", *words)
    assert study.train(tmp_path / "runs", "pooling.top_j=auto", "trainer.max_epochs=0") == 0
    (run,) = run_folders(tmp_path / "runs")
    top_j = json.loads((run / "model.json").read_text())["top_j"]
    assert json.loads((tmp_path / "zs" / "cell.json").read_text())["pooling"]["top_j"] == top_j
    found = pd.read_csv(run / "predictions.csv", index_col="slide_id")
    columns = [f"p_{name}" for name in CLASSES]
    np.testing.assert_allclose(found[columns], expected.loc[found.index, columns], atol=1e-4)


def test_filtering_nontask_tiles_keeps_the_equality(study: Study, tmp_path: Path):
    expected = study.zeroshot(tmp_path / "zs", "filter_nontask=true")
    assert study.train(tmp_path / "runs", "filter_nontask=true", "trainer.max_epochs=0") == 0
    (run,) = run_folders(tmp_path / "runs")
    found = pd.read_csv(run / "predictions.csv", index_col="slide_id")
    columns = [f"p_{name}" for name in CLASSES]
    np.testing.assert_allclose(found[columns], expected.loc[found.index, columns], atol=1e-4)
    plain = study.zeroshot(tmp_path / "zs2")
    assert not np.allclose(plain[columns], expected.loc[plain.index, columns], atol=1e-4)
    assert main(["heatmap", f"run={run}", f"features={study.features}", f"out={tmp_path / 'maps'}"]) == 0


def test_the_real_cohort_is_classified_from_words_alone(shared_data: Path, tmp_path: Path):
    """Twelve real-tissue slides with a real dual encoder; the whole cohort is in benchmarks/cohort.py."""
    weights = shared_data / "encoders" / "lc25000_dual_encoder"
    labels = pd.read_csv(shared_data / "cohort" / "labels.csv").drop_duplicates("patient_id").groupby("label").head(4)
    labels.to_csv(tmp_path / "labels.csv", index=False)
    labels.assign(path=[str(shared_data / "cohort" / path) for path in labels["path"]])[["path", "slide_id"]].to_csv(
        tmp_path / "slides.csv", index=False
    )
    encoder = ["encoder=hf_clip", f"encoder.path={weights}"]
    words = [*encoder, f"slides={tmp_path / 'slides.csv'}", f"out={tmp_path / 'features'}", "precision=bf16"]
    assert main(["extract", *words]) == 0
    assert main(["prompts", "prompts=lung", *encoder, f"out={tmp_path}"]) == 0
    (bank,) = tmp_path.glob("*.safetensors")
    common = [f"features={tmp_path / 'features'}", f"bank={bank}"]
    assert main(["zeroshot", *common, f"labels={tmp_path / 'labels.csv'}", f"out={tmp_path / 'zs'}"]) == 0
    metrics = json.loads((tmp_path / "zs" / "metrics.json").read_text())["test"]
    assert metrics["balanced_accuracy"] >= 0.8
    assert main(["split", f"labels={tmp_path / 'labels.csv'}", f"out={tmp_path}", "folds=2"]) == 0
    words = [*common, f"split={tmp_path / 'kfold.csv'}", f"out={tmp_path / 'runs'}", "-m", "fold=0,1"]
    assert main(["train", *words, "trainer.max_epochs=10"]) == 0
    words = [
        f"runs={tmp_path / 'runs'}",
        f"features={tmp_path / 'features'}",
        f"truth={shared_data / 'cohort' / 'truth'}",
    ]
    assert main(["heatmap", *words, f"out={tmp_path / 'maps'}"]) == 0
    assert json.loads((tmp_path / "maps" / "summary.json").read_text())["tile_auc"]["auc_evidence"] >= 0.92
