"""Figures equal scikit-learn's, intervals behave, and what is undefined is never a number."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patients import simulated
from scipy import stats
from sklearn import metrics as sk

from feature_extraction.errors import InputError
from mil.metrics.classification import (
    METRICS,
    Predictions,
    by_patient,
    classification_metrics,
    slide_metrics,
    undefined_reasons,
    weighted_metrics,
)
from mil.metrics.differences import holm, on_same_slides, paired_difference
from mil.metrics.intervals import bootstrap_interval
from mil.metrics.shares import patients_behind

CLASSES = ("LUAD", "LUSC", "normal", "other")


def _predictions(
    n_patients: int,
    *,
    seed: int = 0,
    n_classes: int = 3,
    slides: int = 2,
    skill: float = 1.0,
    digits: int | None = None,
) -> Predictions:
    """Patients of every class with ``slides`` slides each that share a patient effect."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n_patients) % n_classes
    shift = generator.normal(size=(n_patients, n_classes)) + skill * np.eye(n_classes)[labels]
    logits = np.repeat(shift, slides, axis=0) + 0.5 * generator.normal(size=(n_patients * slides, n_classes))
    logits = logits if digits is None else np.round(logits, digits)
    weights = np.exp(logits)
    return Predictions(
        slide_ids=tuple(f"s{row:05}" for row in range(n_patients * slides)),
        patient_ids=tuple(f"p{row // slides:05}" for row in range(n_patients * slides)),
        classes=CLASSES[:n_classes],
        labels=np.repeat(labels, slides),
        probabilities=weights / weights.sum(axis=1, keepdims=True),
    )


def _scikit_learn(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    n_classes = probabilities.shape[1]
    said = probabilities.argmax(axis=1)
    scores = probabilities[:, 1] if n_classes == 2 else probabilities
    recall = sk.recall_score(labels, said, labels=range(n_classes), average=None)
    return {
        "macro_auc": sk.roc_auc_score(labels, scores, multi_class="ovr"),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, said),
        "macro_f1": sk.f1_score(labels, said, average="macro", labels=range(n_classes)),
        "accuracy": sk.accuracy_score(labels, said),
        "nll": sk.log_loss(labels, probabilities, labels=range(n_classes)),
        "brier": sk.brier_score_loss(labels, probabilities, labels=range(n_classes)),
        "ece": _ece(probabilities.max(axis=1), said == labels),
        **{f"recall_{name}": value for name, value in zip(CLASSES, recall, strict=False)},
    }


def _ece(confidence: np.ndarray, is_right: np.ndarray) -> float:
    """Guo et al. 2017, eq. 3, bin by bin; scikit-learn has none."""
    total = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - is_right[inside].mean())
    return total


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_patients=st.integers(8, 60),
    n_classes=st.integers(2, 4),
    digits=st.sampled_from([0, 1, None]),
)
def test_every_figure_equals_scikit_learn_also_with_ties(
    seed: int, n_patients: int, n_classes: int, digits: int | None
) -> None:
    rows = _predictions(n_patients, seed=seed, n_classes=n_classes, slides=1, digits=digits)
    ours = slide_metrics(rows.labels, rows.probabilities, rows.classes)
    expected = _scikit_learn(rows.labels, rows.probabilities)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n_classes=st.integers(2, 4))
def test_weights_equal_repeating_the_slides(seed: int, n_classes: int) -> None:
    """What makes the bootstrap right: a weighted figure is scikit-learn's figure of the rows drawn so often."""
    rows = _predictions(24, seed=seed, n_classes=n_classes, digits=1)
    counts = np.random.default_rng(seed).integers(0, 4, size=(3, len(rows.labels)))
    counts[:, :n_classes] += 1  # every class is there
    counts[:, -n_classes:] += 1
    ours = weighted_metrics(rows.labels, rows.probabilities, rows.classes, counts.astype(np.float64))
    for resample, times in enumerate(counts):
        drawn = np.repeat(np.arange(len(rows.labels)), times)
        for name, value in _scikit_learn(rows.labels[drawn], rows.probabilities[drawn]).items():
            assert ours[name][resample] == pytest.approx(value, abs=1e-9), name


