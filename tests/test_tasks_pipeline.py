"""Whole commands for labels that are not one class: several classes, an order, a number, a time to an event."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feature_extraction.synthetic.cohort import make_cohort
from mil.cli import main

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("drawn_cohort")]
GRADES = {"normal": 0, "glandular": 1, "keratinizing": 2}


class Study:
    """A drawn cohort with features and bank, and its labels told in every way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        cohort = make_cohort(folder / "cohort", n_patients=12, seed=3)
        self.slides = cohort.slides
        self.features = folder / "features"
        assert main(["prompts", "prompts=demo", f"out={folder / 'bank'}"]) == 0
        assert main(["extract", f"slides={cohort.slides}", f"out={self.features}", "qc=false"]) == 0
        (self.bank,) = (folder / "bank").glob("*.safetensors")
        table = pd.read_csv(cohort.labels, dtype=str)
        patient = {name: place for place, name in enumerate(sorted(set(table["patient_id"])))}
        place = table["patient_id"].map(patient)
        grade = table["label"].map(GRADES)
        several = {"glandular": "glandular;keratinizing", "keratinizing": "keratinizing;glandular?"}
        plain = table.drop(columns="label")
        self.tables = {
            "binary": table.assign(
                label=table["label"].where(grade > 0, "normal").replace("keratinizing", "glandular")
            ),
            "multilabel": table.assign(label=table["label"].replace(several)),
            "ordinal": table,
            "regression": plain.assign(label=10.0 * grade + place),
            "survival": plain.assign(time=30.0 - 10 * grade - 0.5 * place, event=(place % 4 > 0).astype(int)),
        }
        self.tables["cox"] = self.tables["survival"]

    def labels(self, task: str) -> Path:
        path = self.folder / f"{task}.csv"
        self.tables[task].to_csv(path, index=False)
        return path

    def inputs(self) -> list[str]:
        return [f"features={self.features}", f"bank={self.bank}"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("study"))


SCORES = {"regression": "value", "survival": "risk", "cox": "risk"}
FIGURES = {
    "binary": "balanced_accuracy",
    "multilabel": "macro_auc",
    "ordinal": "qwk",
    "regression": "mae",
    "survival": "c_index",
    "cox": "c_index",
}


@pytest.mark.parametrize("task", FIGURES)
def test_every_command_runs_for_every_task(study: Study, tmp_path: Path, task: str):
    labels, runs = study.labels(task), tmp_path / "runs"
    anchors = ["task.anchors=[0,10,30]"] if task == "regression" else []
    words = [f"labels={labels}", f"task={task}", "folds=2"]
    assert main(["split", *words, f"out={tmp_path / 'splits'}"]) == 0
    split = tmp_path / "splits" / "kfold.csv"
    zeroshot = ["zeroshot", *study.inputs(), f"labels={labels}", f"task={task}", *anchors]
    assert main([*zeroshot, f"out={runs / 'zeroshot'}"]) == 0
    train = ["train", "-m", *study.inputs(), f"split={split}", f"task={task}", *anchors, "fold=0,1", "parallel=1"]
    assert main([*train, "trainer.max_epochs=2", f"out={runs / 'prompt'}"]) == 0
    found = [path.parent for path in (runs / "prompt").glob("*/done.json")]
    assert len(found) == 2

    predicted = pd.read_csv(found[0] / "predictions.csv", dtype={"label": str})
    assert set(predicted["label"]) <= {*map(str, pd.read_csv(split, dtype=str)["label"])}
    for folder in (*found, runs / "zeroshot"):
        figure = json.loads((folder / "metrics.json").read_text())["test"][FIGURES[task]]
        assert figure is not None
        assert np.isfinite(figure)

    out = tmp_path / "predicted"
    predict = ["predict", f"features={study.features}", f"labels={labels}", f"out={out}"]
    assert main([*predict, f"run={found[0]}"]) == 0
    again = pd.read_csv(out / "predictions.csv", index_col="slide_id")
    columns = [name for name in predicted.columns if name.startswith("p_") or name == SCORES.get(task)]
    assert (SCORES.get(task) in columns) == (task in SCORES)
    stored = predicted.set_index("slide_id")[columns]
    np.testing.assert_allclose(again.loc[stored.index, columns], stored, atol=1e-4)  # what was fitted came back
    assert ("predicted" in again.columns) == (task not in SCORES)
    assert set(columns) <= set(pd.read_csv(out / "patients.csv").columns)

    maps = ["heatmap", f"runs={runs / 'prompt'}", f"features={study.features}", f"out={tmp_path / 'maps'}"]
    maps += ["exports=[report]"]
    first = predicted["slide_id"][0]
    assert main([*maps, f"slide_ids=[{first}]"]) == 0
    assert (tmp_path / "maps" / f"{first}.png").is_file()
    (line,) = json.loads((tmp_path / "maps" / "summary.json").read_text())["slides"]
    assert line["predicted"].split()[0] == SCORES.get(task, "predicted")  # a number is not called a class

    assert main(["summarize", f"runs={runs}", f"out={tmp_path / 'summary'}", "resamples=100"]) == 0
    results = pd.read_csv(tmp_path / "summary" / "results.csv")
    assert FIGURES[task] in set(results["metric"])
    assert FIGURES[task] in (tmp_path / "summary" / "results.md").read_text() or task == "binary"


