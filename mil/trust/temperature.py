"""One temperature that makes probabilities honest, from predictions of slides that the model had not seen."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from feature_extraction.errors import InputError
from mil.metrics.classification import Predictions, by_patient

UNSEEN_PARTS = ("val", "out_of_fold")
"""Where a temperature may come from; on the training part a model is too sure of itself to be measured."""
_LOG_RANGE = (-7.0, 7.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperature:
    """How far probabilities are softened.

    Attributes:
        value: T; above 1 softens, 1 changes nothing.
        nll_before: Of the patients it was fitted on, without it.
        nll_after: With it.
        n_patients: How many they were.
        reason: Why it is 1 although it was to be fitted, else empty.
    """

    value: float
    nll_before: float
    nll_after: float
    n_patients: int
    reason: str


def fit_temperature(predictions: Predictions, *, part: str) -> Temperature:
    """The T that gives patients the least NLL of ``softmax(log p / T)`` (Guo et al. 2017, sec. 4.2).

    The NLL is convex in 1/T. It has no least value where every true class has the largest probability (T runs to 0) and
    where the predictions do not point at the true classes at all (T runs to infinity); T is 1 then, with the reason.

    Args:
        predictions: Of slides or patients; a patient is the mean of its slides.
        part: Where they are from, ``val`` or ``out_of_fold``.

    Raises:
        InputError: Predictions of another part.
    """
    if part not in UNSEEN_PARTS:
        raise InputError(
            f"temperature: fitted on predictions of part {part}, expected {' or '.join(UNSEEN_PARTS)}: a model is "
            "surer of the slides it was trained on; give predictions it had not seen"
        )
    patients = by_patient(predictions)
    logs, labels = log_probabilities(patients.probabilities), patients.labels
    before = _nll(logs, labels, 1.0)
    reason = _not_fitted(logs, labels)
    if reason:
        return Temperature(value=1.0, nll_before=before, nll_after=before, n_patients=len(labels), reason=reason)

    def cost(log_t: float) -> float:
        return _nll(logs, labels, float(np.exp(log_t)))

    found = minimize_scalar(
        cost,
        bounds=_LOG_RANGE,
        method="bounded",
        options={"xatol": 1e-9},
    )
    value = float(np.exp(found.x))
    after = _nll(logs, labels, value)
    return Temperature(value=value, nll_before=before, nll_after=after, n_patients=len(labels), reason="")


def calibrated(probabilities: Float64[np.ndarray, "row class"], value: float) -> Float64[np.ndarray, "row class"]:
    """``softmax(log p / T)``; the order of the classes stays."""
    return softmax(log_probabilities(probabilities) / value, axis=1)


def log_probabilities(probabilities: Float64[np.ndarray, "row class"]) -> Float64[np.ndarray, "row class"]:
    """Logarithms; a probability of 0 is the smallest step above it, so that it can be softened."""
    return np.log(np.maximum(probabilities, np.finfo(np.float64).eps))


def _nll(logs: np.ndarray, labels: Int[np.ndarray, " patient"], value: float) -> float:
    return float(-log_softmax(logs / value, axis=1)[np.arange(len(labels)), labels].mean())


def _not_fitted(logs: np.ndarray, labels: np.ndarray) -> str:
    """Why the NLL has no least value at a T between 0 and infinity."""
    of_truth = logs[np.arange(len(labels)), labels]
    if np.all(of_truth >= logs.max(axis=1)):
        return "every prediction is right, so any smaller temperature fits better still"
    slope_at_infinity = float((logs.mean(axis=1) - of_truth).mean())
    if slope_at_infinity >= 0:
        return "the predictions do not point at the true classes, so any larger temperature fits better still"
    return ""
