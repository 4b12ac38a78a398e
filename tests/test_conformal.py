"""Prediction sets hold the class as often as promised, patient by patient, and refuse to promise too much."""

from dataclasses import replace
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patients import CLASSES, simulated

from feature_extraction.errors import InputError
from mil.metrics.classification import Predictions, by_patient
from mil.trust.by_other_folds import patients_of_folds, sets_by_other_folds
from mil.trust.conformal import (
    allowed_misses,
    calibrate,
    conformal_quantile,
    conformity_scores,
    coverage_band,
    fewest_patients,
    has_enough_of_each,
    prediction_sets,
    set_figures,
)


def _rows(labels: list[int], probabilities: list[list[float]], patient_ids: list[str] | None = None) -> Predictions:
    ids = tuple(f"s{row}" for row in range(len(labels)))
    return Predictions(
        slide_ids=ids,
        patient_ids=ids if patient_ids is None else tuple(patient_ids),
        classes=CLASSES[: len(probabilities[0])],
        labels=np.array(labels),
        probabilities=np.array(probabilities),
    )


def test_scores_are_those_of_the_formulas() -> None:
    given = np.array([[0.5, 0.2, 0.3], [0.4, 0.4, 0.2], [1.0, 0.0, 0.0]])
    assert conformity_scores(given, "lac") == pytest.approx(1 - given)
    expected = [[sum(p for p in row if p > own) for own in row] for row in given]
    assert conformity_scores(given, "aps") == pytest.approx(np.array(expected))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 400), percent=st.integers(1, 50))
def test_the_quantile_is_the_order_statistic_that_leaves_l_scores_at_or_above_it(n: int, percent: int) -> None:
    """l by whole numbers: floor((n + 1) percent / 100)."""
    n_above = (n + 1) * percent // 100
    assert allowed_misses(n, percent / 100) == n_above
    scores = np.random.default_rng(n).permutation(n).astype(np.float64)
    assert conformal_quantile(scores, percent / 100) == (n - n_above if n_above else np.inf)
    assert (fewest_patients(percent / 100) <= n) == (n_above >= 1)


