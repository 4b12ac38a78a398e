"""Calibration, referral and unusual slides: each against its formula, and each says when it cannot be told."""

from dataclasses import replace

import numpy as np
import pytest
from patients import CLASSES, simulated
from sklearn.linear_model import LogisticRegression

from feature_extraction.errors import InputError
from mil.metrics.classification import Predictions, by_patient, slide_metrics
from mil.metrics.shares import share_interval
from mil.trust.by_other_folds import calibrated_by_other_folds, patients_of_folds
from mil.trust.out_of_distribution import (
    background_share,
    fit_gaussian,
    fit_nearest,
    share_threshold,
    unusual_patients,
)
from mil.trust.referral import accuracy_at_coverage, referral_figures, referrals, risk_coverage
from mil.trust.reliability import reliability_table
from mil.trust.temperature import calibrated, fit_temperature


def _nll(rows: Predictions) -> float:
    return slide_metrics(rows.labels, rows.probabilities, rows.classes)["nll"]


def test_the_temperature_of_two_classes_is_a_logistic_regression_without_intercept() -> None:
    rows = by_patient(simulated(200, seed=0))
    two = rows.take(np.flatnonzero(rows.labels < 2))
    shares = two.probabilities[:, :2] / two.probabilities[:, :2].sum(axis=1, keepdims=True)
    two = replace(two, classes=CLASSES[:2], probabilities=shares)
    logits = np.log(shares[:, 1]) - np.log(shares[:, 0])
    slope = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-10).fit(logits[:, None], two.labels).coef_[0, 0]
    found = fit_temperature(two, part="val")
    assert found.value == pytest.approx(1 / slope, rel=1e-4)
    assert found.n_patients == len(two.labels)


def test_no_other_temperature_is_better_and_overconfidence_is_taken_back() -> None:
    rows = by_patient(simulated(3000, seed=1, sharpness=5.0, most_slides=1))
    found = fit_temperature(rows, part="out_of_fold")
    tried = [_nll(replace(rows, probabilities=calibrated(rows.probabilities, t))) for t in np.geomspace(0.2, 20, 60)]
    assert found.nll_after <= min(tried) + 1e-12
    assert found.nll_before == pytest.approx(_nll(rows))
    assert found.value == pytest.approx(
        5.0 / 1.6, rel=0.1
    )  # logits skill * e_y + noise of variance 1 are right at skill
    after = replace(rows, probabilities=calibrated(rows.probabilities, found.value))
    assert np.array_equal(after.probabilities.argmax(1), rows.probabilities.argmax(1))
    before, now = (slide_metrics(r.labels, r.probabilities, r.classes)["ece"] for r in (rows, after))
    assert now < 0.03 < before


def test_a_temperature_is_never_fitted_on_the_training_part() -> None:
    with pytest.raises(InputError, match=r"part train, expected val or out_of_fold"):
        fit_temperature(simulated(30, seed=0), part="train")


def test_a_temperature_that_would_run_away_is_one_and_says_why() -> None:
    right = simulated(30, seed=0)
    right = replace(right, probabilities=0.1 + 0.7 * np.eye(3)[right.labels])
    found = fit_temperature(right, part="val")
    assert (found.value, "every prediction is right" in found.reason) == (1.0, True)
    wrong = replace(right, probabilities=0.1 + 0.7 * np.eye(3)[(right.labels + 1) % 3])
    found = fit_temperature(wrong, part="val")
    assert (found.value, "do not point at the true classes" in found.reason) == (1.0, True)