def test_probability_zero_of_the_truth_costs_what_scikit_learn_says() -> None:
    labels, probabilities = np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]])
    expected = sk.log_loss(labels, probabilities)
    assert slide_metrics(labels, probabilities, ("a", "b"))["nll"] == pytest.approx(expected)


def test_a_missing_class_is_undefined_with_its_reason_and_never_a_half() -> None:
    labels, probabilities = np.array([0, 0, 1]), np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1]])
    figures = classification_metrics(labels, probabilities, ("a", "b", "c"))
    for name in ("macro_auc", "balanced_accuracy", "macro_f1", "recall_c"):
        assert figures[name] is None
        assert figures["undefined"][name] == "no slide of class c"
    assert figures["accuracy"] == 1.0
    assert figures["recall_b"] == 1.0
    assert set(figures) == {*METRICS, "recall_a", "recall_b", "recall_c", "undefined"}


def test_a_constant_score_has_no_area() -> None:
    labels, probabilities = np.array([0, 1, 0, 1]), np.full((4, 2), 0.5)
    assert np.isnan(slide_metrics(labels, probabilities, ("a", "b"))["macro_auc"])
    assert "same probability" in undefined_reasons(labels, probabilities, ("a", "b"))["macro_auc"]
    probabilities[0] = [0.4, 0.6]
    assert slide_metrics(labels, probabilities, ("a", "b"))["macro_auc"] == 0.25


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([], np.zeros((0, 2)), "no slide"),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.5]], "not hold probabilities"),
        ([0, 1], [[0.5, 0.5], [1.2, -0.2]], "not hold probabilities"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.503]], "not hold probabilities"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "label index"),
        ([-1, 1], [[0.5, 0.5], [0.5, 0.5]], "label index"),
    ],
)
def test_what_are_no_predictions_is_refused(labels: list[int], probabilities: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        slide_metrics(np.array(labels, int), np.array(probabilities, float), ("a", "b"))


def test_probabilities_rounded_to_three_digits_are_read() -> None:
    assert slide_metrics(np.array([0, 1]), np.array([[0.6, 0.399], [0.333, 0.667]]), ("a", "b"))["accuracy"] == 1.0


def test_a_patient_is_the_mean_of_its_slides() -> None:
    rows = Predictions(
        slide_ids=("s1", "s2", "s3"),
        patient_ids=("p2", "p1", "p2"),
        classes=("a", "b"),
        labels=np.array([1, 0, 1]),
        probabilities=np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]]),
    )
    patients = by_patient(rows)
    assert patients.patient_ids == ("p1", "p2")
    assert patients.labels.tolist() == [0, 1]
    assert patients.probabilities == pytest.approx(np.array([[0.9, 0.1], [0.4, 0.6]]))
    assert slide_metrics(rows.labels, rows.probabilities, rows.classes)["accuracy"] == pytest.approx(2 / 3)
    assert slide_metrics(patients.labels, patients.probabilities, patients.classes)["accuracy"] == 1.0


def test_the_interval_is_about_that_of_a_plain_loop_over_drawn_patients() -> None:
    """`test_bca.py` has the exact formulas; of 300 patients the percentiles of a loop differ little."""
    rows = _predictions(300, skill=1.5)
    ours = bootstrap_interval(rows, resamples=2000)["balanced_accuracy"]
    generator = np.random.default_rng(1)
    groups = [sorted({p for p, y in zip(rows.patient_ids, rows.labels, strict=True) if y == k}) for k in range(3)]
    places = {name: np.flatnonzero(np.array(rows.patient_ids) == name) for group in groups for name in group}
    values = []
    for _ in range(2000):
        drawn = np.concatenate([places[name] for group in groups for name in generator.choice(group, len(group))])
        values.append(
            np.mean([(rows.probabilities[drawn].argmax(1) == k)[rows.labels[drawn] == k].mean() for k in range(3)])
        )
    assert (ours.low, ours.high) == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=0.01)


def test_slides_of_a_patient_are_not_new_information() -> None:
    """Five copies of each slide change no value and no interval; an interval over slides would shrink."""
    one = _predictions(30, slides=1, skill=1.5)
    copies = one.take(np.repeat(np.arange(30), 5))
    first, second = bootstrap_interval(one), bootstrap_interval(copies)
    for name, estimate in first.items():
        assert (second[name].value, second[name].low, second[name].high) == pytest.approx(
            (estimate.value, estimate.low, estimate.high)
        )
        assert (estimate.n_patients, estimate.n_slides) == (30, 30)
        assert (second[name].n_patients, second[name].n_slides) == (30, 150)


