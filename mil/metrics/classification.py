"""Figures of a classifier from labels and probabilities; the same code for one value and for thousands of resamples.

Every figure is a weighted mean or a weighted rank statistic: a bootstrap resample is a row of weights (how often each
slide was drawn), so 2,000 resamples are a few matrix products. `mil.metrics.bootstrap` draws them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int

from feature_extraction.errors import InputError

ECE_BINS = 15
RECALL = "recall_"
METRICS = ("macro_auc", "balanced_accuracy", "macro_f1", "accuracy", "nll", "brier", "ece")
"""In the order of the tables; ``recall_<class>`` of each class follows."""
LOWER_IS_BETTER = frozenset({"nll", "brier", "ece"})
SUM_TOLERANCE = 2e-3
"""Rows of probabilities may miss 1 by this much, as rounded CSV does."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """Labelled predictions of slides, or of patients.

    Attributes:
        slide_ids: One a row; of patients, the patient ids.
        patient_ids: Patient of each row.
        classes: Names of the columns.
        labels: Index of the true class of each row.
        probabilities: Rows that sum to 1.
    """

    slide_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    classes: tuple[str, ...]
    labels: Int[np.ndarray, " slide"]
    probabilities: Float64[np.ndarray, "slide class"]

    def take(self, rows: Int[np.ndarray, " chosen"]) -> "Predictions":
        """These rows, in this order."""
        return Predictions(
            slide_ids=tuple(self.slide_ids[row] for row in rows),
            patient_ids=tuple(self.patient_ids[row] for row in rows),
            classes=self.classes,
            labels=self.labels[rows],
            probabilities=self.probabilities[rows],
        )


def classification_metrics(
    labels: Int[np.ndarray, " slide"], probabilities: Float64[np.ndarray, "slide class"], classes: Sequence[str]
) -> dict[str, object]:
    """Every figure by name, as plain data for ``metrics.json``: None where undefined, with the reason in ``undefined``.

    ``macro_auc`` (one-vs-rest), ``balanced_accuracy``, ``macro_f1``, ``accuracy``, ``nll``, ``brier`` (summed over
    classes, halved for two, as scikit-learn does), ``ece``, ``recall_<class>``.

    Raises:
        InputError: No slide, or rows that are not probabilities.
    """
    values = slide_metrics(labels, probabilities, classes)
    plain: dict[str, object] = {name: None if np.isnan(value) else value for name, value in values.items()}
    return {**plain, "undefined": undefined_reasons(labels, probabilities, classes)}


def slide_metrics(
    labels: Int[np.ndarray, " slide"], probabilities: Float64[np.ndarray, "slide class"], classes: Sequence[str]
) -> dict[str, float]:
    """Every figure by name, nan where it is not defined.

    Raises:
        InputError: No slide, or rows that are not probabilities.
    """
    once = np.ones((1, len(labels)))
    return {name: float(row[0]) for name, row in weighted_metrics(labels, probabilities, classes, once).items()}


def undefined_reasons(
    labels: Int[np.ndarray, " slide"], probabilities: Float64[np.ndarray, "slide class"], classes: Sequence[str]
) -> dict[str, str]:
    """Name to reason, for the figures that these rows do not define."""
    absent = [name for index, name in enumerate(classes) if not np.any(labels == index)]
    constant = [name for index, name in enumerate(classes) if np.ptp(probabilities[:, index]) == 0]
    reasons: dict[str, str] = {}
    if absent:
        missing = f"no slide of class {', '.join(absent)}"
        reasons = dict.fromkeys(("macro_auc", "balanced_accuracy", "macro_f1"), missing)
        reasons |= {f"{RECALL}{name}": missing for name in absent}
    elif constant:
        reasons["macro_auc"] = f"every slide has the same probability of class {', '.join(constant)}"
    return reasons


def by_patient(predictions: Predictions) -> Predictions:
    """The mean of each patient's slides, ordered by patient id.

    Raises:
        InputError: A patient whose slides have different labels.
    """
    names, first, inverse = np.unique(np.array(predictions.patient_ids), return_index=True, return_inverse=True)
    labels = predictions.labels[first]
    if np.any(labels[inverse] != predictions.labels):
        raise InputError("predictions: a patient's slides have different labels; correct the labels table")
    sums = np.zeros((len(names), len(predictions.classes)))
    np.add.at(sums, inverse, predictions.probabilities)
    ids = tuple(str(name) for name in names)
    return Predictions(
        slide_ids=ids,
        patient_ids=ids,
        classes=predictions.classes,
        labels=labels,
        probabilities=sums / np.bincount(inverse)[:, None],
    )


def weighted_metrics(
    labels: Int[np.ndarray, " slide"],
    probabilities: Float64[np.ndarray, "slide class"],
    classes: Sequence[str],
    weights: Float64[np.ndarray, "resample slide"],
) -> dict[str, Float64[np.ndarray, " resample"]]:
    """Every figure once for each row of weights; a weight counts how often the slide is there.

    Undefined figures (`undefined_reasons`) are nan for every row.

    Raises:
        InputError: No slide, rows that are not probabilities, or a label outside the classes.
    """
    _require_probabilities(labels, probabilities, len(classes))
    confusion = _confusion(labels, probabilities, weights)
    figures = {
        "macro_auc": _macro_auc(labels, probabilities, weights),
        **_from_confusion(confusion, classes),
        **_of_probabilities(labels, probabilities, weights),
    }
    for name in undefined_reasons(labels, probabilities, classes):
        figures[name] = np.full(len(weights), np.nan)
    return {name: figures[name] for name in metric_names(classes)}


def metric_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Names of the figures in the order of the tables."""
    return (*METRICS, *(f"{RECALL}{name}" for name in classes))


