"""Figures of a predicted number."""

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

from feature_extraction.errors import InputError
from mil.metrics.classification import ratio


def regression_metrics(truth: Float64[np.ndarray, " slide"], said: Float64[np.ndarray, " slide"]) -> dict[str, object]:
    """``mae``, ``rmse``, ``r2``, ``pearson``, ``spearman``; None where undefined, with the reason in ``undefined``.

    Raises:
        InputError: No slide, or a prediction that is not finite.
    """
    if len(truth) == 0:
        raise InputError("predictions: no slide; expected at least one with a label")
    if not np.isfinite(said).all():
        raise InputError(f"predictions: {int((~np.isfinite(said)).sum())} values are not finite; train again")
    error = said - truth
    found: dict[str, object] = {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt(np.square(error).mean()))}
    undefined: dict[str, str] = {}
    spread = np.square(truth - truth.mean()).sum()
    if len(truth) < 2 or spread == 0:
        undefined = dict.fromkeys(("r2", "pearson", "spearman"), "every slide has the same label")
    elif np.ptp(said) == 0:
        undefined = dict.fromkeys(("pearson", "spearman"), "every slide has the same prediction")
    found["r2"] = None if "r2" in undefined else float(1 - np.square(error).sum() / spread)
    found["pearson"] = None if "pearson" in undefined else _correlation(truth, said)
    found["spearman"] = None if "spearman" in undefined else _correlation(rankdata(truth), rankdata(said))
    return {**found, "undefined": undefined}


def weighted_regression(
    truth: Float64[np.ndarray, " slide"],
    said: Float64[np.ndarray, " slide"],
    weights: Float64[np.ndarray, "resample slide"],
) -> dict[str, Float64[np.ndarray, " resample"]]:
    """The same figures once for each row of weights (how often a slide is there); nan where undefined."""
    total = weights.sum(axis=1)
    error, centred = said - truth, truth - truth.mean()
    squares = weights @ np.square(error)
    spread = weights @ np.square(centred) - np.square(weights @ centred) / total
    return {
        "mae": weights @ np.abs(error) / total,
        "rmse": np.sqrt(squares / total),
        "r2": 1 - ratio(squares, np.where(spread > _least(centred), spread, 0)),
        "pearson": _weighted_correlation(centred[None], (said - said.mean())[None], weights),
        "spearman": _weighted_correlation(_weighted_ranks(truth, weights), _weighted_ranks(said, weights), weights),
    }


def _weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean ranks within each row of weights, centred."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])
    of_kind = np.add.reduceat(weights[:, order], starts, axis=1)
    kind = np.empty(len(values), dtype=np.int64)
    kind[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    ranks = (np.cumsum(of_kind, axis=1) - of_kind / 2)[:, kind]
    return ranks - ranks.mean(axis=1, keepdims=True)


def _weighted_correlation(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = weights.sum(axis=1, keepdims=True)
    one, other = (values - (weights * values).sum(axis=1, keepdims=True) / total for values in (first, second))
    spreads = [(weights * np.square(values)).sum(axis=1) for values in (one, other)]
    is_defined = (spreads[0] > _least(first)) & (spreads[1] > _least(second))
    return ratio((weights * one * other).sum(axis=1), np.where(is_defined, np.sqrt(spreads[0] * spreads[1]), 0))


def _least(centred: np.ndarray) -> float:
    """A spread that is 0 but for rounding."""
    return 1e-12 * float(np.square(centred).sum())


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1])