def test_binary_without_an_epoch_is_zero_shot(study: Study, tmp_path: Path):
    check_start(study, tmp_path, "binary", [])


@pytest.mark.parametrize("task", ["multilabel", "ordinal", "regression", "cox"])
def test_other_tasks_without_an_epoch_are_zero_shot(study: Study, tmp_path: Path, task: str):
    check_start(study, tmp_path, task, ["task.anchors=[0,10,30]"] if task == "regression" else [])


def check_start(study: Study, out: Path, task: str, options: list[str]) -> None:
    labels = study.labels(task)
    assert main(["split", f"labels={labels}", f"task={task}", "folds=2", f"out={out / 'splits'}"]) == 0
    common = [*study.inputs(), f"task={task}", *options]
    assert main(["zeroshot", *common, f"labels={labels}", f"out={out / 'zs'}"]) == 0
    words = [*common, f"split={out / 'splits' / 'kfold.csv'}", f"out={out / 'runs'}", "trainer.max_epochs=0"]
    assert main(["train", *words]) == 0
    (run,) = (path.parent for path in (out / "runs").glob("*/done.json"))
    expected = pd.read_csv(out / "zs" / "predictions.csv", index_col="slide_id")
    found = pd.read_csv(run / "predictions.csv", index_col="slide_id")
    columns = [name for name in found.columns if name.startswith("p_") or name in ("value", "risk")]
    assert len(found) == len(expected) == 15
    np.testing.assert_allclose(found[columns], expected.loc[found.index, columns], atol=1e-4)


@pytest.mark.parametrize("task", FIGURES)
def test_labels_of_val_and_test_have_no_part_in_what_is_fitted(study: Study, tmp_path: Path, task: str):
    """Bins, anchors and weights are the same whatever the other parts' labels are; not so for the training part."""
    labels = study.labels(task)
    assert main(["split", f"labels={labels}", f"task={task}", "folds=2", f"out={tmp_path}"]) == 0
    table = pd.read_csv(tmp_path / "kfold.csv", dtype=str, keep_default_na=False).drop(columns="fold_1")
    learned = {}
    for name, parts in (("true", ()), ("other", ("val", "test")), ("training", ("train",))):
        moved = table.copy()
        for part in parts:
            patients = moved.loc[moved["fold_0"] == part].drop_duplicates("patient_id")
            swapped = dict(zip(patients["patient_id"], np.roll(patients["label"], 1), strict=True))
            moved.loc[moved["fold_0"] == part, "label"] = moved["patient_id"].map(swapped)
        if parts:
            is_part = moved["fold_0"].isin(parts) & moved["label"].str.fullmatch(r"[0-9.]+[+]?")
            numbers = moved["label"].str.extract(r"([0-9.]+)([+]?)")
            moved.loc[is_part, "label"] = (numbers[0].astype(float) * 3).astype(str) + numbers[1]
        moved.to_csv(tmp_path / f"{name}.csv", index=False)
        words = [*study.inputs(), f"task={task}", f"split={tmp_path / name}.csv", "trainer.max_epochs=0"]
        assert main(["train", *words, f"out={tmp_path / name}"]) == 0
        (card,) = (tmp_path / name).glob("*/model.json")
        learned[name] = json.loads(card.read_text())["learned"]
    assert learned["true"] == learned["other"]
    assert (learned["true"] != learned["training"]) == (task != "cox")  # which fits nothing


@pytest.mark.parametrize(
    ("table", "words", "message"),
    [
        ("ordinal", ["split", "task=regression"], "expected a number"),
        ("ordinal", ["split", "task=survival"], "expected a time"),
        ("regression", ["split", "task=regression", "scheme=few_shot", "shots=1"], "not one class"),
        ("ordinal", ["zeroshot", "task=binary"], "expected 2 classes"),
        ("regression", ["zeroshot", "task=regression"], r"give task.anchors"),
        ("ordinal", ["zeroshot", "task=ordinal", "task.order=[normal,glandular]"], "keratinizing missing"),
        ("multilabel", ["zeroshot", "task=multilabel", "pooling=topj"], "scores without a zero"),
        ("multilabel", ["zeroshot", "task=multilabel", "subsets=3"], "leave subsets out"),
        ("multilabel", ["train", "task=classification"], "correct the labels"),
        ("regression", ["train", "task=classification"], "slide of class"),
        ("regression", ["train", "task=survival", "aggregator=clam_sb"], "labels tiles by the class"),
        ("regression", ["train", "task=regression", "pooling.top_j=auto"], "give a number"),
        ("ordinal", ["train", "task=ordinal", "aggregator=gated_abmil", "bank=null"], "give task.order"),
        ("multilabel", ["train", "task=multilabel", "aggregator=clam_mb"], "aggregator.losses"),
    ],
)
def test_what_a_task_cannot_do_is_one_line(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, words: list[str], message: str
):
    inputs = [] if words[0] == "split" else study.inputs()
    inputs.append(f"labels={study.labels(table)}")
    if words[0] == "train":
        task = {"multilabel": "multilabel", "regression": "regression", "ordinal": "ordinal"}[table]
        assert main(["split", inputs.pop(), f"task={task}", "folds=2", f"out={tmp_path / 'splits'}"]) == 0
        inputs.append(f"split={tmp_path / 'splits' / 'kfold.csv'}")
    capsys.readouterr()
    assert main([words[0], *inputs, *words[1:], f"out={tmp_path}"]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1
