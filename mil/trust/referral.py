"""Whom to hand to a pathologist: how accuracy rises when unsure patients are left out, and the rule that does so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int

from feature_extraction.errors import InputError
from mil.metrics.bootstrap import RESAMPLES
from mil.metrics.classification import Predictions, by_patient
from mil.metrics.intervals import bootstrap_figures
from mil.metrics.shares import share_interval

COVERAGE = 0.8
WITHOUT_WIDTH = 1e-9
"""An interval of draws that all agree: everybody is right, or nobody."""
NO_CLASS_FITS, SEVERAL_FIT = "no class fits", "several classes fit"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RiskCoverage:
    """Selective risk: the share of wrong patients among the surest ones.

    Attributes:
        coverage: Share of patients kept, rising to 1; patients that are equally sure are kept together.
        risk: Share of them that is wrong.
        threshold: The least top probability that is kept.
    """

    coverage: Float64[np.ndarray, " point"]
    risk: Float64[np.ndarray, " point"]
    threshold: Float64[np.ndarray, " point"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectiveAccuracy:
    """Accuracy of the surest patients.

    Attributes:
        coverage: Share of patients kept.
        value: Their accuracy.
        low: Lower end of the 95 % interval over resampled patients.
        high: Upper end.
        n_patients: All of them.
    """

    coverage: float
    value: float
    low: float
    high: float
    n_patients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Referral:
    """What is said of one patient.

    Attributes:
        patient_id: Whose.
        classes: Of the prediction set.
        reasons: Why the patient is referred; empty for one who is not.
    """

    patient_id: str
    classes: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def is_referred(self) -> bool:
        """Whether a pathologist decides."""
        return bool(self.reasons)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferralFigures:
    """What the rule did on patients with known classes.

    Attributes:
        n_patients: How many there are.
        share_referred: Share that is referred.
        accuracy_kept: Accuracy of the others; nan without one.
        accuracy_low: Lower end of its 95 % interval.
        accuracy_high: Upper end.
        accuracy_referred: Accuracy that the model would have had on the referred; nan without one.
    """

    n_patients: int
    share_referred: float
    accuracy_kept: float
    accuracy_low: float
    accuracy_high: float
    accuracy_referred: float


def risk_coverage(predictions: Predictions) -> RiskCoverage:
    """The curve over patients, by their largest probability (Geifman & El-Yaniv 2017).

    Args:
        predictions: Of slides or patients; a patient is the mean of its slides.
    """
    confidence, is_right, ends = _by_confidence(by_patient(predictions))
    kept, right = (ends + 1).astype(np.float64), np.cumsum(is_right)[ends]
    return RiskCoverage(coverage=kept / len(confidence), risk=1 - right / kept, threshold=confidence[ends])


def accuracy_at_coverage(
    predictions: Predictions, *, coverage: float = COVERAGE, resamples: int = RESAMPLES, seed: int = 0
) -> SelectiveAccuracy:
    """Accuracy of the surest share of patients; of equally sure ones the mean over their orders.

    Args:
        predictions: Of slides or patients.
        coverage: Share kept.
        resamples: Of the bootstrap over patients, within each class.
        seed: Of the draws.

    Raises:
        InputError: ``coverage`` outside 0 to 1.
    """
    if not 0 < coverage <= 1:
        raise InputError(f"coverage={coverage}: expected a share above 0, at most 1")
    patients = by_patient(predictions)
    order = np.argsort(-patients.probabilities.max(axis=1), kind="stable")
    _, is_right, ends = _by_confidence(patients)

    def figures(weights: np.ndarray) -> dict[str, Float64[np.ndarray, " resample"]]:
        return {"accuracy": np.array([_accuracy(row, is_right, ends, coverage) for row in weights[:, order]])}

    classes = [patients.classes[label] for label in patients.labels]
    found = bootstrap_figures(figures, patients.patient_ids, classes, resamples=resamples, seed=seed)["accuracy"]
    low, high = found.low, found.high
    if found.high - found.low < WITHOUT_WIDTH:
        n_kept = int(coverage * found.n_patients)
        low, high = share_interval(round(found.value * n_kept), n_kept)
    return SelectiveAccuracy(coverage=coverage, value=found.value, low=low, high=high, n_patients=found.n_patients)


def referrals(
    patient_ids: Sequence[str],
    classes: Sequence[str],
    sets: Bool[np.ndarray, "patient class"],
    unusual: Mapping[str, Sequence[str]],
) -> list[Referral]:
    """One a patient: referred when the set has not exactly one class, or a slide is unlike those trained on.

    Args:
        patient_ids: In the order of the sets.
        classes: Names of the columns.
        sets: `mil.trust.conformal.prediction_sets`.
        unusual: Patient to what is unusual about a slide of theirs, in words; nobody else.
    """
    found: list[Referral] = []
    for patient, row in zip(patient_ids, sets, strict=True):
        named = tuple(name for name, is_in in zip(classes, row, strict=True) if is_in)
        of_set = () if len(named) == 1 else (SEVERAL_FIT if named else NO_CLASS_FITS,)
        found.append(Referral(patient_id=patient, classes=named, reasons=(*of_set, *unusual.get(patient, ()))))
    return found


def referral_figures(
    referred: Sequence[Referral], labels: Int[np.ndarray, " patient"], said: Int[np.ndarray, " patient"]
) -> ReferralFigures:
    """Accuracy of those kept and of those referred.

    Args:
        referred: One a patient.
        labels: True classes.
        said: Classes of the largest probability.

    Raises:
        InputError: No patient.
    """
    if len(labels) == 0:
        raise InputError("referral: no patient with a known class; expected at least one")
    is_referred = np.array([one.is_referred for one in referred], dtype=np.bool_)
    is_right = said == labels
    kept = is_right[~is_referred]
    low, high = share_interval(int(kept.sum()), len(kept))
    return ReferralFigures(
        n_patients=len(labels),
        share_referred=float(is_referred.mean()),
        accuracy_kept=_mean(kept),
        accuracy_low=low,
        accuracy_high=high,
        accuracy_referred=_mean(is_right[is_referred]),
    )


def _by_confidence(patients: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Top probability and whether it is right, the surest first, and the last place of each group of equals."""
    confidence = patients.probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    is_right = (patients.probabilities.argmax(axis=1) == patients.labels)[order]
    ranked = confidence[order]
    return ranked, is_right, np.flatnonzero(np.r_[np.diff(ranked) < 0, True])


def _accuracy(weights: np.ndarray, is_right: np.ndarray, ends: np.ndarray, coverage: float) -> float:
    """Share that is right among the first ``coverage`` of the weight, groups of equals taken in part evenly."""
    kept = np.r_[0.0, np.cumsum(weights)[ends]]
    right = np.r_[0.0, np.cumsum(weights * is_right)[ends]]
    wanted = coverage * kept[-1]
    return float(np.interp(wanted, kept, right) / wanted)


def _mean(hits: np.ndarray) -> float:
    return float(hits.mean()) if len(hits) else float("nan")
