"""Figures of predicted survival."""

import numpy as np
from jaxtyping import Bool, Float64, Int

from feature_extraction.errors import InputError
from mil.metrics.classification import ratio


def survival_metrics(
    times: Float64[np.ndarray, " slide"], is_event: Bool[np.ndarray, " slide"], risks: Float64[np.ndarray, " slide"]
) -> dict[str, object]:
    """``c_index``, ``events``; None where undefined, with the reason in ``undefined``.

    Raises:
        InputError: No slide, or a risk that is not finite.
    """
    if len(times) == 0:
        raise InputError("predictions: no slide; expected at least one with a label")
    if not np.isfinite(risks).all():
        raise InputError(f"predictions: {int((~np.isfinite(risks)).sum())} risks are not finite; train again")
    index = concordance(times, is_event, risks)
    undefined = {"c_index": "no two slides whose order of events is known"} if np.isnan(index) else {}
    return {"c_index": None if np.isnan(index) else index, "events": int(is_event.sum()), "undefined": undefined}


def concordance(
    times: Float64[np.ndarray, " slide"], is_event: Bool[np.ndarray, " slide"], risks: Float64[np.ndarray, " slide"]
) -> float:
    """Harrell's c: of the pairs whose order is known, the share in which the earlier event has the higher risk.

    The order of a pair is known when the shorter time is an event, and at equal times when one is an event and the
    other censored (that one lived longer). Equal risks count half. nan without such a pair (Harrell 1996).
    """
    once = np.ones((1, len(times)))
    return float(weighted_concordance(times, is_event, risks, np.zeros(len(times), dtype=np.int64), once)[0])


def weighted_concordance(
    times: Float64[np.ndarray, " slide"],
    is_event: Bool[np.ndarray, " slide"],
    risks: Float64[np.ndarray, " slide"],
    folds: Int[np.ndarray, " slide"],
    weights: Float64[np.ndarray, "resample slide"],
) -> Float64[np.ndarray, " resample"]:
    """The same once for each row of weights (how often a slide is there), over pairs of one fold.

    Risks of two models have no common zero (a partial likelihood fixes none, bins have edges of their own), so slides
    that different models predicted are not compared (the stratified c-index).
    """
    found = np.zeros((2, len(weights)))
    for fold in np.unique(folds):
        rows = folds == fold
        found += _pairs_in_order(times[rows], is_event[rows], risks[rows], weights[:, rows])
    return ratio(found[0], found[1])


def _pairs_in_order(
    times: np.ndarray, is_event: np.ndarray, risks: np.ndarray, weights: np.ndarray
) -> Float64[np.ndarray, "2 resample"]:
    """Weight of the pairs in the right order, and of all whose order is known."""
    earlier = times[:, None] < times[None, :]
    outlived = (times[:, None] == times[None, :]) & ~is_event[None, :]
    is_known = is_event[:, None] & (earlier | outlived)
    right = (risks[:, None] > risks[None, :]) + 0.5 * (risks[:, None] == risks[None, :])
    return np.array([((weights @ p) * weights).sum(axis=1) for p in (right * is_known, is_known.astype(np.float64))])


def discrete_nll(
    bins: Int[np.ndarray, " slide"],
    is_event: Bool[np.ndarray, " slide"],
    probabilities: Float64[np.ndarray, "slide bin"],
) -> float:
    """Mean of ``-log f_k`` for an event in bin k and ``-log sum_{j >= k} f_j`` for one censored in it."""
    rows = np.arange(len(bins))
    reached = np.cumsum(probabilities[:, ::-1], axis=1)[:, ::-1]
    likelihood = np.where(is_event, probabilities[rows, bins], reached[rows, bins])
    return float(-np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean())
