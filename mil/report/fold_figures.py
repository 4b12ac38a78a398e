"""Every figure of a method over its folds, and how two methods differ fold by fold."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from mil.metrics.across_folds import FEWEST_FOLDS, AcrossFolds, across_folds
from mil.metrics.classification import Predictions, by_patient, slide_metrics
from mil.metrics.differences import on_same_slides
from mil.metrics.intervals import Level
from mil.report.methods import Method
from mil.report.pooled import PredictedSlide, labelled_predictions

NO_SHOTS = 0


def over_folds(method: Method, level: Level) -> dict[str, AcrossFolds]:
    """Mean of each figure over the folds' own test parts, with its corrected interval; seeds are averaged first.

    Empty for a method of a single fold, or one without a training part.
    """
    return _across(figures_by_fold(method, level), method)


def difference_over_folds(method: Method, reference: Method, level: Level) -> dict[str, AcrossFolds]:
    """Mean difference of each figure over folds, on the slides that both predicted, with its corrected test.

    The reference is of the same split, and compared fold by fold, or was not trained, and predicts each fold's slides.
    Empty otherwise, and where `over_folds` is.
    """
    own, others = _by_fold(method), _reference_by_fold(method, reference)
    found: dict[int, dict[str, float]] = {}
    for fold, rows in own.items():
        other = others.get(fold)
        if other is None or set(rows.slide_ids).isdisjoint(other.slide_ids):
            continue
        first, second = (_figures(one, level) for one in on_same_slides(rows, other))
        found[fold] = {name: value - second[name] for name, value in first.items()}
    return _across(found, method)


def figures_by_fold(method: Method, level: Level) -> dict[int, dict[str, float]]:
    """Every figure of each fold's own test part, seeds averaged first."""
    return {fold: _figures(rows, level) for fold, rows in _by_fold(method).items()}


def _by_fold(method: Method) -> dict[int, Predictions]:
    """The labelled test slides of each fold."""
    slides: defaultdict[int, list[PredictedSlide]] = defaultdict(list)
    for fold, run in zip(method.run_folds, method.runs, strict=True):
        slides[fold] += [slide for slide in run.slides if slide.part == "test" and slide.label]
    return {fold: labelled_predictions(found, method.predictions.classes) for fold, found in slides.items() if found}


def _reference_by_fold(method: Method, reference: Method) -> Mapping[int, Predictions]:
    if reference.cell.get("split_sha256") == method.cell.get("split_sha256"):
        return _by_fold(reference)
    return dict.fromkeys(method.folds, reference.predictions) if reference.shots == NO_SHOTS else {}


def _figures(rows: Predictions, level: Level) -> dict[str, float]:
    chosen = by_patient(rows) if level == "patient" else rows
    return slide_metrics(chosen.labels, chosen.probabilities, chosen.classes)


def _across(figures: Mapping[int, Mapping[str, float]], method: Method) -> dict[str, AcrossFolds]:
    n_train, n_test = (_mean_patients(method, part) for part in ("train", "test"))
    if len(figures) < FEWEST_FOLDS or n_train == 0:
        return {}
    names = next(iter(figures.values()))
    return {
        name: across_folds(np.array([one[name] for one in figures.values()]), n_train=n_train, n_test=n_test)
        for name in names
    }


def _mean_patients(method: Method, part: str) -> float:
    """Patients of a part, the mean over folds."""
    patients: defaultdict[int, set[str]] = defaultdict(set)
    for fold, run in zip(method.run_folds, method.runs, strict=True):
        patients[fold] |= {slide.patient_id for slide in run.slides if slide.part == part}
    return float(np.mean([len(found) for found in patients.values()])) if patients else 0.0
