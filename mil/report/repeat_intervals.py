"""Figures of a method whose folds were drawn several times: the mean over drawings, on the same drawn patients."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from mil.metrics.bootstrap import RESAMPLES, Figures
from mil.metrics.classification import Predictions, metric_names, weighted_metrics
from mil.metrics.differences import Difference, bootstrap_differences, on_same_slides, paired_difference, subtracted
from mil.metrics.intervals import (
    Estimate,
    Level,
    at_level,
    bootstrap_figures,
    bootstrap_interval,
    reasons_for_none,
    where_all_agree,
)


def interval_over_repeats(
    repeats: Sequence[Predictions], *, level: Level, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Every figure of one drawing, the mean over drawings, with its interval over patients.

    A drawn patient is drawn in every drawing, so that drawings do not pass for more patients. A drawing in which a
    figure is not defined is left out of its mean.

    Args:
        repeats: Slides of each drawing.
        level: ``patient`` averages each patient's slides within a drawing.
        resamples: Of the bootstrap.
        seed: Of the draws.
    """
    if len(repeats) == 1:
        return bootstrap_interval(repeats[0], level=level, resamples=resamples, seed=seed)
    rows = [at_level(one, level) for one in repeats]
    ids, strata = _patients(rows)
    reasons = _in_every(rows)
    found = bootstrap_figures(_mean_of(rows), ids, strata, resamples=resamples, seed=seed, reasons=reasons)
    n_slides = len({slide for one in repeats for slide in one.slide_ids})
    named = {name: replace(estimate, n_slides=n_slides) for name, estimate in found.items()}
    return where_all_agree(named, rows[0])


def difference_over_repeats(
    pairs: Sequence[tuple[Predictions, Predictions]], *, level: Level, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """First minus second in each drawing, on the slides that both predicted, and the mean over drawings.

    Args:
        pairs: Slides of each drawing, of both methods.
        level: Slides or patients.
        resamples: Of the bootstrap.
        seed: Of the draws.

    Raises:
        InputError: No slide in common, or other labels.
    """
    common = [on_same_slides(*pair) for pair in pairs]
    if len(common) == 1:
        return paired_difference(*common[0], level=level, resamples=resamples, seed=seed)
    firsts, seconds = ([at_level(pair[place], level) for pair in common] for place in (0, 1))
    found = bootstrap_differences(
        subtracted(_mean_of(firsts), _mean_of(seconds)),
        *_patients(firsts),
        resamples=resamples,
        seed=seed,
        reasons=_in_every(seconds) | _in_every(firsts),
    )
    n_slides = len({slide for pair in common for slide in pair[0].slide_ids})
    return {
        name: replace(one_found, estimate=replace(one_found.estimate, n_slides=n_slides))
        for name, one_found in found.items()
    }


def _in_every(rows: Sequence[Predictions]) -> dict[str, str]:
    """Why figures are not defined in any drawing, or have no interval."""
    first, *others = map(reasons_for_none, rows)
    return {name: reason for name, reason in first.items() if all(name in other for other in others)}


def _patients(rows: Sequence[Predictions]) -> tuple[list[str], list[str]]:
    """Patient and class of every row of every drawing."""
    ids = [name for one in rows for name in one.patient_ids]
    return ids, [one.classes[label] for one in rows for label in one.labels]


def _mean_of(rows: Sequence[Predictions]) -> Figures:
    ends = np.cumsum([len(one.labels) for one in rows])[:-1]

    def figures(weights: np.ndarray) -> Mapping[str, Float64[np.ndarray, " resample"]]:
        parts = np.split(weights, ends, axis=1)
        found = [
            weighted_metrics(one.labels, one.probabilities, one.classes, part)
            for one, part in zip(rows, parts, strict=True)
        ]
        return {
            name: _mean_of_defined(np.stack([one[name] for one in found])) for name in metric_names(rows[0].classes)
        }

    return figures


def _mean_of_defined(values: Float64[np.ndarray, "repeat resample"]) -> Float64[np.ndarray, " resample"]:
    is_defined = np.isfinite(values)
    count = is_defined.sum(axis=0)
    total = np.where(is_defined, values, 0).sum(axis=0)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
