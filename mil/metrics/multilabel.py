"""Figures of slides that are of any number of classes, some of them unknown."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from feature_extraction.errors import InputError
from mil.metrics.classification import ratio, weighted_auc

POSITIVE = 0.5
_FIGURES = ("auc", "average_precision", "f1")


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
    for figure in _FIGURES:
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


def weighted_multilabel(
    truth: Float64[np.ndarray, "slide class"],
    probabilities: Float64[np.ndarray, "slide class"],
    classes: Sequence[str],
    weights: Float64[np.ndarray, "resample slide"],
) -> dict[str, Float64[np.ndarray, " resample"]]:
    """The same figures once for each row of weights (how often a slide is there); nan where undefined.

    A ``macro_`` mean is over the classes that all slides together define; it is nan where a row of weights lacks one.
    """
    is_known = ~np.isnan(truth)
    by_figure: dict[str, list[np.ndarray]] = {figure: [] for figure in _FIGURES}
    found: dict[str, np.ndarray] = {}
    for column, name in enumerate(classes):
        rows = is_known[:, column]
        has, said, drawn = truth[rows, column] == 1, probabilities[rows, column], weights[:, rows]
        is_defined = (drawn @ has > 0) & (drawn @ ~has > 0)
        for figure in _FIGURES:
            values = _weighted(figure, has, said, drawn) if has.any() and not has.all() else np.nan
            found[f"{figure}_{name}"] = np.where(is_defined, values, np.nan)
            if has.any() and not has.all():
                by_figure[figure].append(found[f"{figure}_{name}"])
    nothing = np.full(len(weights), np.nan)
    macro = {f"macro_{name}": np.mean(values, axis=0) if values else nothing for name, values in by_figure.items()}
    costs = np.where(is_known, _costs(np.nan_to_num(truth), probabilities), 0.0).sum(axis=1)
    return {**found, **macro, "nll": ratio(weights @ costs, weights @ is_known.sum(axis=1).astype(np.float64))}


def _weighted(figure: str, has: Bool[np.ndarray, " slide"], said: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if figure == "auc":
        return weighted_auc(has, said, weights)
    if figure == "average_precision":
        return _weighted_precision(has, said, weights)
    is_said = said >= POSITIVE
    return ratio(2 * weights @ (has & is_said), weights @ has + weights @ is_said)


def _weighted_precision(has: np.ndarray, said: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``sum_t (recall_t - recall_{t-1}) precision_t`` over thresholds t, the highest first; equal scores together."""
    order = np.argsort(-said, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(said[order]) < 0])
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * has[order], starts, axis=1)
    reached = np.cumsum(np.add.reduceat(ordered, starts, axis=1), axis=1)
    precision = ratio(np.cumsum(positive, axis=1), reached)
    return ratio((positive * np.nan_to_num(precision)).sum(axis=1), positive.sum(axis=1))


def _figure(figure: str, has: np.ndarray, said: np.ndarray) -> float:
    if figure == "auc":
        return float(roc_auc_score(has, said))
    if figure == "average_precision":
        return float(average_precision_score(has, said))
    return float(f1_score(has, said >= POSITIVE))


def _nll(truth: np.ndarray, said: np.ndarray) -> float:
    """Mean binary cross-entropy of what is known."""
    return float(_costs(truth, said).mean())


def _costs(truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    eps = np.finfo(np.float64).eps
    clipped = np.clip(said, eps, 1 - eps)
    return -(truth * np.log(clipped) + (1 - truth) * np.log1p(-clipped))
