"""How far each method of a sweep may be believed: patients judged by what was fitted on patients of other folds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mil.metrics.bootstrap import RESAMPLES
from mil.metrics.classification import Predictions, by_patient
from mil.metrics.intervals import Estimate, bootstrap_interval
from mil.report.methods import Method
from mil.report.pooled import labelled_predictions
from mil.trust.by_other_folds import (
    FEWEST_FOLDS,
    Judge,
    calibrated_by,
    dealt_folds,
    other_folds,
    patients_of_folds,
    sets_by,
)
from mil.trust.conformal import (
    ALPHA,
    CoverageBand,
    Score,
    SetFigures,
    allowed_misses,
    coverage_band,
    fewest_patients,
    has_enough_of_each,
    set_figures,
)
from mil.trust.referral import (
    ReferralFigures,
    SelectiveAccuracy,
    accuracy_at_coverage,
    referral_figures,
    referrals,
)
from mil.trust.temperature import Temperature

HONESTY = ("nll", "brier", "ece")
"""Figures of the probabilities themselves; NLL and Brier first, as the ECE of few patients is biased upward."""
DEALT_FOLDS = 5
BY_OTHER_FOLDS = "the other folds"
BY_DEALT_FOLDS = f"{DEALT_FOLDS} dealt folds"
BY_VAL = "the validation part"
_KINDS: tuple[tuple[str, Score, bool], ...] = (
    ("LAC", "lac", False),
    ("APS", "aps", False),
    ("LAC by class", "lac", True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetsOfMethod:
    """Prediction sets of one kind.

    Attributes:
        name: ``LAC``, ``APS`` or ``LAC by class``.
        figures: What they did; None where they cannot be made.
        band: Where the coverage of one calibration on ``n_calibrated`` patients lies 9 times out of 10; None of sets by
            class, whose classes have a band each.
        n_calibrated: Patients behind the thresholds; of the judge with the fewest.
        reason: Why there are no figures, else empty.
    """

    name: str
    figures: SetFigures | None
    band: CoverageBand | None
    n_calibrated: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trusted:
    """What is known of a method's trustworthiness, of patients.

    Attributes:
        fitted_on: Where temperature and thresholds come from, in words.
        before: The patients with their probabilities as predicted.
        after: With those of the temperature.
        temperatures: One a judge.
        honesty_before: NLL, Brier and ECE.
        honesty_after: The same under the temperature.
        sets: Each kind of prediction sets.
        surest: Accuracy of the surest patients.
        referral: What the rule did whose sets are LAC's; None where those cannot be made.
    """

    fitted_on: str
    before: Predictions
    after: Predictions
    temperatures: tuple[Temperature, ...]
    honesty_before: dict[str, Estimate]
    honesty_after: dict[str, Estimate]
    sets: tuple[SetsOfMethod, ...]
    surest: SelectiveAccuracy
    referral: ReferralFigures | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodTrust:
    """What a report says of one method.

    Attributes:
        method: Which.
        found: None where nothing can be said.
        reason: Why not, else empty.
    """

    method: Method
    found: Trusted | None
    reason: str


def trust_of(method: Method, *, resamples: int = RESAMPLES, seed: int = 0) -> MethodTrust:
    """Calibration, sets and referral of a method's patients; of its first drawing of folds where it has several.

    Each fold is judged by the others. What was not trained has a single fold, which is dealt into some; a trained model
    of a single fold is judged by its validation part, which also chose its epoch.

    Args:
        method: Of the sweep.
        resamples: Of the bootstrap over patients.
        seed: Of the draws.

    Raises:
        InputError: A patient with two labels.
    """
    patients, judges, fitted_on = _judged(method)
    if not judges:
        return MethodTrust(method=method, found=None, reason="a single fold without a validation part")
    probabilities, temperatures = calibrated_by(patients, judges)
    after = replace(patients, probabilities=probabilities)
    honesty = [bootstrap_interval(rows, resamples=resamples, seed=seed) for rows in (patients, after)]
    before, then = ({name: of_rows[name] for name in HONESTY} for of_rows in honesty)
    found = Trusted(
        fitted_on=fitted_on,
        before=patients,
        after=after,
        temperatures=temperatures,
        honesty_before=before,
        honesty_after=then,
        sets=tuple(_sets(patients, judges, name, score, is_class_conditional=own) for name, score, own in _KINDS),
        surest=accuracy_at_coverage(after, resamples=resamples, seed=seed),
        referral=_referral(patients, judges),
    )
    return MethodTrust(method=method, found=found, reason="")


def _judged(method: Method) -> tuple[Predictions, tuple[Judge, ...], str]:
    """The patients, who judges them, and that in words."""
    first = method.repeats[0]
    if len(first.folds) >= FEWEST_FOLDS:
        tested = patients_of_folds(first.predictions, first.fold_of)
        return tested.patients, other_folds(tested), BY_OTHER_FOLDS
    patients = by_patient(first.predictions)
    if method.shots == 0:
        folds = dealt_folds(first.predictions, DEALT_FOLDS)
        if len(np.unique(folds)) < FEWEST_FOLDS:
            return patients, (), ""
        tested = patients_of_folds(first.predictions, folds)
        return tested.patients, other_folds(tested), BY_DEALT_FOLDS
    val = _val_of_fold(method, first.folds[0])
    rows = np.arange(len(patients.labels))
    return patients, () if val is None else (Judge(rows=rows, unseen=by_patient(val), part="val"),), BY_VAL


def _val_of_fold(method: Method, fold: int) -> Predictions | None:
    """The validation part of one fold, seeds averaged."""
    slides = [
        slide
        for number, run in zip(method.run_folds, method.runs, strict=True)
        if number == fold
        for slide in run.slides
        if slide.part == "val" and slide.label
    ]
    return labelled_predictions(slides, method.predictions.classes) if slides else None


def _referral(patients: Predictions, judges: Sequence[Judge]) -> ReferralFigures | None:
    if _too_few(judges, is_class_conditional=False):
        return None
    sets = sets_by(patients, judges)
    referred = referrals(patients.patient_ids, patients.classes, sets, {})
    return referral_figures(referred, patients.labels, patients.probabilities.argmax(axis=1))


def _sets(
    patients: Predictions, judges: Sequence[Judge], name: str, score: Score, *, is_class_conditional: bool
) -> SetsOfMethod:
    fewest = min(len(judge.unseen.labels) for judge in judges)
    reason = _too_few(judges, is_class_conditional=is_class_conditional)
    if reason:
        return SetsOfMethod(name=name, figures=None, band=None, n_calibrated=fewest, reason=reason)
    sets = sets_by(patients, judges, score=score, is_class_conditional=is_class_conditional)
    return SetsOfMethod(
        name=name,
        figures=set_figures(sets, patients.labels),
        band=None if is_class_conditional else coverage_band(fewest, ALPHA),
        n_calibrated=fewest,
        reason="",
    )


def _too_few(judges: Sequence[Judge], *, is_class_conditional: bool) -> str:
    needed = fewest_patients(ALPHA)
    if is_class_conditional and not all(has_enough_of_each(judge.unseen) for judge in judges):
        return f"fewer than {needed} patients of a class to calibrate on"
    if not all(allowed_misses(len(judge.unseen.labels), ALPHA) for judge in judges):
        return f"fewer than {needed} patients to calibrate on"
    return ""
