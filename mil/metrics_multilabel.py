"""Figures of slides that are of any number of classes, some of them unknown."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from feature_extraction.errors import InputError

POSITIVE = 0.5


def multilabel_metrics(
    truth: Float64[np.ndarray, "slide class"], probabilities: Float64[np.ndarray, "slide class"], classes: Sequence[str]
) -> dict[str, object]:
    """``auc_<class>``, ``average_precision_<class>``, ``f1_<class>`` (at .5), their ``macro_`` means, and ``nll``.

    Args:
        truth: 1, 0, or nan where it is unknown; such a slide does not count for the class.
        probabilities: Of each class by itself.
        classes: Names of the columns.

    Returns:
        None where a figure is undefined, with the reason in ``undefined``; a mean is over the classes that have it.

    Raises:
        InputError: No slide.
    """
    if len(truth) == 0:
        raise InputError("predictions: no slide; expected at least one with a label")
    is_known = ~np.isnan(truth)
    found: dict[str, object] = {}
    undefined: dict[str, str] = {}
    for figure in ("auc", "average_precision", "f1"):
        values: list[float] = []
        for column, name in enumerate(classes):
            rows = is_known[:, column]
            has, said = truth[rows, column] == 1, probabilities[rows, column]
            key = f"{figure}_{name}"
            found[key] = None
            if not rows.any() or has.all() or not has.any():
                undefined[key] = f"{'no known' if not rows.any() else 'every' if has.all() else 'no'} slide is {name}"
                continue
            values.append(_figure(figure, has, said))
            found[key] = values[-1]
        found[f"macro_{figure}"] = float(np.mean(values)) if values else None
        if not values:
            undefined[f"macro_{figure}"] = "no class has slides with and without it"
    found["nll"] = _nll(truth[is_known], probabilities[is_known]) if is_known.any() else None
    if not is_known.any():
        undefined["nll"] = "no slide has a known class"
    return {**found, "undefined": undefined}


def _figure(figure: str, has: np.ndarray, said: np.ndarray) -> float:
    if figure == "auc":
        return float(roc_auc_score(has, said))
    if figure == "average_precision":
        return float(average_precision_score(has, said))
    return float(f1_score(has, said >= POSITIVE))


def _nll(truth: np.ndarray, said: np.ndarray) -> float:
    """Mean binary cross-entropy of what is known."""
    eps = np.finfo(np.float64).eps
    clipped = np.clip(said, eps, 1 - eps)
    return float(-(truth * np.log(clipped) + (1 - truth) * np.log1p(-clipped)).mean())
