"""Prediction sets that hold a patient's class as often as promised (split conformal prediction)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int
from scipy.stats import beta, betabinom

from feature_extraction.errors import InputError
from mil.cohort import listed
from mil.metrics.classification import Predictions, by_patient
from mil.metrics.shares import share_interval

Score = Literal["lac", "aps"]
ALPHA = 0.1
BAND = (0.05, 0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Thresholds of prediction sets.

    Attributes:
        score: ``lac`` or ``aps``.
        alpha: Share of patients whose class may be missing from their set.
        classes: Names of the columns.
        thresholds: One a class; a class is in the set when its score is not above it.
        n_patients: Patients behind each threshold.
        is_class_conditional: Whether each class has a threshold of its own.
    """

    score: Score
    alpha: float
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    n_patients: tuple[int, ...]
    is_class_conditional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageBand:
    """Where realised coverage lies for 90 % of calibrations.

    Attributes:
        low: 5th percentile.
        mean: Expected coverage.
        high: 95th percentile.
    """

    low: float
    mean: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFigures:
    """What sets did on patients with known classes.

    Attributes:
        n_patients: How many there are.
        coverage: Share whose class is in their set.
        coverage_low: Lower end of its 95 % interval.
        coverage_high: Upper end.
        coverage_of_class: The same for the patients of each class; nan for a class without one.
        mean_size: Classes a set.
        share_single: Share of sets with one class.
        share_empty: Share without any.
        accuracy_of_single: Share of the single classes that are right; nan without one.
    """

    n_patients: int
    coverage: float
    coverage_low: float
    coverage_high: float
    coverage_of_class: tuple[float, ...]
    mean_size: float
    share_single: float
    share_empty: float
    accuracy_of_single: float


def conformity_scores(
    probabilities: Float64[np.ndarray, "patient class"], score: Score
) -> Float64[np.ndarray, "patient class"]:
    """How badly each class fits; a set takes those that fit well enough.

    ``lac``: ``1 - p_k``; the smallest sets on average, and none at all for a patient like no class (Sadinle, Lei &
    Wasserman 2019). ``aps``: the probability ranked above the class, equal ones included, ``sum_j p_j [p_j > p_k]``:
    the score of Romano, Sesia & Candes (2020) with its random number fixed at 1, so that a patient's set is the same
    each time and never empty.
    """
    if score == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    above = np.cumsum(ranked, axis=1) - ranked
    for column in range(1, probabilities.shape[1]):  # equal probabilities are equal scores
        is_tied = ranked[:, column] == ranked[:, column - 1]
        above[is_tied, column] = above[is_tied, column - 1]
    scores = np.empty_like(probabilities)
    np.put_along_axis(scores, order, above, axis=1)
    return scores


def conformal_quantile(scores: Float64[np.ndarray, " patient"], alpha: float) -> float:
    """The ``n + 1 - l``-th smallest score, ``l = floor((n + 1) alpha)``; infinite when l is 0 (Papadopoulos 2002)."""
    n_above = allowed_misses(len(scores), alpha)
    return float(np.sort(scores)[len(scores) - n_above]) if n_above else float("inf")


def allowed_misses(n_patients: int, alpha: float) -> int:
    """``floor((n + 1) alpha)``; 0 says that n patients are too few for this alpha."""
    return int(np.floor((n_patients + 1) * alpha + 1e-9))  # .29 * 100 is 28.999… in binary


def fewest_patients(alpha: float) -> int:
    """The least n with ``floor((n + 1) alpha) >= 1``: 9 for .1, 19 for .05."""
    return int(np.ceil(1 / alpha - 1e-9)) - 1


def coverage_band(n_patients: int, alpha: float, *, n_tested: int | None = None) -> CoverageBand:
    """5th percentile, mean and 95th percentile of realised coverage after calibration on n patients.

    Over calibrations the coverage is ``Beta(n + 1 - l, l)``, ``l = floor((n + 1) alpha)``, when no two scores are
    equal, and at least that otherwise (Vovk 2012; Angelopoulos & Bates 2023).

    Args:
        n_patients: Patients calibrated on.
        alpha: Of the sets.
        n_tested: Patients that the coverage is counted on: the band is then that of a beta-binomial share, which is
            wider; None for the coverage itself.

    Raises:
        InputError: Too few patients for this alpha.
    """
    n_above = allowed_misses(n_patients, alpha)
    _require_enough(n_patients, alpha)
    shape = (n_patients + 1 - n_above, n_above)
    if n_tested is None:
        low, high = beta.ppf(BAND, *shape)
    else:
        low, high = betabinom.ppf(BAND, n_tested, *shape) / n_tested
    return CoverageBand(low=float(low), mean=shape[0] / (n_patients + 1), high=float(high))


