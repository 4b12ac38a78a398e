"""Simulated patients with known truth, whose slides resemble one another."""

import numpy as np
from scipy.special import softmax

from mil.metrics.classification import Predictions

CLASSES = ("A", "B", "C")


def simulated(
    n_patients: int,
    *,
    seed: int,
    skill: float = 1.6,
    sharpness: float = 2.5,
    most_slides: int = 3,
    patient_share: float = 0.8,
) -> Predictions:
    """``patient_share`` of the variance is between patients; ``sharpness`` above about 1 is overconfident."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, most_slides + 1, n_patients)
    labels = np.arange(n_patients) % len(CLASSES)
    own = np.sqrt(patient_share) * generator.normal(size=(n_patients, len(CLASSES)))
    patients = np.repeat(np.arange(n_patients), counts)
    noise = np.sqrt(1 - patient_share) * generator.normal(size=(len(patients), len(CLASSES)))
    logits = skill * np.eye(len(CLASSES))[labels[patients]] + own[patients] + noise
    return Predictions(
        slide_ids=tuple(f"s{row:06}" for row in range(len(patients))),
        patient_ids=tuple(f"p{patient:06}" for patient in patients),
        classes=CLASSES,
        labels=labels[patients],
        probabilities=softmax(sharpness * logits, axis=1),
    )
