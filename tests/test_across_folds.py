"""The interval over folds: its formula, its false alarms beside those of the usual t, and when there is none."""

import numpy as np
import pytest
from scipy import stats

from feature_extraction.errors import InputError
from mil.metrics.across_folds import across_folds


def test_without_a_test_part_it_is_the_usual_t_interval_and_test() -> None:
    values = np.array([0.1, 0.3, 0.2, 0.5])
    found = across_folds(values, n_train=80, n_test=0)
    usual = stats.ttest_1samp(values, 0)
    interval = usual.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, usual.pvalue))
    assert (found.mean, found.n_folds, found.reason) == (pytest.approx(0.275), 4, "")


def test_the_correction_widens_by_its_factor() -> None:
    values = np.array([0.1, 0.3, 0.2, 0.5, 0.4])
    usual, corrected = (across_folds(values, n_train=80, n_test=n) for n in (0, 20))
    factor = np.sqrt((1 / 5 + 20 / 80) / (1 / 5))
    assert corrected.high - corrected.low == pytest.approx(factor * (usual.high - usual.low))
    assert corrected.p > usual.p
    t = values.mean() / np.sqrt((1 / 5 + 1 / 4) * values.var(ddof=1))
    assert corrected.p == pytest.approx(2 * stats.t.sf(t, 4))


@pytest.mark.parametrize(
    ("values", "mean", "n_folds", "reason"),
    [
        ([np.nan, np.nan], np.nan, 0, "not defined in any fold"),
        ([0.4, np.nan], 0.4, 1, "no interval over folds: defined in a single fold"),
        ([0.4, 0.4], 0.4, 2, "no interval over folds: every fold has the same value"),
    ],
)
def test_no_interval_is_said_with_its_reason(values: list[float], mean: float, n_folds: int, reason: str) -> None:
    found = across_folds(np.array(values), n_train=8, n_test=2)
    assert (found.n_folds, found.reason) == (n_folds, reason)
    assert found.mean == pytest.approx(mean, nan_ok=True)
    assert np.isnan([found.low, found.high, found.p]).all()


def test_a_split_without_training_patients_is_refused() -> None:
    with pytest.raises(InputError, match="got 0 and 5"):
        across_folds(np.array([0.1, 0.2]), n_train=0, n_test=5)


def test_equal_learners_on_overlapping_folds_differ_too_often_by_the_usual_t_and_not_by_the_corrected() -> None:
    """300 cohorts of 60, ten random test parts of a fifth each; two nearest-mean classifiers, equally good features."""
    generator = np.random.default_rng(0)
    alarms = np.zeros(2)
    for _ in range(300):
        labels = np.arange(60) % 2
        features = generator.normal(size=(60, 10)) + 0.35 * labels[:, None]
        values = np.array([_difference(features, labels, generator.permutation(60)) for _ in range(10)])
        alarms += [across_folds(values, n_train=48, n_test=n).p < 0.05 for n in (0, 12)]
    naive, corrected = alarms / 300
    assert naive > 0.15
    assert corrected <= 0.08


def _difference(features: np.ndarray, labels: np.ndarray, order: np.ndarray) -> float:
    test, train = order[:12], order[12:]
    right = []
    for half in (features[:, :5], features[:, 5:]):
        means = np.array([half[train][labels[train] == label].mean(axis=0) for label in (0, 1)])
        distances = np.square(half[test][:, None] - means[None]).sum(axis=2)
        right.append((distances.argmin(axis=1) == labels[test]).mean())
    return float(right[0] - right[1])
