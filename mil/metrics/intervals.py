"""Estimates with intervals: how far a figure could move with other patients of the same kind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from feature_extraction.errors import InputError
from mil.cohort import listed
from mil.metrics.classification import Predictions, by_patient, metric_names, undefined_reasons, weighted_metrics

Level = Literal["slide", "patient"]
LEVELS: tuple[Level, ...] = ("slide", "patient")
RESAMPLES = 2000
CONFIDENCE = 0.95
VALUES_AT_ONCE = 4_000_000
"""Weights held in memory at once; more slides mean fewer resamples at a time."""
MOST_UNDEFINED = 0.05
"""Share of resamples that may not define a figure, and are left out of its interval; with more there is none."""
Figures = Callable[[Float64[np.ndarray, "resample slide"]], Mapping[str, Float64[np.ndarray, " resample"]]]
"""Figures by name from rows of weights, which say how often each slide is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: The figure on all slides; nan when undefined.
        low: Lower end of the 95 % interval; nan when there is none.
        high: Upper end.
        n_patients: Patients it is made from.
        n_slides: Their slides.
        reason: Why the value or the interval is not defined, else empty.
    """

    value: float
    low: float
    high: float
    n_patients: int
    n_slides: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """First method minus second on the same patients.

    Attributes:
        estimate: The difference and its interval.
        p: Two-sided bootstrap p: twice the share of resamples on the other side of zero; nan when undefined.
    """

    estimate: Estimate
    p: float


def bootstrap_interval(
    predictions: Predictions, *, level: Level = "slide", resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Every figure with its 95 % percentile interval over resampled patients, by name.

    Patients are drawn with replacement within each class, with all their slides: slides of a patient are not
    independent, and a resample without a class has no balanced accuracy (Efron & Tibshirani 1993, ch. 13).

    Args:
        predictions: Of slides, also for the patient level.
        level: ``patient`` averages each patient's slides first; the draws are the same.
        resamples: How many.
        seed: Of the draws.
    """
    rows = _at(predictions, level)
    values = _values(rows, np.ones((1, len(rows.labels))))
    drawn = _resampled(predictions, rows, resamples=resamples, seed=seed)
    counts = (len(set(predictions.patient_ids)), len(predictions.slide_ids))
    reasons = _reasons(rows)
    return {name: _estimate(float(values[name][0]), drawn[name], counts, reasons.get(name, "")) for name in drawn}


