"""What two methods differ by on the same patients, with intervals and p."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from feature_extraction.errors import InputError
from mil.metrics.bca import Sampling, p_value
from mil.metrics.bootstrap import RESAMPLES, Figures, samplings
from mil.metrics.classification import Predictions
from mil.metrics.intervals import (
    NONE_KNOWN,
    Estimate,
    Level,
    at_level,
    classes_of,
    estimate_of,
    figures_of,
    reasons_for_none,
)


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


def bootstrap_differences(
    figures: Figures,
    patient_ids: Sequence[str],
    strata: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    reasons: Mapping[str, str] = NONE_KNOWN,
) -> dict[str, Difference]:
    """`bootstrap_figures` of figures that are differences, each with its p."""
    found = samplings(figures, patient_ids, strata, resamples=resamples, seed=seed)
    counts = (len(set(patient_ids)), len(patient_ids))
    return {name: _difference(one, counts, reasons.get(name, "")) for name, one in found.items()}


def paired_difference(
    first: Predictions, second: Predictions, *, level: Level = "slide", resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """First minus second for every figure, both computed on the same drawn patients.

    Raises:
        InputError: Not the same slides, patients, classes and labels; `on_same_slides` makes them so.
    """
    _demand_same_cohort(first, second)
    rows = (at_level(first, level), at_level(second, level))
    found = samplings(
        subtracted(figures_of(rows[0]), figures_of(rows[1])),
        rows[0].patient_ids,
        classes_of(rows[0]),
        resamples=resamples,
        seed=seed,
    )
    counts = (len(set(first.patient_ids)), len(first.slide_ids))
    reasons = reasons_for_none(rows[1]) | reasons_for_none(rows[0])
    return {name: _difference(one, counts, reasons.get(name, "")) for name, one in found.items()}


def subtracted(first: Figures, second: Figures) -> Figures:
    """First minus second, figure by figure."""

    def figures(weights: np.ndarray) -> Mapping[str, Float64[np.ndarray, " resample"]]:
        other = second(weights)
        return {name: values - other[name] for name, values in first(weights).items()}

    return figures


def on_same_slides(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """The slides that both methods predicted, in the order of their ids.

    Raises:
        InputError: No slide in common, or not of the same patients, classes and labels.
    """
    common = sorted(set(first.slide_ids) & set(second.slide_ids))
    if not common:
        raise InputError("paired difference: the two methods have no slide in common")
    places = [{name: row for row, name in enumerate(one.slide_ids)} for one in (first, second)]
    one, other = (np.array([place[name] for name in common]) for place in places)
    chosen = first.take(one), second.take(other)
    _demand_same_cohort(*chosen)
    return chosen


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for several comparisons, in the order given; nan stays nan and does not count."""
    adjusted = [float("nan")] * len(p_values)
    defined = sorted((p, place) for place, p in enumerate(p_values) if not np.isnan(p))
    running = 0.0
    for rank, (p, place) in enumerate(defined):
        running = max(running, min(1.0, (len(defined) - rank) * p))
        adjusted[place] = running
    return adjusted


def _difference(sampling: Sampling, counts: tuple[int, int], reason: str) -> Difference:
    estimate = estimate_of(sampling, counts, reason)
    return Difference(estimate=estimate, p=np.nan if estimate.reason else p_value(sampling))


def _demand_same_cohort(first: Predictions, second: Predictions) -> None:
    if (
        first.slide_ids != second.slide_ids
        or first.patient_ids != second.patient_ids
        or first.classes != second.classes
        or not np.array_equal(first.labels, second.labels)
    ):
        raise InputError(
            "paired difference: the two methods did not predict the same slides with the same patients and labels"
        )
