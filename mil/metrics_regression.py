"""Figures of a predicted number."""

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

from feature_extraction.errors import InputError


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


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1])
