"""Intervals from draws of patients: the formulas of the books as loops, SciPy, and how often they hold."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mil.metrics.intervals import Estimate, bootstrap_differences, bootstrap_figures
from mil.metrics.resampling import MOST_GROUPS, leaving, patient_draws

Figures = Callable[[np.ndarray], dict[str, np.ndarray]]


def _mean_and_spread(values: np.ndarray) -> Figures:
    """Of one row a patient; the spread is no mean, and skewed."""

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        mean = weights @ values / weights.sum(axis=1)
        square = weights @ np.square(values) / weights.sum(axis=1)
        return {"mean": mean, "spread": np.sqrt(np.maximum(square - np.square(mean), 0))}

    return figures


def _estimates(values: np.ndarray, strata: np.ndarray, resamples: int = 2000) -> dict[str, Estimate]:
    ids = [f"p{row:05}" for row in range(len(values))]
    return bootstrap_figures(_mean_and_spread(values), ids, [str(one) for one in strata], resamples=resamples)


def _book(values: np.ndarray, strata: np.ndarray, name: str) -> tuple[float, float]:
    """BCa of Davison & Hinkley 1997 (5.21, 5.28) patient by patient, at the levels of t."""

    def figure(weights: np.ndarray) -> float:
        return float(_mean_and_spread(values)(weights[None])[name][0])

    n = len(values)
    value = figure(np.ones(n))
    drawn = [figure(row) for block in patient_draws(strata, resamples=2000, seed=0, at_once=300) for row in block]
    cubes, squares, parts = 0.0, 0.0, []
    for stratum in set(strata.tolist()):
        members = [row for row in range(n) if strata[row] == stratum]
        without = []
        for one in members:
            weights = np.ones(n)
            weights[members] = len(members) / (len(members) - 1)
            weights[one] = 0
            without.append(figure(weights))
        # the empirical influence value of each patient, over the number of patients of its stratum
        moves = [(len(members) - 1) * (np.mean(without) - one) / len(members) for one in without]
        cubes += sum(move**3 for move in moves)
        squares += sum(move**2 for move in moves)
        parts.append((sum(move**2 for move in moves) * len(members) / (len(members) - 1), len(members) - 1))
    freedom = sum(part for part, _ in parts) ** 2 / sum(part**2 / free for part, free in parts)
    bias = stats.norm.ppf((sum(one < value for one in drawn) + 0.5) / 2001)
    acceleration = cubes / (6 * squares**1.5)
    ends = []
    for level in (0.025, 0.975):
        at = bias + stats.t.ppf(level, freedom)
        ends.append(np.quantile(drawn, stats.norm.cdf(bias + at / (1 - acceleration * at))))
    return ends[0], ends[1]


@pytest.mark.parametrize("name", ["mean", "spread"])
@pytest.mark.parametrize("sizes", [(12,), (5, 20), (2, 9, 30)])
def test_the_interval_is_that_of_the_book_patient_by_patient(name: str, sizes: tuple[int, ...]) -> None:
    strata = np.repeat(np.arange(len(sizes)), sizes)
    values = np.random.default_rng(len(sizes)).gamma(1.0, size=len(strata)) + strata
    found = _estimates(values, strata)[name]
    assert (found.low, found.high) == pytest.approx(_book(values, strata, name), rel=1e-9)
    assert found.low < found.value < found.high


def test_of_many_patients_it_is_scipys() -> None:
    """SciPy draws n of n at normal levels and has no strata: of 450 patients the same."""
    values = np.random.default_rng(0).lognormal(sigma=1.1, size=450)
    found = _estimates(values, np.zeros(450), resamples=9999)
    for name, statistic in (("mean", np.mean), ("spread", np.std)):
        expected = stats.bootstrap((values,), statistic, method="BCa", n_resamples=9999, rng=1).confidence_interval
        width = expected.high - expected.low
        assert (found[name].low, found[name].high) == pytest.approx((expected.low, expected.high), abs=0.05 * width)
        percentiles = stats.bootstrap((values,), statistic, method="percentile", n_resamples=9999, rng=1)
        assert abs(percentiles.confidence_interval.high - expected.high) > 0.05 * width  # so that the test can fail


def test_a_drawn_mean_varies_as_the_sample_says_and_strata_keep_their_patients() -> None:
    """The unbiased variance; drawing n of n would give four fifths of it with five patients."""
    values, strata = np.array([0.0, 1.0, 3.0, 7.0, 2.0, 5.0]), np.array([0, 0, 0, 0, 0, 1])
    (weights,) = patient_draws(strata, resamples=40_000, seed=0, at_once=40_000)
    assert weights[:, :5].sum(axis=1) == pytest.approx(5)
    assert (weights[:, 5] == 1).all()
    drawn = weights[:, :5] @ values[:5] / 5
    assert drawn.var() == pytest.approx(values[:5].var(ddof=1) / 5, rel=0.03)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-1, 1), sizes=st.lists(st.integers(4, 40), min_size=1, max_size=3))
def test_p_is_below_five_percent_where_the_interval_leaves_out_zero(seed: int, shift: float, sizes: list[int]) -> None:
    strata = np.repeat(np.arange(len(sizes)), sizes)
    values = np.random.default_rng(seed).gamma(0.7, size=len(strata)) - 0.7 + shift
    ids = [f"p{row}" for row in range(len(values))]
    found = bootstrap_differences(_mean_and_spread(values), ids, [str(one) for one in strata], resamples=1000)["mean"]
    leaves_out = found.estimate.low > 0 or found.estimate.high < 0
    if found.p < 0.045:  # a draw more or less decides
        assert leaves_out
    if found.p > 0.055 and len(values) >= 40:  # of fewer the ends may be the extreme draws, which p does not trust
        assert not leaves_out
    assert 0 < found.p <= 1


def test_p_of_a_symmetric_figure_is_that_of_students_t() -> None:
    generator = np.random.default_rng(3)
    for shift in (0.1, 0.3, 0.5):
        values = generator.normal(size=40) + shift
        ids = [f"p{row}" for row in range(40)]
        found = bootstrap_differences(_mean_and_spread(values), ids, [""] * 40, resamples=20_000)["mean"]
        expected = stats.ttest_1samp(values, 0).pvalue
        assert found.p == pytest.approx(expected, rel=0.35, abs=0.01)


def test_with_more_patients_than_can_leave_alone_several_leave_together() -> None:
    strata = np.r_[np.zeros(2999, dtype=np.int64), 1, np.full(1000, 2)]
    groups = leaving(strata)
    assert len(groups.first) == pytest.approx(MOST_GROUPS, abs=2)
    assert groups.groups[2999] == -1  # alone in its stratum
    assert {len(set(strata[groups.groups == group])) for group in range(len(groups.first))} == {1}
    weights = np.concatenate(list(groups.weights(at_once=7)))
    assert (weights == 0).sum(axis=0)[np.arange(4000) != 2999].tolist() == [1] * 3999
    for stratum in range(3):
        assert weights[:, strata == stratum].sum(axis=1) == pytest.approx((strata == stratum).sum())


def test_groups_tell_of_the_skewness_as_single_patients_do(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).gamma(0.3, size=480)
    alone = _estimates(values, np.zeros(480))["mean"]
    monkeypatch.setattr("mil.metrics.resampling.MOST_GROUPS", 120)
    together = _estimates(values, np.zeros(480))["mean"]
    width = alone.high - alone.low
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high), abs=0.03 * width)
    assert together.high != alone.high


def test_draws_that_all_agree_have_no_width_and_extremes_stay_finite() -> None:
    same = _estimates(np.ones(6), np.array([0, 0, 0, 1, 1, 1]))["mean"]
    assert (same.value, same.low, same.high) == pytest.approx((1.0, 1.0, 1.0))
    two = _estimates(np.array([0.0, 0.0, 0.0, 100.0]), np.array([0, 0, 1, 1]))["mean"]
    assert 0 <= two.low <= two.value <= two.high <= 100


def test_an_interval_of_few_skewed_patients_holds_the_truth_about_as_often_as_it_says() -> None:
    """600 cohorts of 20 from a distribution with skewness 1.2; plain percentiles say too much."""
    generator = np.random.default_rng(0)
    held = plain = 0
    for _ in range(600):
        values = generator.gamma(2.8, size=20)
        found = _estimates(values, np.zeros(20), resamples=500)["mean"]
        held += found.low <= 2.8 <= found.high
        low, high = np.quantile(generator.choice(values, (500, 20)).mean(axis=1), (0.025, 0.975))
        plain += low <= 2.8 <= high
    assert 0.91 <= held / 600 <= 0.97
    assert plain <= held - 9