def _require_probabilities(labels: np.ndarray, probabilities: np.ndarray, n_classes: int) -> None:
    if len(labels) == 0:
        raise InputError("predictions: no slide; expected at least one with a label")
    if probabilities.shape != (len(labels), n_classes) or n_classes < 2:
        raise InputError(f"predictions: expected {len(labels)} rows of two or more classes, got {probabilities.shape}")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise InputError(f"predictions: label index outside 0 to {n_classes - 1}; give the classes of these labels")
    is_bad = ~np.isfinite(probabilities).all(axis=1) | (probabilities < 0).any(axis=1)
    is_bad |= ~(np.abs(probabilities.sum(axis=1) - 1) <= SUM_TOLERANCE)
    if is_bad.any():
        rows = ", ".join(str(row) for row in np.flatnonzero(is_bad)[:8])
        raise InputError(f"predictions: {is_bad.sum()} rows do not hold probabilities (rows {rows}, …); train again")


def _confusion(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> Float64[np.ndarray, "resample true said"]:
    n_classes = probabilities.shape[1]
    cell = labels * n_classes + probabilities.argmax(axis=1)
    return (weights @ np.eye(n_classes**2)[cell]).reshape(len(weights), n_classes, n_classes)


def _from_confusion(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, np.ndarray]:
    hits = np.einsum("rkk->rk", confusion)
    actual, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    recall = ratio(hits, actual)
    f1 = ratio(2 * hits, actual + predicted)
    return {
        "balanced_accuracy": recall.mean(axis=1),
        "macro_f1": f1.mean(axis=1),
        "accuracy": ratio(hits.sum(axis=1), actual.sum(axis=1)),
        **{f"{RECALL}{name}": recall[:, index] for index, name in enumerate(classes)},
    }


def _of_probabilities(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    eps = np.finfo(np.float64).eps
    n_classes = probabilities.shape[1]
    nll = -np.log(np.clip(probabilities[np.arange(len(labels)), labels], eps, 1 - eps))
    brier = np.square(probabilities - np.eye(n_classes)[labels]).sum(axis=1) / (2 if n_classes == 2 else 1)
    total = weights.sum(axis=1)
    return {"nll": weights @ nll / total, "brier": weights @ brier / total, "ece": _ece(labels, probabilities, weights)}


def _ece(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error over equal bins of the top probability, closed on the right (Guo 2017, eq. 3)."""
    confidence = probabilities.max(axis=1)
    gap = confidence - (probabilities.argmax(axis=1) == labels)
    return np.abs(weights @ (np.eye(ECE_BINS)[top_bins(confidence)] * gap[:, None])).sum(axis=1) / weights.sum(axis=1)


def top_bins(confidence: Float64[np.ndarray, " slide"]) -> Int[np.ndarray, " slide"]:
    """Bin of each top probability, of `ECE_BINS` equal ones that are closed on the right."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)


def _macro_auc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over classes of the one-vs-rest area; of two classes the second speaks for both."""
    n_classes = probabilities.shape[1]
    used = range(n_classes) if n_classes > 2 else range(1, 2)
    return np.mean([weighted_auc(labels == index, probabilities[:, index], weights) for index in used], axis=0)


def weighted_auc(
    is_positive: Bool[np.ndarray, " slide"],
    scores: Float64[np.ndarray, " slide"],
    weights: Float64[np.ndarray, "resample slide"],
) -> Float64[np.ndarray, " resample"]:
    """Share of (positive, negative) pairs that are ranked right, ties counting half; each pair weighs its product.

    nan for a row of weights without a positive or without a negative.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * is_positive[order], starts, axis=1)
    negative = np.add.reduceat(ordered * ~is_positive[order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    return ratio((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def ratio(part: Float64[np.ndarray, "*shape"], whole: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """``part / whole``, nan where ``whole`` is zero."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)
