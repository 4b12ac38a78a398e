"""Which classes fit a patient: the prediction set of a sweep's run, by what the other folds found."""

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd

from feature_extraction.errors import InputError
from mil.metrics.classification import Predictions, by_patient
from mil.trust.conformal import ALPHA, calibrate, prediction_sets

Slide = tuple[str, str, str, int]
"""Its id, patient, label, and the fold in which it is test."""


def prediction_set(tables: Sequence[pd.DataFrame], classes: Sequence[str], slide_id: str) -> dict[str, object] | None:
    """The set (LAC, `mil.trust.conformal`) of the slide's patient, seeds averaged; None where there can be none.

    Its threshold comes from the test patients of the other folds. Their models differ from this one, so that the share
    of patients whose class is in their set is an aim and no guarantee.

    Returns:
        ``percent`` of the patients whose set is to hold their class, ``classes`` of the set, ``patients`` behind the
        threshold. None for a single fold, repeated folds, fewer patients than a threshold needs, a patient whose slides
        have two labels, and tasks whose labels are no classes with probabilities that sum to 1.

    Args:
        tables: ``predictions.csv`` of each run of one method.
        classes: In the order of the columns.
        slide_id: The slide.
    """
    tested = _tested(tables, classes)
    own = next((slide for slide in tested if slide[0] == slide_id), None)
    if own is None or len({name for name, *_ in tested}) < len(tested) or not _are_classes(tested, classes):
        return None
    of_patient = {slide: values for slide, values in tested.items() if slide[1] == own[1]}
    unseen = {slide: values for slide, values in tested.items() if slide[3] != own[3] and slide not in of_patient}
    if not unseen or {slide[3] for slide in of_patient} != {own[3]}:
        return None
    try:
        calibration = calibrate(_predictions(unseen, classes), score="lac", alpha=ALPHA, is_class_conditional=False)
        (fits,) = prediction_sets(calibration, by_patient(_predictions(of_patient, classes)).probabilities)
    except InputError:  # too few of them, or a patient of two classes
        return None
    return {
        "percent": round(100 * (1 - ALPHA)),
        "classes": [name for name, does_fit in zip(classes, fits.tolist(), strict=True) if does_fit],
        "patients": max(calibration.n_patients),
    }


def _tested(tables: Sequence[pd.DataFrame], classes: Sequence[str]) -> dict[Slide, np.ndarray]:
    """Mean probabilities of each slide in each fold in which it is test; empty when there are none."""
    found: defaultdict[Slide, list[list[float]]] = defaultdict(list)
    for table in tables:
        for row in cast("list[dict[str, object]]", table.to_dict("records")):
            if row["part"] == "test" and all(f"p_{name}" in row for name in classes):
                slide = str(row["slide_id"]), str(row["patient_id"]), str(row["label"]), int(cast("int", row["fold"]))
                found[slide].append([float(cast("float", row[f"p_{name}"])) for name in classes])
    return {slide: np.mean(values, axis=0) for slide, values in found.items()}


def _are_classes(tested: dict[Slide, np.ndarray], classes: Sequence[str]) -> bool:
    """Whether each label is one of the classes, of which each slide has one."""
    sums = np.array([values.sum() for values in tested.values()])
    return all(label in classes for _, _, label, _ in tested) and bool(np.allclose(sums, 1, atol=1e-3))


def _predictions(slides: dict[Slide, np.ndarray], classes: Sequence[str]) -> Predictions:
    return Predictions(
        slide_ids=tuple(slide_id for slide_id, *_ in slides),
        patient_ids=tuple(patient_id for _, patient_id, *_ in slides),
        classes=tuple(classes),
        labels=np.array([classes.index(label) for _, _, label, _ in slides]),
        probabilities=np.array(list(slides.values())),
    )