def test_the_band_is_that_of_the_design_and_of_a_plain_sum() -> None:
    assert fewest_patients(0.1) == 9
    for n, low, high in ((50, 0.83, 0.96), (100, 0.85, 0.95)):
        band = coverage_band(n, 0.1)
        assert (band.low, band.high) == pytest.approx((low, high), abs=0.006)
        tail = _beta_cdf(band.low, n + 1 - (n + 1) // 10, (n + 1) // 10)
        assert tail == pytest.approx(0.05, abs=1e-9)
    wide = coverage_band(100, 0.1, n_tested=30)
    assert wide.low < coverage_band(100, 0.1).low
    assert wide.high > coverage_band(100, 0.1).high


def _beta_cdf(x: float, a: int, b: int) -> float:
    """Of whole a and b: the chance of a or more hits in a + b - 1 draws."""
    n = a + b - 1
    return sum(comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(a, n + 1))


@pytest.mark.parametrize("score", ["lac", "aps"])
def test_realised_coverage_lies_in_its_band_as_often_as_the_band_says(score: str) -> None:
    """300 calibrations on 60 patients each: 90 % of the coverages lie in the 5 to 95 % band, their mean is its."""
    fresh = by_patient(simulated(6000, seed=0))
    rows = np.arange(len(fresh.labels))
    band = coverage_band(60, 0.1)
    found = []
    for seed in range(1, 301):
        calibration = calibrate(simulated(60, seed=seed), score=score, alpha=0.1)
        assert set(calibration.n_patients) == {60}
        found.append(prediction_sets(calibration, fresh.probabilities)[rows, fresh.labels].mean())
    is_inside = (np.array(found) >= band.low) & (np.array(found) <= band.high)
    assert 0.84 <= is_inside.mean() <= 0.96
    assert np.mean(found) == pytest.approx(band.mean, abs=0.01)


def test_slides_that_count_as_patients_promise_too_narrow_a_band() -> None:
    fresh = by_patient(simulated(6000, seed=0))
    rows = np.arange(len(fresh.labels))
    found = []
    for seed in range(1, 151):
        seen = simulated(60, seed=seed, most_slides=9, patient_share=0.95)
        calibration = calibrate(replace(seen, patient_ids=seen.slide_ids), alpha=0.1)
        band = coverage_band(calibration.n_patients[0], 0.1)
        found.append(
            band.low <= prediction_sets(calibration, fresh.probabilities)[rows, fresh.labels].mean() <= band.high
        )
    assert np.mean(found) < 0.75


def test_class_conditional_sets_keep_the_promise_to_the_hard_class() -> None:
    """Class C looks like B: sets for everybody leave out C more often than promised, sets of each class do not."""

    def cohort(n: int, seed: int) -> Predictions:
        rows = simulated(n, seed=seed, most_slides=1)
        weights = np.where((rows.labels == 2)[:, None], rows.probabilities[:, [0, 2, 1]] ** 0.5, rows.probabilities)
        return replace(rows, probabilities=weights / weights.sum(axis=1, keepdims=True))

    fresh, seen = cohort(9000, 0), cohort(900, 1)
    of_class = {}
    for is_conditional in (False, True):
        calibration = calibrate(seen, alpha=0.1, is_class_conditional=is_conditional)
        of_class[is_conditional] = set_figures(prediction_sets(calibration, fresh.probabilities), fresh.labels)
    assert of_class[False].coverage_of_class[2] < 0.85
    assert of_class[False].coverage == pytest.approx(0.9, abs=0.025)
    assert of_class[True].coverage_of_class == pytest.approx((0.9,) * 3, abs=0.035)


def test_a_patient_counts_once_by_the_mean_of_its_slides() -> None:
    patients = simulated(40, seed=3)
    means = by_patient(patients)
    assert calibrate(patients, score="aps").thresholds == pytest.approx(calibrate(means, score="aps").thresholds)
    assert calibrate(patients).n_patients == (40, 40, 40)


def test_too_few_patients_are_refused_with_how_many_are_needed() -> None:
    few = simulated(8, seed=0, most_slides=4)
    with pytest.raises(InputError, match=r"8 patients to calibrate on, alpha=0.1 needs 9"):
        calibrate(few)
    with pytest.raises(InputError, match=r"too few patients of A \(8\), B \(8\), C \(8\), alpha=0.1 needs 9"):
        calibrate(simulated(24, seed=0), is_class_conditional=True)
    assert not has_enough_of_each(simulated(24, seed=0))
    assert has_enough_of_each(simulated(27, seed=0))
    assert calibrate(simulated(27, seed=0), is_class_conditional=True).n_patients == (9, 9, 9)
    with pytest.raises(InputError, match="alpha=1"):
        calibrate(simulated(27, seed=0), alpha=1.0)
    with pytest.raises(InputError, match="got 2 classes, calibrated for A, B, C"):
        prediction_sets(calibrate(simulated(27, seed=0)), np.array([[0.5, 0.5]]))


def test_aps_sets_are_never_empty_and_lac_sets_may_be() -> None:
    seen = _rows([0] * 20, [[0.9, 0.05, 0.05]] * 20)
    unlike = np.array([[0.34, 0.33, 0.33]])
    assert prediction_sets(calibrate(seen), unlike).sum() == 0
    assert prediction_sets(calibrate(seen, score="aps"), unlike).tolist() == [[True, False, False]]
    for seed in range(5):
        rows = simulated(60, seed=seed)
        assert prediction_sets(calibrate(rows, score="aps", alpha=0.4), rows.probabilities).any(axis=1).all()


def test_figures_of_sets_are_counted() -> None:
    sets = np.array([[True, False], [True, True], [False, False], [False, True]])
    found = set_figures(sets, np.array([0, 0, 1, 0]))
    assert (found.coverage, found.mean_size, found.share_single, found.share_empty) == (0.5, 1.0, 0.5, 0.25)
    assert found.coverage_of_class == pytest.approx((2 / 3, 0.0))
    assert found.accuracy_of_single == 0.5
    assert found.coverage_low < 0.5 < found.coverage_high
    assert np.isnan(set_figures(sets[:1], np.array([0])).coverage_of_class[1])
    with pytest.raises(InputError, match="no patient"):
        set_figures(sets[:0], np.array([], dtype=np.int64))


def test_sets_of_a_fold_come_from_the_other_folds() -> None:
    rows = simulated(60, seed=5)
    folds = np.array([int(name[1:]) // 3 % 4 for name in rows.patient_ids])
    tested = patients_of_folds(rows, folds)
    found = sets_by_other_folds(tested, score="aps")
    here = tested.folds == 2
    calibration = calibrate(rows.take(np.flatnonzero(folds != 2)), score="aps")
    assert np.array_equal(found[here], prediction_sets(calibration, tested.patients.probabilities[here]))
    assert set_figures(found, tested.patients.labels).coverage > 0.8
    with pytest.raises(InputError, match="single one"):
        patients_of_folds(rows, np.zeros(len(folds), dtype=np.int64))
    folds[0] = 3
    rows = replace(rows, patient_ids=("p000001", *rows.patient_ids[1:]), labels=np.r_[1, rows.labels[1:]])
    with pytest.raises(InputError, match="patient p000001 is test in several"):
        patients_of_folds(rows, folds)