@pytest.mark.parametrize("level", ["slide", "patient"])
def test_intervals_hold_the_value_and_depend_on_the_seed_alone(level: str) -> None:
    rows = _predictions(60)
    first = bootstrap_interval(rows, level=level, seed=3)
    assert first == bootstrap_interval(rows, level=level, seed=3)
    assert first["nll"] != bootstrap_interval(rows, level=level, seed=4)["nll"]
    for name in ("macro_auc", "balanced_accuracy", "macro_f1", "accuracy", "nll", "brier"):
        assert first[name].low < first[name].value < first[name].high


def test_more_slides_than_fit_at_once_give_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _predictions(30)
    whole = bootstrap_interval(rows, resamples=200)
    monkeypatch.setattr("mil.metrics.bootstrap.VALUES_AT_ONCE", 1000)
    in_parts = bootstrap_interval(rows, resamples=200)
    for name, estimate in whole.items():
        assert (in_parts[name].low, in_parts[name].high) == pytest.approx((estimate.low, estimate.high)), name


def test_ninety_five_percent_intervals_hold_the_truth_about_as_often() -> None:
    """120 cohorts of 60 patients: the share of intervals that hold the value of a cohort of 60,000 patients."""
    truth = slide_metrics(*_parts(_predictions(60_000, slides=1, seed=999)), CLASSES[:3])
    names = ("macro_auc", "accuracy", "nll")
    held = dict.fromkeys(names, 0)
    for seed in range(120):
        found = bootstrap_interval(_predictions(60, slides=1, seed=seed), resamples=300)
        for name in names:
            held[name] += found[name].low <= truth[name] <= found[name].high
    for name, count in held.items():
        assert 0.90 <= count / 120 <= 0.995, (name, count / 120)


def test_intervals_of_patients_hold_the_truth_where_those_of_slides_do_not() -> None:
    """50 cohorts of 60 patients with up to nine like slides: resampling slides takes likeness for certainty."""
    large = simulated(10_000, seed=0, most_slides=9)
    truth = slide_metrics(large.labels, large.probabilities, large.classes)
    held = dict.fromkeys(("patients", "slides"), 0)
    for seed in range(1, 51):
        rows = simulated(60, seed=seed, most_slides=9)
        as_patients = replace(rows, patient_ids=rows.slide_ids)
        for name, drawn in (("patients", rows), ("slides", as_patients)):
            found = bootstrap_interval(drawn, resamples=200, seed=seed)["accuracy"]
            held[name] += found.low <= truth["accuracy"] <= found.high
    assert held["patients"] >= 41
    assert held["slides"] <= 37


def _parts(rows: Predictions) -> tuple[np.ndarray, np.ndarray]:
    return rows.labels, rows.probabilities


def test_a_class_with_a_single_patient_gives_a_value_and_no_interval() -> None:
    rows = _predictions(31, n_classes=2).take(np.array([0, 1, 2, 3, 4, 5, 8, 9]))
    single = rows.take(np.flatnonzero((rows.labels == 0) | (np.array(rows.patient_ids) == "p00001")))
    estimate = bootstrap_interval(single)["balanced_accuracy"]
    assert not np.isnan(estimate.value)
    assert np.isnan([estimate.low, estimate.high]).all()
    assert estimate.reason == "no interval: a single patient of class LUSC"


def _always_right(sizes: tuple[int, ...], slides: int = 3) -> Predictions:
    labels = np.repeat(np.arange(len(sizes)), np.array(sizes) * slides)
    return Predictions(
        slide_ids=tuple(f"s{row:04}" for row in range(len(labels))),
        patient_ids=tuple(f"p{row // slides:04}" for row in range(len(labels))),
        classes=CLASSES[: len(sizes)],
        labels=labels,
        probabilities=np.eye(len(sizes))[labels] * 0.4 + 0.6 / len(sizes),
    )