def calibrate(
    predictions: Predictions, *, score: Score = "lac", alpha: float = ALPHA, is_class_conditional: bool = False
) -> Calibration:
    """Thresholds from patients that the model had not seen; each patient counts once, by the mean of its slides.

    Class-conditional sets hold the class of ``1 - alpha`` of the patients *of each class* (Vovk 2012; Sadinle et al.
    2019); others may leave out one rare class and keep the promise on average.

    Args:
        predictions: Validation or out-of-fold predictions, of slides or patients.
        score: `conformity_scores`.
        alpha: Share of patients whose class may be missing.
        is_class_conditional: A threshold for each class.

    Raises:
        InputError: ``alpha`` outside 0 to 1, or too few patients (of a class): 9 at .1.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha={alpha}: expected a share between 0 and 1")
    patients = by_patient(predictions)
    n_classes = len(patients.classes)
    rows = np.arange(len(patients.labels))
    scores = conformity_scores(patients.probabilities, score)[rows, patients.labels]
    if is_class_conditional:
        groups = [scores[patients.labels == place] for place in range(n_classes)]
        _require_enough_of_each(patients, alpha)
    else:
        groups = [scores] * n_classes
        _require_enough(len(scores), alpha)
    return Calibration(
        score=score,
        alpha=alpha,
        classes=patients.classes,
        thresholds=tuple(conformal_quantile(group, alpha) for group in groups),
        n_patients=tuple(len(group) for group in groups),
        is_class_conditional=is_class_conditional,
    )


def has_enough_of_each(predictions: Predictions, alpha: float = ALPHA) -> bool:
    """Whether `calibrate` can give each class a threshold of its own."""
    patients = by_patient(predictions)
    counts = np.bincount(patients.labels, minlength=len(patients.classes))
    return int(counts.min()) >= fewest_patients(alpha)


def prediction_sets(
    calibration: Calibration, probabilities: Float64[np.ndarray, "patient class"]
) -> Bool[np.ndarray, "patient class"]:
    """Which classes are in each set; the columns must be the calibration's classes.

    Raises:
        InputError: Another number of columns.
    """
    if probabilities.shape[1] != len(calibration.classes):
        raise InputError(
            f"prediction sets: got {probabilities.shape[1]} classes, calibrated for {listed(calibration.classes)}"
        )
    return conformity_scores(probabilities, calibration.score) <= np.array(calibration.thresholds)


def set_figures(sets: Bool[np.ndarray, "patient class"], labels: Int[np.ndarray, " patient"]) -> SetFigures:
    """Coverage and sizes on patients who were not calibrated on.

    Raises:
        InputError: No patient.
    """
    if len(labels) == 0:
        raise InputError("prediction sets: no patient with a known class; expected at least one")
    is_held = sets[np.arange(len(labels)), labels]
    sizes = sets.sum(axis=1)
    is_single = sizes == 1
    low, high = share_interval(int(is_held.sum()), len(labels))
    return SetFigures(
        n_patients=len(labels),
        coverage=float(is_held.mean()),
        coverage_low=low,
        coverage_high=high,
        coverage_of_class=tuple(_share(is_held[labels == place]) for place in range(sets.shape[1])),
        mean_size=float(sizes.mean()),
        share_single=float(is_single.mean()),
        share_empty=float((sizes == 0).mean()),
        accuracy_of_single=_share(is_held[is_single]),
    )


def _share(hits: np.ndarray) -> float:
    return float(hits.mean()) if len(hits) else float("nan")


def _require_enough(n_patients: int, alpha: float) -> None:
    if not allowed_misses(n_patients, alpha):
        raise InputError(
            f"prediction sets: {n_patients} patients to calibrate on, alpha={alpha:g} needs {fewest_patients(alpha)}; "
            "give more, or a larger alpha"
        )


def _require_enough_of_each(patients: Predictions, alpha: float) -> None:
    counts = np.bincount(patients.labels, minlength=len(patients.classes))
    few = [
        f"{name} ({n})" for name, n in zip(patients.classes, counts, strict=True) if not allowed_misses(int(n), alpha)
    ]
    if few:
        raise InputError(
            f"class-conditional prediction sets: too few patients of {listed(few)}, alpha={alpha:g} needs "
            f"{fewest_patients(alpha)} of each class; give more, a larger alpha, or sets that are not class-conditional"
        )