def test_a_fold_is_calibrated_by_the_temperature_of_the_others() -> None:
    rows = simulated(90, seed=2, sharpness=5.0)
    folds = np.array([int(name[1:]) // 3 % 3 for name in rows.patient_ids])
    tested = patients_of_folds(rows, folds)
    said = calibrated_by_other_folds(tested)
    temperature = fit_temperature(rows.take(np.flatnonzero(folds != 1)), part="out_of_fold").value
    here = tested.folds == 1
    assert said[here] == pytest.approx(calibrated(tested.patients.probabilities[here], temperature))
    in_sample = calibrated(tested.patients.probabilities, fit_temperature(rows, part="out_of_fold").value)
    nll = {name: _nll(replace(tested.patients, probabilities=p)) for name, p in (("honest", said), ("own", in_sample))}
    assert nll["own"] < nll["honest"] < _nll(tested.patients)


def test_the_rows_of_the_reliability_table_add_up_to_the_ece() -> None:
    patients = by_patient(simulated(200, seed=3))
    table = reliability_table(simulated(200, seed=3))
    assert sum(row.n_patients for row in table) == 200
    gaps = [row.n_patients / 200 * abs(row.accuracy - row.confidence) for row in table]
    assert sum(gaps) == pytest.approx(slide_metrics(patients.labels, patients.probabilities, CLASSES)["ece"])
    for row in table:
        assert row.low < row.confidence <= row.high
        assert row.accuracy_low <= row.accuracy <= row.accuracy_high
        assert row.accuracy_low < row.accuracy_high


def test_the_risk_coverage_curve_counts_the_surest_patients() -> None:
    top = np.array([0.9, 0.8, 0.8, 0.7, 0.6])
    labels = np.array([0, 0, 1, 0, 1])
    ids = tuple("abcde")
    rows = Predictions(
        slide_ids=ids,
        patient_ids=ids,
        classes=("x", "y"),
        labels=labels,
        probabilities=np.stack([top, 1 - top], axis=1),
    )
    curve = risk_coverage(rows)
    assert curve.coverage == pytest.approx([0.2, 0.6, 0.8, 1.0])
    assert curve.risk == pytest.approx([0, 1 / 3, 1 / 4, 2 / 5])
    assert curve.threshold == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert accuracy_at_coverage(rows, resamples=100).value == pytest.approx(3 / 4)
    assert accuracy_at_coverage(rows, coverage=0.4, resamples=100).value == pytest.approx(
        (1 + 0.5) / 2
    )  # a tie is shared
    with pytest.raises(InputError, match="coverage=0"):
        accuracy_at_coverage(rows, coverage=0.0)


def test_surest_patients_are_right_more_often_and_the_interval_holds_the_value() -> None:
    rows = simulated(200, seed=4)
    found = accuracy_at_coverage(rows, coverage=0.5, resamples=300)
    everyone = accuracy_at_coverage(rows, coverage=1.0, resamples=300)
    patients = by_patient(rows)
    assert everyone.value == pytest.approx((patients.probabilities.argmax(1) == patients.labels).mean())
    assert found.value > everyone.value + 0.05
    assert found.low < found.value < found.high


def test_the_interval_of_the_surest_is_about_that_of_a_loop_over_drawn_patients() -> None:
    """Classes differ in size and in how often they are right, and ids do not sort like probabilities."""
    generator = np.random.default_rng(0)
    labels = (np.arange(300) >= 240).astype(int)
    top = generator.uniform(0.5, 1, 300)
    is_right = generator.random(300) < np.where(labels == 0, 0.95, 0.3 + 0.6 * (top - 0.5))
    said = np.where(is_right, labels, 1 - labels)
    rows = Predictions(
        slide_ids=tuple(f"s{place}" for place in generator.permutation(300)),
        patient_ids=tuple(f"p{place}" for place in generator.permutation(300)),
        classes=("x", "y"),
        labels=labels,
        probabilities=np.where(np.eye(2)[said] > 0, top[:, None], 1 - top[:, None]),
    )
    found = accuracy_at_coverage(rows, coverage=0.5)
    drawn = []
    for _ in range(2000):
        chosen = np.r_[generator.integers(0, 240, 240), generator.integers(240, 300, 60)]
        surest = chosen[np.argsort(-top[chosen])][:150]
        drawn.append(is_right[surest].mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.02)


def test_patients_are_drawn_within_their_class_and_stay_with_their_weights() -> None:
    """One class always right and surest, the other always wrong: no draw within classes changes the accuracy."""
    generator = np.random.default_rng(1)
    labels = generator.permutation((np.arange(50) >= 40).astype(int))
    top = np.where(labels == 0, 0.9, 0.6)
    rows = Predictions(
        slide_ids=tuple(f"s{place}" for place in range(50)),
        patient_ids=tuple(f"p{place}" for place in range(50)),
        classes=("x", "y"),
        labels=labels,
        probabilities=np.stack([top, 1 - top], axis=1),
    )
    found = accuracy_at_coverage(rows, coverage=1.0)
    assert found.value == 0.8
    assert (found.low, found.high) == share_interval(40, 50)


def test_the_surest_without_an_error_have_the_score_interval_of_as_many_patients() -> None:
    rows = simulated(100, seed=1)
    right = replace(rows, probabilities=0.1 + 0.7 * np.eye(len(rows.classes))[rows.labels])
    found = accuracy_at_coverage(right, coverage=0.5)
    assert (found.low, found.high) == pytest.approx((50 / (50 + 1.959964**2), 1.0))


def test_whoever_has_not_exactly_one_class_or_an_unusual_slide_is_referred() -> None:
    sets = np.array([[True, False], [True, True], [False, False], [False, True]])
    found = referrals(["p1", "p2", "p3", "p4"], ["x", "y"], sets, {"p4": ["far from every training slide"]})
    assert [one.reasons for one in found] == [
        (),
        ("several classes fit",),
        ("no class fits",),
        ("far from every training slide",),
    ]
    assert [one.classes for one in found] == [("x",), ("x", "y"), (), ("y",)]
    figures = referral_figures(found, np.array([0, 0, 0, 1]), np.array([0, 1, 0, 1]))
    assert (figures.share_referred, figures.accuracy_kept) == (0.75, 1.0)
    assert figures.accuracy_referred == pytest.approx(2 / 3)
    assert figures.accuracy_low < 1.0
    assert np.isnan(referral_figures(found[1:2], np.array([0]), np.array([0])).accuracy_kept)


def _vectors(n_patients: int, seed: int, *, shift: float = 0.0, slides: int = 2) -> tuple[np.ndarray, list[str]]:
    """Slides of a patient resemble one another; more dimensions than a plain covariance could hold."""
    generator = np.random.default_rng(seed)
    own = generator.normal(size=(n_patients, 64)) * np.geomspace(2, 0.1, 64)
    rows = np.repeat(own, slides, axis=0) + 0.3 * generator.normal(size=(n_patients * slides, 64)) + 1
    rows[:, 40:] += shift
    return rows, [f"p{row // slides}" for row in range(n_patients * slides)]


@pytest.mark.parametrize("fit", [fit_nearest, fit_gaussian])
def test_like_patients_are_seldom_unusual_and_others_are(fit: object) -> None:
    rates = []
    for seed in range(12):
        fitted = fit(*_vectors(60, seed))
        new, names = _vectors(200, 1000 + seed)
        worst = np.maximum.reduceat(fitted.scores(new), range(0, len(new), 2))
        rates.append((worst > fitted.threshold).mean())
        assert len(set(names)) == len(worst)
        far, _ = _vectors(20, 2000 + seed, shift=-3.0)
        assert (fitted.scores(far) > fitted.threshold).mean() > 0.9
    assert 0.02 <= np.mean(rates) <= 0.09


def test_mahalanobis_is_its_formula_and_a_slide_is_no_neighbour_of_its_own_patient() -> None:
    rows, names = _vectors(40, 0)
    fitted = fit_gaussian(rows, names)
    gap = rows[0] - rows.mean(axis=0)
    assert fitted.scores(rows[:1])[0] == pytest.approx(np.sqrt(gap @ fitted.precision @ gap))
    copies = np.repeat(rows[::2], 2, axis=0)  # each patient has two equal slides
    assert fit_nearest(copies, names, k=1).threshold > 0.05
    direction = rows[:1] / np.linalg.norm(rows[:1])
    others = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    nearest = fit_nearest(rows, names, k=3)
    assert nearest.scores(rows[:1])[0] == pytest.approx(np.sort(np.linalg.norm(others - direction, axis=1))[2])


def test_too_few_patients_or_bad_vectors_are_refused() -> None:
    rows, names = _vectors(18, 0)
    for fit in (fit_nearest, fit_gaussian):
        with pytest.raises(InputError, match=r"18 training patients, alpha=0\.05 needs 19"):
            fit(rows, names)
        with pytest.raises(InputError, match="not finite"):
            fit(np.full((40, 3), np.nan), [f"p{row}" for row in range(40)])
    with pytest.raises(InputError, match="length 0"):
        fit_nearest(np.zeros((40, 3)), [f"p{row}" for row in range(40)])


def test_the_share_of_background_tiles_is_counted_and_its_threshold_is_over_patients() -> None:
    similarity = np.array([[0.1, 0.3, 0.2], [0.5, 0.1, 0.2], [0.0, 0.1, 0.9], [0.2, 0.1, 0.3]])
    assert background_share(similarity, np.array([False, False, True])) == 0.5
    assert np.isnan(background_share(similarity[:0], np.array([False, False, True])))
    with pytest.raises(InputError, match="something else"):
        background_share(similarity, np.array([True, True, True]))
    scores = (np.arange(40) ^ 1) / 40  # of each patient's two slides the first is the more unusual
    assert (
        share_threshold(scores, [f"p{row // 2}" for row in range(40)], alpha=0.1) == 37 / 40
    )  # the second largest of 20


def test_a_patient_with_one_unusual_slide_is_unusual_and_says_how() -> None:
    found = unusual_patients(
        ["p1", "p1", "p2", "p3", "p3"],
        {"far": np.array([False, True, False, True, True]), "glass": np.array([False, False, False, True, False])},
    )
    assert found == {"p1": ["far"], "p3": ["far", "glass"]}
