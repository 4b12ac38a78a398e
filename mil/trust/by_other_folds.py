"""What trust would have been worth: each fold's patients judged by what was fitted on the other folds' patients."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int

from feature_extraction.errors import InputError
from mil.cohort import listed
from mil.metrics import Predictions, by_patient
from mil.trust.conformal import ALPHA, Score, calibrate, prediction_sets
from mil.trust.temperature import calibrated, fit_temperature

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


def calibrated_by_other_folds(tested: PatientsOfFolds) -> Float64[np.ndarray, "patient class"]:
    """Probabilities under the temperature of the other folds: what a new patient would get.

    A temperature fitted on the very patients it is then measured on looks better than it is.
    """
    found = np.empty_like(tested.patients.probabilities)
    for fold in np.unique(tested.folds):
        is_here = tested.folds == fold
        others = tested.patients.take(np.flatnonzero(~is_here))
        temperature = fit_temperature(others, part="out_of_fold")
        found[is_here] = calibrated(tested.patients.probabilities[is_here], temperature.value)
    return found


def sets_by_other_folds(
    tested: PatientsOfFolds, *, score: Score = "lac", alpha: float = ALPHA, is_class_conditional: bool = False
) -> Bool[np.ndarray, "patient class"]:
    """Each patient's set from thresholds of the other folds.

    The folds' models differ, so this estimates what sets of one model do; the guarantee of `calibrate` is for one model
    (of cross-conformal sets in general only ``1 - 2 alpha`` is proven: Vovk 2015; Barber et al. 2021).

    Raises:
        InputError: Too few patients in the other folds.
    """
    found = np.zeros(tested.patients.probabilities.shape, dtype=np.bool_)
    for fold in np.unique(tested.folds):
        is_here = tested.folds == fold
        others = tested.patients.take(np.flatnonzero(~is_here))
        calibration = calibrate(others, score=score, alpha=alpha, is_class_conditional=is_class_conditional)
        found[is_here] = prediction_sets(calibration, tested.patients.probabilities[is_here])
    return found
