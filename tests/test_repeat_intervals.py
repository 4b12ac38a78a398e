"""Figures of folds that were drawn several times: no more patients, no less care than with one drawing."""

from dataclasses import replace

import numpy as np
import pytest
from patients import simulated

from feature_extraction.errors import InputError
from mil.metrics.classification import Predictions
from mil.metrics.differences import paired_difference
from mil.metrics.intervals import bootstrap_interval
from mil.report.repeat_intervals import difference_over_repeats, interval_over_repeats


def _other(rows: Predictions, seed: int) -> Predictions:
    """The same slides as another drawing's models predict them."""
    noise = np.exp(np.random.default_rng(seed).normal(size=rows.probabilities.shape))
    weights = rows.probabilities * noise
    return replace(rows, probabilities=weights / weights.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("level", ["slide", "patient"])
def test_the_same_drawing_again_adds_no_certainty(level: str) -> None:
    rows = simulated(60, seed=0)
    once, thrice = bootstrap_interval(rows, level=level), interval_over_repeats([rows] * 3, level=level)
    for name, estimate in once.items():
        assert (thrice[name].value, thrice[name].low, thrice[name].high) == pytest.approx(
            (estimate.value, estimate.low, estimate.high)
        )
        assert (thrice[name].n_patients, thrice[name].n_slides) == (estimate.n_patients, estimate.n_slides)


def test_the_figure_is_the_mean_over_drawings_and_not_that_of_an_ensemble() -> None:
    rows = simulated(60, seed=1)
    drawings = [_other(rows, seed) for seed in range(4)]
    values = [bootstrap_interval(one, resamples=50)["nll"].value for one in drawings]
    assert interval_over_repeats(drawings, level="slide", resamples=50)["nll"].value == pytest.approx(np.mean(values))


def test_a_class_with_a_single_patient_has_no_interval_however_often_folds_are_drawn() -> None:
    rows = simulated(60, seed=2)
    patients = [one for one, label in zip(rows.patient_ids, rows.labels, strict=True) if label == 0]
    kept = [place for place, one in enumerate(rows.patient_ids) if rows.labels[place] != 0 or one == patients[0]]
    rare = rows.take(np.array(kept))
    drawings = [_other(rare, seed) for seed in range(2)]
    for estimate in interval_over_repeats(drawings, level="slide", resamples=50).values():
        assert "single patient of class" in estimate.reason
        assert np.isnan([estimate.low, estimate.high]).all()
    pairs = list(zip(drawings, drawings[::-1], strict=True))
    for difference in difference_over_repeats(pairs, level="slide", resamples=50).values():
        assert "single patient of class" in difference.estimate.reason
        assert np.isnan(difference.p)


def test_a_share_without_an_error_in_any_drawing_has_the_score_interval() -> None:
    rows = simulated(60, seed=3)
    right = replace(rows, probabilities=0.1 + 0.7 * np.eye(3)[rows.labels])
    one, two = bootstrap_interval(right)["accuracy"], interval_over_repeats([right] * 2, level="slide")["accuracy"]
    assert (two.low, two.high) == (one.low, one.high) != (1.0, 1.0)


@pytest.mark.parametrize("n_drawings", [1, 2])
def test_drawings_that_disagree_on_labels_or_patients_are_refused(n_drawings: int) -> None:
    rows = simulated(60, seed=4)
    relabelled = replace(rows, labels=(rows.labels + 1) % 3)
    others = replace(rows, patient_ids=rows.patient_ids[::-1])
    for wrong in (relabelled, others):
        with pytest.raises(InputError, match="same patients and labels"):
            difference_over_repeats([(rows, wrong)] * n_drawings, level="slide", resamples=50)


@pytest.mark.parametrize("level", ["slide", "patient"])
def test_a_difference_over_equal_drawings_is_the_paired_difference(level: str) -> None:
    first, second = simulated(60, seed=5), _other(simulated(60, seed=5), 1)
    once = paired_difference(first, second, level=level)
    twice = difference_over_repeats([(first, second)] * 2, level=level)
    for name, one in once.items():
        assert twice[name].p == pytest.approx(one.p, abs=0.01)
        assert (twice[name].estimate.low, twice[name].estimate.high) == pytest.approx(
            (one.estimate.low, one.estimate.high)
        )
