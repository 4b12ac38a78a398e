"""Estimates with intervals: how far a figure could move with other patients of the same kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np

from mil.cohort import listed
from mil.metrics.bca import Sampling, interval
from mil.metrics.bootstrap import RESAMPLES, Figures, samplings
from mil.metrics.classification import Predictions, by_patient, metric_names, undefined_reasons, weighted_metrics
from mil.metrics.shares import patients_behind, share_interval

Level = Literal["slide", "patient"]
LEVELS: tuple[Level, ...] = ("slide", "patient")
MOST_UNDEFINED = 0.05
"""Share of resamples that may not define a figure, and are left out of its interval; with more there is none."""
NONE_KNOWN: Mapping[str, str] = MappingProxyType({})


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
    rows = at_level(predictions, level)
    found = samplings(figures_of(rows), rows.patient_ids, classes_of(rows), resamples=resamples, seed=seed)
    counts = (len(set(predictions.patient_ids)), len(predictions.slide_ids))
    reasons = reasons_for_none(rows)
    estimates = {name: estimate_of(one, counts, reasons.get(name, "")) for name, one in found.items()}
    return where_all_agree(estimates, rows)


def where_all_agree(estimates: Mapping[str, Estimate], rows: Predictions) -> dict[str, Estimate]:
    """Shares of 0 or 1, which resampled patients cannot move, with the score interval of as many patients.

    Args:
        estimates: By name.
        rows: What they were made from, at their level.
    """
    behind = patients_behind(rows)
    return {
        name: _as_share(one, behind[name]) if name in behind and not one.reason and one.value in (0, 1) else one
        for name, one in estimates.items()
    }


def _as_share(estimate: Estimate, n: int) -> Estimate:
    low, high = share_interval(n if estimate.value else 0, n)
    return replace(estimate, low=low, high=high)


def bootstrap_figures(
    figures: Figures,
    patient_ids: Sequence[str],
    strata: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    reasons: Mapping[str, str] = NONE_KNOWN,
) -> dict[str, Estimate]:
    """Any weighted figures with their 95 % intervals over resampled patients, by name.

    Patients are drawn with replacement within each stratum, with all their rows.

    Args:
        figures: Of the rows; nan where undefined.
        patient_ids: Of each row.
        strata: Of each row: the number of patients of each stays as it is.
        resamples: How many.
        seed: Of the draws.
        reasons: Why figures have no interval, where that is known beforehand.

    Raises:
        InputError: No row.
    """
    found = samplings(figures, patient_ids, strata, resamples=resamples, seed=seed)
    counts = (len(set(patient_ids)), len(patient_ids))
    return {name: estimate_of(one, counts, reasons.get(name, "")) for name, one in found.items()}


def at_level(predictions: Predictions, level: Level) -> Predictions:
    """The slides, or their patients (`mil.metrics.classification.by_patient`)."""
    return by_patient(predictions) if level == "patient" else predictions


def figures_of(rows: Predictions) -> Figures:
    """Every figure of the rows, of weights."""
    return lambda weights: weighted_metrics(rows.labels, rows.probabilities, rows.classes, weights)


def classes_of(rows: Predictions) -> list[str]:
    """Name of the true class of each row."""
    return [rows.classes[label] for label in rows.labels]


def reasons_for_none(rows: Predictions) -> dict[str, str]:
    """Undefined figures, and all figures when a class has a single patient: drawing it again says nothing of others.

    Args:
        rows: Slides or patients.
    """
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


def estimate_of(sampling: Sampling, counts: tuple[int, int], reason: str) -> Estimate:
    """The value and its interval.

    Args:
        sampling: Of a figure.
        counts: Patients and slides.
        reason: Why there is no interval; empty where nothing is known beforehand.
    """
    reason = reason or _no_interval(sampling, counts[0])
    low, high = (np.nan, np.nan) if reason else interval(sampling)
    return Estimate(value=sampling.value, low=low, high=high, n_patients=counts[0], n_slides=counts[1], reason=reason)


def _no_interval(sampling: Sampling, n_patients: int) -> str:
    if np.isnan(sampling.value):
        return "not defined on these slides"
    if n_patients < 2:
        return "no interval: a single patient"
    if len(sampling.influence) == 0:
        return "no interval: every patient is the only one of a class"
    undefined = sampling.undefined
    return f"no interval: not defined in {undefined:.0%} of the resamples" if undefined > MOST_UNDEFINED else ""
