"""Trust in a report: nobody is calibrated by their own fold, and every figure is that of an independent count."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from run_folders import CLASSES, FOLDS, cohort_of, write_run
from scipy.stats import beta

from feature_extraction.files import publish_text
from mil.report.methods import Method, group_methods
from mil.report.trust_tables import trust_csv, trust_tables
from mil.report.trusted import BY_DEALT_FOLDS, BY_OTHER_FOLDS, BY_VAL, Trusted, trust_of
from mil.runs import find_runs, write_done
from mil.trust.temperature import fit_temperature

ONE_SLIDE = [(f"s{n:02}", f"p{n:02}", CLASSES[n % 3]) for n in range(36)]


def _method(root: Path) -> Method:
    return group_methods(find_runs(root))[0][0]


def _found(root: Path) -> Trusted:
    found = trust_of(_method(root), resamples=100).found
    assert found is not None
    return found


@pytest.fixture
def folds(tmp_path: Path) -> Path:
    for fold in range(FOLDS):
        write_run(tmp_path, fold=fold, skill=1.5, cohort=ONE_SLIDE)
    return tmp_path


def _fold(patient: str) -> int:
    return int(patient[1:]) // 3 % FOLDS


def test_a_patient_is_calibrated_by_the_patients_of_other_folds(folds: Path) -> None:
    found = _found(folds)
    assert found.fitted_on == BY_OTHER_FOLDS
    for place, patient in enumerate(found.before.patient_ids):
        others = [row for row, name in enumerate(found.before.patient_ids) if _fold(name) != _fold(patient)]
        t = fit_temperature(found.before.take(np.array(others)), part="out_of_fold").value
        powers = found.before.probabilities[place] ** (1 / t)
        assert found.after.probabilities[place] == pytest.approx(powers / powers.sum())


def test_the_labels_of_a_fold_do_not_reach_its_own_calibration(folds: Path) -> None:
    before = _found(folds)
    folder = next(run.folder for run in find_runs(folds) if run.cell["fold"] == 0)
    text = (folder / "predictions.csv").read_text()
    for one, other in (("LUAD", "X"), ("LUSC", "LUAD"), ("X", "LUSC")):
        text = text.replace(f"test,{one}", f"test,{other}")
    publish_text(folder / "predictions.csv", text)
    write_done(folder)
    after = _found(folds)
    own = [row for row, name in enumerate(before.before.patient_ids) if _fold(name) == 0]
    assert (before.before.labels[own] != after.before.labels[own]).any()
    np.testing.assert_array_equal(before.after.probabilities[own], after.after.probabilities[own])
    others = np.setdiff1d(np.arange(len(ONE_SLIDE)), own)
    assert (before.after.probabilities[others] != after.after.probabilities[others]).any()


def test_coverage_and_its_band_are_those_of_a_count_by_hand(folds: Path) -> None:
    rows = _found(folds).before
    held = 0
    for patient in range(len(rows.labels)):
        others = [p for p in range(len(rows.labels)) if _fold(rows.patient_ids[p]) != _fold(rows.patient_ids[patient])]
        scores = sorted(1 - rows.probabilities[p, rows.labels[p]] for p in others)
        threshold = scores[len(scores) - (len(scores) + 1) // 10]
        held += 1 - rows.probabilities[patient, rows.labels[patient]] <= threshold
    lines = list(csv.DictReader(io.StringIO(trust_csv([trust_of(_method(folds), resamples=100)]))))
    line = next(one for one in lines if one["sets"] == "LAC" and one["figure"] == "coverage")
    assert float(line["value"]) == pytest.approx(held / len(rows.labels), abs=1e-5)
    assert line["n_calibrated"] == "24"
    assert float(line["band_low"]) == pytest.approx(beta.ppf(0.05, 23, 2), abs=1e-5)
    by_class = next(one for one in lines if one["sets"] == "LAC by class")
    assert "fewer than 9 patients of a class" in by_class["reason"]
    assert [one["figure"] for one in lines if one["figure"] in ("nll", "brier", "ece")] == ["nll", "brier", "ece"]


def test_what_was_not_trained_is_dealt_into_folds(tmp_path: Path) -> None:
    write_run(tmp_path, fold=0, skill=1, aggregator="zeroshot", shots=0)
    found = _found(tmp_path)
    assert found.fitted_on == BY_DEALT_FOLDS
    assert len(found.temperatures) == 5
    assert sorted(found.before.patient_ids) == sorted({patient for _, patient, _ in cohort_of()})


def test_a_single_trained_fold_is_judged_by_its_validation_part_or_not_at_all(tmp_path: Path) -> None:
    folder = write_run(tmp_path, fold=0, skill=1)
    found = _found(tmp_path)
    assert (found.fitted_on, [one.n_patients for one in found.temperatures]) == (BY_VAL, [9])
    text = (folder / "predictions.csv").read_text()
    publish_text(folder / "predictions.csv", text.replace(",val,", ",train,"))
    write_done(folder)
    trust = trust_of(_method(tmp_path), resamples=100)
    assert (trust.found, trust.reason) == (None, "a single fold without a validation part")
    assert trust_tables([trust]) == []
    assert "without a validation part" in trust_csv([trust])
