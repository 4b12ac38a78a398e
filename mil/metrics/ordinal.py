"""Figures of ordered classes: those of classes, and how far off the prediction is."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int

from mil.metrics.classification import classification_metrics, ratio

HALF = 0.5 - 1e-12
"""A sum of probabilities that is .5 but for rounding counts as .5."""


def ordinal_metrics(
    labels: Int[np.ndarray, " slide"], probabilities: Float64[np.ndarray, "slide class"], classes: Sequence[str]
) -> dict[str, object]:
    """`mil.metrics.classification.classification_metrics`, and of the median class ``qwk`` and ``class_mae``.

    Raises:
        InputError: No slide, or rows that are not probabilities.
    """
    found = classification_metrics(labels, probabilities, classes)
    said = median_class(probabilities)
    kappa = quadratic_kappa(labels, said, len(classes))
    reasons = found.pop("undefined")
    undefined = dict(reasons) if isinstance(reasons, dict) else {}
    if np.isnan(kappa):
        undefined["qwk"] = "labels and predictions are all of one class"
    plain = {"qwk": None if np.isnan(kappa) else kappa, "class_mae": float(np.abs(said - labels).mean())}
    return {**found, **plain, "undefined": undefined}


def median_class(probabilities: Float64[np.ndarray, "slide class"]) -> Int[np.ndarray, " slide"]:
    """The first class up to which half of the probability lies."""
    return (np.cumsum(probabilities, axis=1) >= HALF).argmax(axis=1)


def weighted_ordinal(
    labels: Int[np.ndarray, " slide"],
    probabilities: Float64[np.ndarray, "slide class"],
    weights: Float64[np.ndarray, "resample slide"],
) -> dict[str, Float64[np.ndarray, " resample"]]:
    """``qwk`` and ``class_mae`` of the median class, once for each row of weights (how often a slide is there)."""
    said, n_classes = median_class(probabilities), probabilities.shape[1]
    cells = (weights @ np.eye(n_classes**2)[labels * n_classes + said]).reshape(len(weights), n_classes, n_classes)
    return {"qwk": _kappa(cells), "class_mae": weights @ np.abs(said - labels) / weights.sum(axis=1)}


def quadratic_kappa(labels: Int[np.ndarray, " slide"], said: Int[np.ndarray, " slide"], n_classes: int) -> float:
    """Cohen's kappa with quadratic weights, ``1 - sum w O / sum w E``, ``w_ij = (i - j)^2`` (Cohen 1968).

    nan where both are constant and the same.
    """
    observed = np.zeros((1, n_classes, n_classes))
    np.add.at(observed[0], (labels, said), 1)
    return float(_kappa(observed)[0])


def _kappa(observed: Float64[np.ndarray, "resample true said"]) -> Float64[np.ndarray, " resample"]:
    place = np.arange(observed.shape[1])
    weights = np.square(place[:, None] - place[None, :])
    expected = observed.sum(axis=2)[:, :, None] * observed.sum(axis=1)[:, None, :]
    chance = (weights * expected).sum(axis=(1, 2)) / observed.sum(axis=(1, 2))
    return 1 - ratio((weights * observed).sum(axis=(1, 2)), chance)