def bootstrap_figures(
    figures: Figures, patient_ids: Sequence[str], strata: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Any weighted figures with their 95 % percentile intervals over resampled patients, by name.

    Patients are drawn with replacement within each stratum, with all their rows.

    Args:
        figures: Of the rows; nan where undefined.
        patient_ids: Of each row.
        strata: Of each row, the same for all rows of a patient: what the number of patients of is fixed.
        resamples: How many.
        seed: Of the draws.
    """
    drawn, n_patients = _draws(figures, patient_ids, strata, resamples=resamples, seed=seed)
    counts = (n_patients, len(patient_ids))
    return {name: _of_draws(value, row, counts)[0] for name, (value, row) in drawn.items()}


def bootstrap_differences(
    figures: Figures, patient_ids: Sequence[str], strata: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """`bootstrap_figures` of figures that are differences, each with its p."""
    drawn, n_patients = _draws(figures, patient_ids, strata, resamples=resamples, seed=seed)
    counts = (n_patients, len(patient_ids))
    found: dict[str, Difference] = {}
    for name, (value, row) in drawn.items():
        estimate, defined = _of_draws(value, row, counts)
        found[name] = Difference(estimate=estimate, p=np.nan if estimate.reason else _two_sided(defined))
    return found


def _draws(
    figures: Figures, patient_ids: Sequence[str], strata: Sequence[str], *, resamples: int, seed: int
) -> tuple[dict[str, tuple[float, Float64[np.ndarray, " resample"]]], int]:
    """Each figure with its value on every resample, and the number of patients."""
    patients, first, places = np.unique(np.array(patient_ids), return_index=True, return_inverse=True)
    groups = np.unique(np.array(strata), return_inverse=True)[1][first]
    values = figures(np.ones((1, len(places))))
    at_once = max(1, VALUES_AT_ONCE // len(places))
    blocks = [
        figures(counts[:, places]) for counts in patient_draws(groups, resamples=resamples, seed=seed, at_once=at_once)
    ]
    drawn = {
        name: (float(value[0]), np.concatenate([block[name] for block in blocks])) for name, value in values.items()
    }
    return drawn, len(patients)


def _of_draws(value: float, drawn: np.ndarray, counts: tuple[int, int]) -> tuple[Estimate, np.ndarray]:
    """The estimate, and the resamples that define the figure."""
    defined = drawn[np.isfinite(drawn)]
    return _estimate(value, defined, counts, _no_interval(value, drawn, counts[0])), defined


def paired_difference(
    first: Predictions, second: Predictions, *, level: Level = "slide", resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """First minus second for every figure, both computed on the same drawn patients.

    Raises:
        InputError: Not the same slides, patients, classes and labels; `on_same_slides` makes them so.
    """
    if not _is_same_cohort(first, second):
        raise InputError("paired difference: the two methods did not predict the same slides with the same labels")
    rows = (_at(first, level), _at(second, level))
    once = np.ones((1, len(rows[0].labels)))
    values = [_values(one, once) for one in rows]
    drawn = [_resampled(first, one, resamples=resamples, seed=seed) for one in rows]
    counts = (len(set(first.patient_ids)), len(first.slide_ids))
    reasons = _reasons(rows[1]) | _reasons(rows[0])
    found: dict[str, Difference] = {}
    for name in drawn[0]:
        differences = drawn[0][name] - drawn[1][name]
        value = float(values[0][name][0] - values[1][name][0])
        estimate = _estimate(value, differences, counts, reasons.get(name, ""))
        found[name] = Difference(estimate=estimate, p=_two_sided(differences) if not estimate.reason else np.nan)
    return found


def on_same_slides(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """The slides that both methods predicted, in the order of their ids.

    Raises:
        InputError: No slide in common.
    """
    common = sorted(set(first.slide_ids) & set(second.slide_ids))
    if not common:
        raise InputError("paired difference: the two methods have no slide in common")
    places = [{name: row for row, name in enumerate(one.slide_ids)} for one in (first, second)]
    one, other = (np.array([place[name] for name in common]) for place in places)
    return first.take(one), second.take(other)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for several comparisons, in the order given; nan stays nan and does not count."""
    adjusted = [float("nan")] * len(p_values)
    defined = sorted((p, place) for place, p in enumerate(p_values) if not np.isnan(p))
    running = 0.0
    for rank, (p, place) in enumerate(defined):
        running = max(running, min(1.0, (len(defined) - rank) * p))
        adjusted[place] = running
    return adjusted


def _at(predictions: Predictions, level: Level) -> Predictions:
    return by_patient(predictions) if level == "patient" else predictions


def _values(rows: Predictions, weights: np.ndarray) -> dict[str, Float64[np.ndarray, " resample"]]:
    return weighted_metrics(rows.labels, rows.probabilities, rows.classes, weights)


def _resampled(
    predictions: Predictions, rows: Predictions, *, resamples: int, seed: int
) -> dict[str, Float64[np.ndarray, " resample"]]:
    """Every figure of ``rows`` on each resample; the draws depend on the patients and the seed alone."""
    patients = by_patient(predictions)
    column = {name: place for place, name in enumerate(patients.patient_ids)}
    places = np.array([column[name] for name in rows.patient_ids])
    at_once = max(1, VALUES_AT_ONCE // max(len(rows.labels), len(patients.labels)))
    blocks = [
        _values(rows, counts[:, places])
        for counts in patient_draws(patients.labels, resamples=resamples, seed=seed, at_once=at_once)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in metric_names(rows.classes)}


def patient_draws(
    labels: np.ndarray, *, resamples: int, seed: int, at_once: int
) -> Iterator[Float64[np.ndarray, "resample patient"]]:
    """How often each patient is drawn, class by class as many as there are; a block of resamples at a time."""
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for start in range(0, resamples, at_once):
        counts = np.zeros((min(at_once, resamples - start), len(labels)))
        for group in groups:
            counts[:, group] = generator.multinomial(len(group), np.full(len(group), 1 / len(group)), size=len(counts))
        yield counts


def _reasons(rows: Predictions) -> dict[str, str]:
    """Undefined figures, and all figures when a class has a single patient: drawing it again says nothing of others."""
    undefined = undefined_reasons(rows.labels, rows.probabilities, rows.classes)
    single = [
        name
        for index, name in enumerate(rows.classes)
        if len({patient for patient, label in zip(rows.patient_ids, rows.labels, strict=True) if label == index}) == 1
    ]
    if not single:
        return undefined
    reason = f"no interval: a single patient of class {listed(single)}"
    return {name: undefined.get(name, reason) for name in metric_names(rows.classes)}


def _no_interval(value: float, drawn: np.ndarray, n_patients: int) -> str:
    undefined = 1 - float(np.isfinite(drawn).mean())
    if np.isnan(value):
        return "not defined on these slides"
    if n_patients < 2:
        return "no interval: a single patient"
    return f"no interval: not defined in {undefined:.0%} of the resamples" if undefined > MOST_UNDEFINED else ""


def _estimate(value: float, drawn: np.ndarray, counts: tuple[int, int], reason: str) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = (np.nan, np.nan) if reason else np.quantile(drawn, (tail, 1 - tail))
    return Estimate(
        value=value, low=float(low), high=float(high), n_patients=counts[0], n_slides=counts[1], reason=reason
    )


def _two_sided(differences: np.ndarray) -> float:
    """Never 0, as the sample itself counts as one more resample (Davison & Hinkley 1997, eq. 4.11)."""
    n = len(differences) + 1
    below, above = ((differences <= 0).sum() + 1) / n, ((differences >= 0).sum() + 1) / n
    return float(min(1.0, 2 * min(below, above)))


def _is_same_cohort(first: Predictions, second: Predictions) -> bool:
    return (
        first.slide_ids == second.slide_ids
        and first.patient_ids == second.patient_ids
        and first.classes == second.classes
        and bool(np.array_equal(first.labels, second.labels))
    )
