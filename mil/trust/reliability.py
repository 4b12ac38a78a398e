"""How often predictions of a given probability are right, with an interval for each bin."""

from dataclasses import dataclass

import numpy as np

from mil.metrics.classification import ECE_BINS, Predictions, by_patient, top_bins
from mil.metrics.shares import share_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Patients whose largest probability lies in ``(low, high]``.

    Attributes:
        low: Lower edge.
        high: Upper edge.
        n_patients: How many there are.
        confidence: Mean of their largest probabilities.
        accuracy: Share that is right.
        accuracy_low: Lower end of its 95 % interval.
        accuracy_high: Upper end.
    """

    low: float
    high: float
    n_patients: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def reliability_table(predictions: Predictions) -> tuple[ReliabilityBin, ...]:
    """The bins of the ECE that hold a patient, from the least sure to the surest.

    The ECE of the patients is ``sum_b n_b / n |accuracy_b - confidence_b|`` over these rows (Guo et al. 2017, eq. 3).

    Args:
        predictions: Of slides or patients; a patient is the mean of its slides.
    """
    patients = by_patient(predictions)
    confidence = patients.probabilities.max(axis=1)
    is_right = patients.probabilities.argmax(axis=1) == patients.labels
    bins = top_bins(confidence)
    return tuple(_row(int(place), confidence[bins == place], is_right[bins == place]) for place in np.unique(bins))


def _row(place: int, confidence: np.ndarray, is_right: np.ndarray) -> ReliabilityBin:
    low, high = share_interval(int(is_right.sum()), len(is_right))
    return ReliabilityBin(
        low=place / ECE_BINS,
        high=(place + 1) / ECE_BINS,
        n_patients=len(is_right),
        confidence=float(confidence.mean()),
        accuracy=float(is_right.mean()),
        accuracy_low=low,
        accuracy_high=high,
    )
