"""Permuted labels carry no signal, are dealt out evenly and in pairs, and never mix with the true ones."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bags import CLASSES, bag, bank, facts
from sklearn.metrics import roc_auc_score
from study_files import write_study
from test_fit import CONFIG, OPTIMIZATION, training

from feature_extraction.errors import InputError
from mil.aggregator import compose
from mil.bag import Bag
from mil.cli import main
from mil.fit import Fold, Labelled, fit, logits_of
from mil.labels import TIME_TO_EVENT, time_and_event
from mil.null_labels import permuted_labels
from mil.splits.table import SplitRow, SplitTable, make_table
from mil.tasks.classification import Classification

FOLDS = 5


def split(n_patients: int = 60, n_folds: int = FOLDS, classes: tuple[str, ...] = CLASSES) -> SplitTable:
    """Stratified folds; every third patient has two slides."""
    rows: list[SplitRow] = []
    for patient in range(n_patients):
        own = patient // len(classes)
        parts = tuple(("test", "val", *["train"] * (n_folds - 2))[(own - fold) % n_folds] for fold in range(n_folds))
        for slide in range(1 + (patient % 3 == 0)):
            name, label = f"P{patient:03}", classes[patient % len(classes)]
            rows.append(SplitRow(patient_id=name, slide_id=f"{name}-{slide}", label=label, site=None, parts=parts))
    return make_table(rows, scheme="kfold", shots=None)


def of_patients(table: SplitTable) -> dict[str, str]:
    found = {row.patient_id: row.label for row in table.rows}
    assert all(found[row.patient_id] == row.label for row in table.rows)  # one label a patient
    return found


@pytest.mark.parametrize("seed", range(1, 6))
def test_labels_change_hands_and_nothing_else_changes(seed: int):
    table = split()
    drawn = permuted_labels(table, seed=seed)
    assert Counter(of_patients(drawn).values()) == Counter(of_patients(table).values())
    assert [(row.slide_id, row.parts) for row in drawn.rows] == [(row.slide_id, row.parts) for row in table.rows]
    assert of_patients(drawn) != of_patients(table)
    assert drawn == permuted_labels(table, seed=seed) != permuted_labels(table, seed=seed + 1)


def test_a_patient_keeps_the_own_label_as_often_as_chance_has_it():
    table = split()
    true = of_patients(table)
    kept = [
        np.mean([true[name] == label for name, label in of_patients(permuted_labels(table, seed=seed)).items()])
        for seed in range(1, 61)
    ]
    assert np.mean(kept) == pytest.approx(1 / 3, abs=0.025)


def test_every_test_part_gets_its_even_share_whatever_it_had():
    """Sites as folds, each of one class: their composition is a signal, and must not survive."""
    rows = [
        SplitRow(
            patient_id=f"P{patient:03}",
            slide_id=f"S{patient:03}",
            label=CLASSES[patient // 20],
            site=None,
            parts=tuple("test" if patient // 20 == fold else "train" for fold in range(3)),
        )
        for patient in range(60)
    ]
    table = make_table(rows, scheme="leave_one_site_out", shots=None)
    for seed in range(1, 21):
        drawn = permuted_labels(table, seed=seed)
        for fold in range(3):
            counts = Counter(row.label for row in drawn.part(fold, "test"))
            assert all(abs(counts[name] - 20 / 3) < 2 for name in CLASSES)


def test_who_predicts_the_share_of_the_training_part_is_at_chance():
    """With labels permuted by chance alone this is far below .5: more of a class in test is fewer in train."""
    table = split(classes=("A", "B"))
    found = {"dealt": list[float](), "plain": list[float]()}
    for seed in range(1, 41):
        names, labels = zip(*sorted(of_patients(table).items()), strict=True)
        plain = dict(zip(names, np.random.default_rng(seed).permutation(labels), strict=True))
        for way, drawn in (("dealt", of_patients(permuted_labels(table, seed=seed))), ("plain", plain)):
            is_b, said = [], []
            for fold in range(FOLDS):
                trained = {row.patient_id for row in table.rows if row.parts[fold] != "test"}
                share = np.mean([drawn[name] == "B" for name in trained])
                for name in sorted(set(names) - trained):
                    is_b.append(drawn[name] == "B")
                    said.append(share)
            found[way].append(roc_auc_score(is_b, said))
    assert np.mean(found["plain"]) < 0.45
    assert np.mean(found["dealt"]) == pytest.approx(0.5, abs=0.03)


def test_events_are_dealt_with_their_times():
    rows = [
        SplitRow(
            patient_id=f"P{place}",
            slide_id=f"S{place}",
            label=f"{place}" + ("+" if place % 3 else ""),
            site=None,
            parts=("train" if place % 2 else "test",),
        )
        for place in range(1, 31)
    ]
    table = make_table(rows, scheme="kfold", shots=None)
    drawn = permuted_labels(table, seed=1, kind=TIME_TO_EVENT)
    assert sorted(row.label for row in drawn.rows) == sorted(row.label for row in table.rows)
    assert sum(time_and_event(row.label)[1] for row in drawn.part(0, "test")) == 5


def test_labels_that_cannot_be_dealt_are_refused_and_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mil.null_labels.MOST_DRAWS", 20)
    rows = [
        SplitRow(patient_id=f"P{place}", slide_id=f"S{place}", label=CLASSES[place % 3], site=None, parts=parts)
        for place in range(36)
        for parts in [tuple("train" if place // 3 == fold else "test" for fold in range(12))]
    ]
    table = make_table(rows, scheme="few_shot", shots=1)
    with pytest.raises(InputError, match="permute_labels=1: 20 permutations"):
        permuted_labels(table, seed=1)
    with pytest.raises(InputError, match="permute_labels=0"):
        permuted_labels(table, seed=0)


def planted(n: int, label: int, seed: int) -> Bag:
    """A quarter of the tiles is like the words of the class: the start knows the true labels."""
    one = bag(n, seed)
    features = np.array(one.features)
    features[: n // 4] += 0.5 * bank().class_vector(CLASSES[label])
    return Bag(slide_id=one.slide_id, features=features, coords_lv0=one.coords_lv0, size_lv0=one.size_lv0)


def auc(table: SplitTable, bags: dict[str, Bag], epochs: int) -> float:
    """Macro-AUC of the test slides of fold 0, trained as a cell is."""
    train, val, test = (
        Labelled(
            bags=[bags[row.slide_id] for row in table.part(0, part)],
            labels=[CLASSES.index(row.label) for row in table.part(0, part)],
        )
        for part in ("train", "val", "test")
    )
    task, aggregator = Classification(), compose(CONFIG, facts())
    fit(
        aggregator,
        task,
        fold=Fold(train=train, val=val),
        optimization=OPTIMIZATION,
        training=training(epochs),
        init="text",
    )
    odds = np.exp(logits_of(aggregator, test.bags, batch_size=40))
    return roc_auc_score(test.labels, odds / odds.sum(axis=1, keepdims=True), multi_class="ovr")


@pytest.mark.parametrize("epochs", [0, 1])
def test_words_and_training_on_permuted_labels_are_at_chance(epochs: int):
    parts = ("test", "val", "train", "test", "train", "test")
    rows = [
        SplitRow(
            patient_id=f"P{n:02}", slide_id=f"S{n:02}", label=CLASSES[n % 3], site=None, parts=(parts[n // 3 % 6],)
        )
        for n in range(72)
    ]
    table = make_table(rows, scheme="kfold", shots=None)
    bags = {row.slide_id: planted(12, CLASSES.index(row.label), seed) for seed, row in enumerate(table.rows)}
    assert auc(table, bags, epochs) > 0.8
    found = [auc(permuted_labels(table, seed=seed), bags, epochs) for seed in range(1, 21)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


def test_runs_on_permuted_labels_are_a_control_of_their_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    words = [*write_study(tmp_path), "aggregator=prompt", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    runs = tmp_path / "runs"
    assert main(["train", *words, f"out={runs}"]) == 0
    summarize = ["summarize", f"runs={runs}", "resamples=100"]
    assert main([*summarize, f"out={tmp_path / 'before'}"]) == 0
    assert main(["train", "-m", *words, "permute_labels=range(1,4)", "parallel=stacked", f"out={runs}"]) == 0
    assert len(list(runs.glob("*/done.json"))) == 4
    assert "permuted labels 3: trained" in capfd.readouterr().err
    assert main([*summarize, f"out={tmp_path / 'after'}"]) == 0
    for name in ("before", "after"):
        assert (tmp_path / name / "results.csv").read_text() == (tmp_path / "before" / "results.csv").read_text()
    said = capfd.readouterr().err
    assert "prompt, all labels  permuted labels  macro_auc" in said
    (check,) = json.loads((tmp_path / "after" / "summary.json").read_text())["permuted_labels"]
    assert (check["method"], check["permutations"], check["chance"]) == ("prompt", [1, 2, 3], 0.5)
    assert check["mean"] == pytest.approx(np.mean(check["values"]))
    assert "Control: permuted labels" in (tmp_path / "after" / "results.md").read_text()
    (one, *_) = runs.glob("*/done.json")
    assert main(["predict", f"runs={runs}", words[0], f"out={tmp_path / 'predicted'}"]) == 2
    assert "holds several methods" in capfd.readouterr().err
    assert main(["predict", f"run={one.parent}", words[0], f"out={tmp_path / 'predicted'}"]) == 0


@pytest.mark.parametrize("asked", ["-1", "true", "many", "1.5"])
def test_permute_labels_is_a_whole_number(tmp_path: Path, capfd: pytest.CaptureFixture[str], asked: str):
    assert main(["train", *write_study(tmp_path), f"permute_labels={asked}", f"out={tmp_path / 'runs'}"]) == 2
    assert f"permute_labels={'True' if asked == 'true' else asked}" in capfd.readouterr().err
