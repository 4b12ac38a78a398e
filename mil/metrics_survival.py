"""Figures of predicted survival."""

import numpy as np
from jaxtyping import Bool, Float64, Int

from feature_extraction.errors import InputError


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
    earlier = times[:, None] < times[None, :]
    outlived = (times[:, None] == times[None, :]) & ~is_event[None, :]
    is_known = is_event[:, None] & (earlier | outlived)
    right = (risks[:, None] > risks[None, :]) + 0.5 * (risks[:, None] == risks[None, :])
    n_known = int(is_known.sum())
    return float((right * is_known).sum() / n_known) if n_known else float("nan")


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
