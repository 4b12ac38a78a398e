"""Estimates with intervals: how far a figure could move with other patients of the same kind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int

from feature_extraction.errors import InputError
from mil.cohort import listed
from mil.metrics.bca import Sampling, influences, interval, p_value
from mil.metrics.classification import Predictions, by_patient, metric_names, undefined_reasons, weighted_metrics
from mil.metrics.resampling import leaving, patient_draws

Level = Literal["slide", "patient"]
LEVELS: tuple[Level, ...] = ("slide", "patient")
RESAMPLES = 2000
VALUES_AT_ONCE = 4_000_000
"""Weights held in memory at once; more slides mean fewer resamples at a time."""
MOST_UNDEFINED = 0.05
"""Share of resamples that may not define a figure, and are left out of its interval; with more there is none."""
Figures = Callable[[Float64[np.ndarray, "resample slide"]], Mapping[str, Float64[np.ndarray, " resample"]]]
"""Figures by name from rows of weights, which say how much each slide counts."""


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
        p: Two-sided, that there is none (`mil.metrics.bca.p_value`); below .05 only where the interval leaves out 0;
            nan when undefined.
    """

    estimate: Estimate
    p: float


def bootstrap_interval(
    predictions: Predictions, *, level: Level = "slide", resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Every figure with its 95 % interval over resampled patients, by name.

    Patients are drawn with replacement within each class, with all their slides: slides of a patient are not
    independent, and a resample without a class has no balanced accuracy (Efron & Tibshirani 1993, ch. 13).

    Args:
        predictions: Of slides, also for the patient level.
        level: ``patient`` averages each patient's slides first; the draws are the same.
        resamples: How many.
        seed: Of the draws.
    """
    rows = _at(predictions, level)
    samplings = _samplings(_figures(rows), rows.patient_ids, _classes(rows), resamples=resamples, seed=seed)
    counts = (len(set(predictions.patient_ids)), len(predictions.slide_ids))
    reasons = _reasons(rows)
    return {name: _estimate(one, counts, reasons.get(name, "")) for name, one in samplings.items()}


def bootstrap_figures(
    figures: Figures, patient_ids: Sequence[str], strata: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Any weighted figures with their 95 % intervals over resampled patients, by name.

    Patients are drawn with replacement within each stratum, with all their rows.

    Args:
        figures: Of the rows; nan where undefined.
        patient_ids: Of each row.
        strata: Of each row, the same for all rows of a patient: what the number of patients of is fixed.
        resamples: How many.
        seed: Of the draws.
    """
    samplings = _samplings(figures, patient_ids, strata, resamples=resamples, seed=seed)
    counts = (len(set(patient_ids)), len(patient_ids))
    return {name: _estimate(one, counts) for name, one in samplings.items()}


def bootstrap_differences(
    figures: Figures, patient_ids: Sequence[str], strata: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """`bootstrap_figures` of figures that are differences, each with its p."""
    samplings = _samplings(figures, patient_ids, strata, resamples=resamples, seed=seed)
    counts = (len(set(patient_ids)), len(patient_ids))
    return {name: _difference(one, counts) for name, one in samplings.items()}


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
    samplings = _samplings(
        subtracted(_figures(rows[0]), _figures(rows[1])),
        rows[0].patient_ids,
        _classes(rows[0]),
        resamples=resamples,
        seed=seed,
    )
    counts = (len(set(first.patient_ids)), len(first.slide_ids))
    reasons = _reasons(rows[1]) | _reasons(rows[0])
    return {name: _difference(one, counts, reasons.get(name, "")) for name, one in samplings.items()}


def subtracted(first: Figures, second: Figures) -> Figures:
    """First minus second, figure by figure."""

    def figures(weights: np.ndarray) -> Mapping[str, Float64[np.ndarray, " resample"]]:
        other = second(weights)
        return {name: values - other[name] for name, values in first(weights).items()}

    return figures


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


def _figures(rows: Predictions) -> Figures:
    return lambda weights: weighted_metrics(rows.labels, rows.probabilities, rows.classes, weights)


def _classes(rows: Predictions) -> list[str]:
    return [rows.classes[label] for label in rows.labels]


def _samplings(
    figures: Figures, patient_ids: Sequence[str], strata: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Sampling]:
    """Each figure on all rows, on every resample, and without each patient; the draws depend on patients and seed."""
    _, first, places = np.unique(np.array(patient_ids), return_index=True, return_inverse=True)
    of_patient = np.unique(np.array(strata), return_inverse=True)[1][first]
    at_once = max(1, VALUES_AT_ONCE // len(places))
    values = figures(np.ones((1, len(places))))
    drawn = _on_each(figures, patient_draws(of_patient, resamples=resamples, seed=seed, at_once=at_once), places)
    groups = leaving(of_patient)
    without = _on_each(figures, groups.weights(at_once=at_once), places)
    return {
        name: Sampling(
            value=float(value[0]),
            drawn=drawn[name][np.isfinite(drawn[name])],
            undefined=1 - float(np.isfinite(drawn[name]).mean()),
            influence=influences(without.get(name, np.zeros(0)), groups.of_stratum, groups.staying),
            strata=groups.of_stratum,
        )
        for name, value in values.items()
    }


def _on_each(
    figures: Figures, weights: Iterator[Float64[np.ndarray, "draw patient"]], places: Int[np.ndarray, " row"]
) -> dict[str, Float64[np.ndarray, " draw"]]:
    """Every figure for every row of patients' weights; ``places`` has the patient of each row of the figures."""
    blocks = [figures(block[:, places]) for block in weights]
    return {name: np.concatenate([block[name] for block in blocks]) for name in (blocks[0] if blocks else ())}


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


def _difference(sampling: Sampling, counts: tuple[int, int], reason: str = "") -> Difference:
    estimate = _estimate(sampling, counts, reason)
    return Difference(estimate=estimate, p=np.nan if estimate.reason else p_value(sampling))


def _estimate(sampling: Sampling, counts: tuple[int, int], reason: str = "") -> Estimate:
    reason = reason or _no_interval(sampling, counts[0])
    low, high = (np.nan, np.nan) if reason else interval(sampling)
    return Estimate(value=sampling.value, low=low, high=high, n_patients=counts[0], n_slides=counts[1], reason=reason)


def _no_interval(sampling: Sampling, n_patients: int) -> str:
    if np.isnan(sampling.value):
        return "not defined on these slides"
    if n_patients < 2:
        return "no interval: a single patient"
    undefined = sampling.undefined
    return f"no interval: not defined in {undefined:.0%} of the resamples" if undefined > MOST_UNDEFINED else ""


def _is_same_cohort(first: Predictions, second: Predictions) -> bool:
    return (
        first.slide_ids == second.slide_ids
        and first.patient_ids == second.patient_ids
        and first.classes == second.classes
        and bool(np.array_equal(first.labels, second.labels))
    )