@pytest.mark.parametrize("level", ["slide", "patient"])
def test_a_share_without_an_error_has_the_score_interval_of_its_patients(level: str) -> None:
    """Drawn patients are always right too: 1.000 to 1.000 would promise what 20 patients cannot."""
    rows = _always_right((16, 4))
    found = bootstrap_interval(rows, level=level)

    def wilson(n: int) -> tuple[float, float]:
        return n / (n + stats.norm.ppf(0.975) ** 2), 1.0

    for name, n in (("accuracy", 20), ("recall_LUAD", 16), ("recall_LUSC", 4), ("balanced_accuracy", 12)):
        assert (found[name].low, found[name].high) == pytest.approx(wilson(n)), name
    assert found["macro_auc"].low == found["macro_auc"].high == 1.0
    wrong = replace(rows, probabilities=rows.probabilities[:, ::-1])
    assert bootstrap_interval(wrong, level=level)["accuracy"].high == pytest.approx(1 - wilson(20)[0])
    one_error = replace(rows, labels=np.r_[np.ones(3, dtype=int), rows.labels[3:]])
    estimate = bootstrap_interval(one_error, level=level)["accuracy"]
    assert estimate.low < estimate.value < estimate.high
    assert estimate.low < wilson(20)[0]


def test_a_mean_of_shares_rests_on_as_many_patients_as_vary_like_it() -> None:
    n, share = patients_behind(_always_right((30, 10, 5)))["balanced_accuracy"], 0.9
    drawn = np.random.default_rng(0).binomial([30, 10, 5], share, (100_000, 3)) / [30, 10, 5]
    assert drawn.mean(axis=1).var() == pytest.approx(share * (1 - share) / n, rel=0.05)


def test_the_paired_difference_sees_what_two_intervals_hide() -> None:
    """A small but constant gain: the intervals of the two overlap, that of the difference excludes zero."""
    better = _predictions(150, skill=1.5)
    worse = Predictions(
        slide_ids=better.slide_ids,
        patient_ids=better.patient_ids,
        classes=better.classes,
        labels=better.labels,
        probabilities=0.9 * better.probabilities + 0.1 * (1 - better.probabilities) / 2,
    )
    difference = paired_difference(better, worse)["nll"]
    one, other = bootstrap_interval(better)["nll"], bootstrap_interval(worse)["nll"]
    assert difference.estimate.value == pytest.approx(one.value - other.value)
    assert one.high > other.low
    assert difference.estimate.high < 0
    assert 2 / 2002 <= difference.p < 0.03


def test_a_method_does_not_differ_from_itself() -> None:
    rows = _predictions(30)
    for one in paired_difference(rows, rows, level="patient").values():
        assert (one.estimate.value, one.estimate.low, one.estimate.high, one.p) == (0.0, 0.0, 0.0, 1.0)


def test_equal_methods_seldom_differ() -> None:
    """Of 60 pairs without a true difference few have p below .05."""
    pairs = [(_noisy(_predictions(60, seed=s), 2 * s), _noisy(_predictions(60, seed=s), 2 * s + 1)) for s in range(60)]
    p_values = np.array([paired_difference(a, b, resamples=300)["nll"].p for a, b in pairs])
    assert (p_values < 0.05).mean() <= 0.15
    assert (p_values > 0.5).mean() >= 0.25


def _noisy(rows: Predictions, seed: int) -> Predictions:
    noise = np.exp(0.5 * np.random.default_rng(seed).normal(size=rows.probabilities.shape))
    weights = rows.probabilities * noise
    return Predictions(
        slide_ids=rows.slide_ids,
        patient_ids=rows.patient_ids,
        classes=rows.classes,
        labels=rows.labels,
        probabilities=weights / weights.sum(axis=1, keepdims=True),
    )


def test_only_common_slides_are_compared_and_others_refused() -> None:
    rows = _predictions(30)
    some = rows.take(np.arange(59, 9, -1))
    with pytest.raises(InputError, match="same slides"):
        paired_difference(rows, some)
    first, second = on_same_slides(rows, some)
    assert first.slide_ids == second.slide_ids == rows.slide_ids[10:]
    assert paired_difference(first, second)["nll"].p == 1.0
    with pytest.raises(InputError, match="no slide in common"):
        on_same_slides(rows.take(np.arange(5)), rows.take(np.arange(5, 9)))


def test_holm_multiplies_by_the_comparisons_left_and_never_decreases() -> None:
    assert holm([0.04, 0.01, float("nan"), 0.03]) == pytest.approx([0.06, 0.03, float("nan"), 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
