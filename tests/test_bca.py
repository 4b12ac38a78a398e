"""Intervals from draws of patients: the formulas of the books as loops, SciPy, and how often they hold."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from feature_extraction.errors import InputError
from mil.metrics.bca import Shape, influences
from mil.metrics.differences import bootstrap_differences
from mil.metrics.intervals import Estimate, bootstrap_figures
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
    """BCa of Davison & Hinkley 1997, sec. 5.3, patient by patient, at t levels of the error that divides by n - 1."""

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
        parts.append((sum(move**2 for move in moves), len(members)))
    true = [(part * n / (n - 1), n - 1) for part, n in parts]
    freedom = sum(part for part, _ in true) ** 2 / sum(part**2 / free for part, free in true)
    wider = np.sqrt(sum(part for part, _ in true) / sum(part for part, _ in parts))
    bias = stats.norm.ppf((sum(one < value for one in drawn) + 0.5) / 2001)
    acceleration = cubes / (6 * squares**1.5)
    ends = []
    for level in (0.025, 0.975):
        at = bias + wider * stats.t.ppf(level, freedom)
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


def test_strata_keep_their_patients_and_do_not_draw_alike() -> None:
    strata = np.r_[np.zeros(40, dtype=np.int64), np.ones(40, dtype=np.int64), 2]
    (counts,) = patient_draws(strata, resamples=4000, seed=0, at_once=4000)
    assert (counts[:, :40].sum(axis=1) == 40).all()
    assert (counts[:, 80] == 1).all()
    values = np.linspace(0, 1, 40)
    assert abs(np.corrcoef(counts[:, :40] @ values, counts[:, 40:80] @ values)[0, 1]) < 0.05
    in_blocks = np.concatenate(list(patient_draws(strata, resamples=4000, seed=0, at_once=37)))
    assert np.array_equal(counts, in_blocks)


@pytest.mark.parametrize(("right", "n"), [(27, 30), (72, 80), (74, 80)])
def test_ties_of_a_share_count_half(right: int, n: int) -> None:
    """Many draws are exactly the value: counted as all above or all below, the interval would be shifted."""
    values = np.r_[np.ones(right), np.zeros(n - right)]
    found = _estimates(values, np.zeros(n))["mean"]
    exact = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.035)


def test_an_interval_of_a_share_misses_on_either_side_about_as_often_as_it_says() -> None:
    """All counts of 80 patients by their probability: one row a patient, where values and draws lie on a lattice."""
    n = 80
    for share in (0.8, 0.9, 0.93):
        ends = [_estimates(np.arange(n) < right, np.zeros(n), resamples=500)["mean"] for right in range(50, n)]
        chance = stats.binom.pmf(np.arange(50, n), n, share)
        assert sum(p for p, one in zip(chance, ends, strict=True) if one.low > share) <= 0.045
        assert sum(p for p, one in zip(chance, ends, strict=True) if one.high < share) <= 0.05


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


@pytest.mark.parametrize("others", [400, 10_000])
def test_a_rare_class_is_as_certain_among_many_patients_as_among_few(others: int) -> None:
    values = np.r_[np.ones(19), np.zeros(6), np.zeros(others)]
    strata = np.r_[np.zeros(25), np.ones(others)].astype(np.int64)

    def recall(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"recall": weights[:, :25] @ values[:25] / 25}

    ids = [f"p{row:05}" for row in range(len(values))]
    found = bootstrap_figures(recall, ids, [str(one) for one in strata])["recall"]
    alone = bootstrap_figures(lambda w: {"recall": w @ values[:25] / 25}, ids[:25], [""] * 25)["recall"]
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=0.05)
    assert (leaving(strata).of_stratum == 0).sum() == 25


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


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_unit_of_a_figure_changes_nothing(scale: float) -> None:
    values = np.random.default_rng(0).gamma(1.0, size=60) - 0.6
    ids = [f"p{row}" for row in range(60)]
    one = bootstrap_differences(_mean_and_spread(values), ids, [""] * 60)["mean"]
    other = bootstrap_differences(_mean_and_spread(scale * values), ids, [""] * 60)["mean"]
    assert other.p == pytest.approx(one.p, rel=0.05)
    assert (other.estimate.low, other.estimate.high) == pytest.approx(
        (scale * one.estimate.low, scale * one.estimate.high), rel=1e-3
    )


def test_p_is_never_less_than_draws_can_tell() -> None:
    base = np.r_[1000.0, np.full(199, 1e-3)]
    ids = [f"p{row:04}" for row in range(200)]
    found = bootstrap_differences(lambda weights: {"sum": (weights > 0) @ base}, ids, [""] * 200)["sum"]
    assert found.p >= 2 / 2002
    assert found.estimate.low <= found.estimate.value <= found.estimate.high
    constant = bootstrap_differences(lambda weights: {"sum": weights @ np.full(20, 0.1)}, ids[:20], [""] * 20)["sum"]
    assert 2 / 2002 <= constant.p < 0.01


def _without(missing: int) -> Figures:
    """A mean that is not defined when none of the first patients is there."""
    values = np.arange(20.0)

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        is_there = weights[:, :missing].sum(axis=1) > 0
        return {"mean": np.where(is_there, weights @ values / weights.sum(axis=1), np.nan)}

    return figures


def test_draws_that_do_not_define_a_figure_are_left_out_or_too_many() -> None:
    ids = [f"p{row:02}" for row in range(20)]
    seldom = bootstrap_differences(_without(4), ids, [""] * 20)["mean"]
    assert np.isfinite([seldom.estimate.low, seldom.estimate.high, seldom.p]).all()
    often = bootstrap_differences(_without(1), ids, [""] * 20)["mean"]
    assert often.estimate.reason.startswith("no interval: not defined in 3")
    assert np.isnan([often.estimate.low, often.estimate.high, often.p]).all()
    assert influences(np.array([1.0, np.nan, 3.0]), np.zeros(3, int), np.full(3, 0.5)).tolist() == [0.5, 0.0, -0.5]


def test_what_one_patient_says_has_no_interval() -> None:
    alone = bootstrap_differences(_mean_and_spread(np.array([1.0, 2.0])), ["p", "p"], ["", ""])["mean"]
    assert alone.estimate.reason == "no interval: a single patient"
    strangers = bootstrap_differences(_mean_and_spread(np.array([1.0, 2.0, 5.0])), ["p", "q", "r"], ["a", "b", "c"])
    assert "only one of a class" in strangers["mean"].estimate.reason
    assert np.isnan(strangers["mean"].p)
    with pytest.raises(InputError, match="no slide"):
        bootstrap_figures(_mean_and_spread(np.zeros(0)), [], [])


def test_patients_with_rows_of_two_strata_are_a_stratum_of_their_own() -> None:
    """Else they would be counted where their first row is, and classes would come and go."""
    values = np.arange(12.0)
    ids = [f"p{row // 2}" for row in range(12)]
    seen: list[np.ndarray] = []

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(weights)
        return {"mean": weights @ values / weights.sum(axis=1)}

    bootstrap_figures(figures, ids, ["a", "a", "a", "a", "b", "b", "b", "b", "a", "b", "b", "a"])
    for first, last in ((0, 4), (4, 8), (8, 12)):
        assert seen[1][:, first:last].sum(axis=1) == pytest.approx(4)


@settings(max_examples=60, deadline=None)
@given(
    share=st.floats(0.001, 0.999),
    bias=st.floats(-0.4, 0.4),
    acceleration=st.floats(-0.1, 0.1),
    narrowness=st.floats(1.0, 1.5),
)
def test_a_level_and_its_inverse(share: float, bias: float, acceleration: float, narrowness: float) -> None:
    shape = Shape(bias=bias, acceleration=acceleration, narrowness=narrowness, freedom=10.0)
    assert shape.share_below(shape.errors_to(share)) == pytest.approx(share)


def test_beyond_what_the_acceleration_allows_the_levels_are_the_ends() -> None:
    shape = Shape(bias=0.5, acceleration=0.16, narrowness=1.2, freedom=1.0)
    assert (shape.share_below(50.0), shape.share_below(-50.0)) == (1.0, pytest.approx(0.0, abs=1e-6))
    assert Shape(bias=0.0, acceleration=0.5, narrowness=1.0, freedom=1.0).errors_to(0.001) == -np.inf


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
