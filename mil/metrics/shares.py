"""The interval of a share of patients, also where all agree."""

from collections.abc import Mapping

import numpy as np
from scipy.stats import binomtest

from mil.metrics.classification import RECALL, Predictions, by_patient

CONFIDENCE = 0.95


def share_interval(n_hits: int, n: int) -> tuple[float, float]:
    """Ends of the 95 % interval of a share of independent patients (Wilson 1927); nan of none."""
    if n == 0:
        return float("nan"), float("nan")
    found = binomtest(n_hits, n).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def patients_behind(predictions: Predictions) -> Mapping[str, int]:
    """How many independent patients the figures that are shares rest on, by name.

    A mean of shares with weights w of classes with n patients varies as one share of 1 / sum(w^2 / n) patients.
    """
    rows = np.bincount(predictions.labels, minlength=len(predictions.classes))
    patients = np.bincount(by_patient(predictions).labels, minlength=len(predictions.classes))
    is_there = patients > 0
    weights = {
        "accuracy": rows[is_there] / rows.sum(),
        "balanced_accuracy": np.full(int(is_there.sum()), 1 / is_there.sum()),
    }
    shared = {name: int(1 / (np.square(one) / patients[is_there]).sum() + 1e-9) for name, one in weights.items()}
    return shared | {f"{RECALL}{name}": int(n) for name, n in zip(predictions.classes, patients, strict=True)}
