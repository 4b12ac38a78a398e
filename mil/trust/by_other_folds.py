"""What trust would have been worth: each fold's patients judged by what was fitted on the other folds' patients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int

from feature_extraction.errors import InputError
from mil.cohort import listed
from mil.metrics.classification import Predictions, by_patient
from mil.trust.conformal import ALPHA, Score, calibrate, prediction_sets
from mil.trust.temperature import Temperature, calibrated, fit_temperature

FEWEST_FOLDS = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatientsOfFolds:
    """Out-of-fold predictions of patients, and in which fold each was tested.

    Attributes:
        patients: Ordered by patient id.
        folds: One a patient.
    """

    patients: Predictions
    folds: Int[np.ndarray, " patient"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judge:
    """Patients that temperature and thresholds come from, and whom they are applied to.

    Attributes:
        rows: Of the patients who are judged.
        unseen: Predictions of other patients, whom the model had not seen either.
        part: Where those are from, ``val`` or ``out_of_fold``.
    """

    rows: Int[np.ndarray, " judged"]
    unseen: Predictions
    part: str


def patients_of_folds(predictions: Predictions, folds: Int[np.ndarray, " slide"]) -> PatientsOfFolds:
    """The patients of out-of-fold predictions.

    Raises:
        InputError: A patient in two folds, or a single fold.
    """
    names, first, inverse = np.unique(np.array(predictions.patient_ids), return_index=True, return_inverse=True)
    torn = sorted({str(names[place]) for place in inverse[folds != folds[first][inverse]]})
    if torn:
        raise InputError(f"folds: patient {listed(torn)} is test in several; use one fold of each patient")
    if len(np.unique(folds)) < FEWEST_FOLDS:
        raise InputError("folds: a single one; expected two or more, to judge each by the others")
    return PatientsOfFolds(patients=by_patient(predictions), folds=folds[first])


def other_folds(tested: PatientsOfFolds) -> tuple[Judge, ...]:
    """Each fold judged by the others."""
    return tuple(
        Judge(
            rows=np.flatnonzero(tested.folds == fold),
            unseen=tested.patients.take(np.flatnonzero(tested.folds != fold)),
            part="out_of_fold",
        )
        for fold in np.unique(tested.folds)
    )


def dealt_folds(predictions: Predictions, n_folds: int) -> Int[np.ndarray, " slide"]:
    """A fold for each slide of predictions that nothing was trained for: each class's patients dealt out in order."""
    patients = by_patient(predictions)
    fold_of: dict[str, int] = {}
    for label in np.unique(patients.labels):
        rows = np.flatnonzero(patients.labels == label)
        fold_of |= {patients.patient_ids[row]: (len(fold_of) + place) % n_folds for place, row in enumerate(rows)}
    return np.array([fold_of[name] for name in predictions.patient_ids])


def calibrated_by(
    patients: Predictions, judges: Sequence[Judge]
) -> tuple[Float64[np.ndarray, "patient class"], tuple[Temperature, ...]]:
    """Probabilities under the temperature of each judge, and those temperatures: what a new patient would get.

    A temperature fitted on the very patients it is then measured on looks better than it is.
    """
    found = np.empty_like(patients.probabilities)
    temperatures = tuple(fit_temperature(judge.unseen, part=judge.part) for judge in judges)
    for judge, temperature in zip(judges, temperatures, strict=True):
        found[judge.rows] = calibrated(patients.probabilities[judge.rows], temperature.value)
    return found, temperatures


def sets_by(
    patients: Predictions,
    judges: Sequence[Judge],
    *,
    score: Score = "lac",
    alpha: float = ALPHA,
    is_class_conditional: bool = False,
) -> Bool[np.ndarray, "patient class"]:
    """Each patient's set from thresholds of their judge.

    The folds' models differ, so this estimates what sets of one model do; the guarantee of `calibrate` is for one model
    (of cross-conformal sets in general only ``1 - 2 alpha`` is proven: Vovk 2015; Barber et al. 2021).

    Raises:
        InputError: A judge has too few patients.
    """
    found = np.zeros(patients.probabilities.shape, dtype=np.bool_)
    for judge in judges:
        calibration = calibrate(judge.unseen, score=score, alpha=alpha, is_class_conditional=is_class_conditional)
        found[judge.rows] = prediction_sets(calibration, patients.probabilities[judge.rows])
    return found


def calibrated_by_other_folds(tested: PatientsOfFolds) -> Float64[np.ndarray, "patient class"]:
    """`calibrated_by` the `other_folds`."""
    return calibrated_by(tested.patients, other_folds(tested))[0]


def sets_by_other_folds(
    tested: PatientsOfFolds, *, score: Score = "lac", alpha: float = ALPHA, is_class_conditional: bool = False
) -> Bool[np.ndarray, "patient class"]:
    """`sets_by` the `other_folds`.

    Raises:
        InputError: Too few patients in the other folds.
    """
    judges = other_folds(tested)
    return sets_by(tested.patients, judges, score=score, alpha=alpha, is_class_conditional=is_class_conditional)
