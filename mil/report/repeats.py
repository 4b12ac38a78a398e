"""Which folds of a method are one drawing: within it each patient is test once, across drawings several times."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Int

from feature_extraction.errors import InputError
from mil.cohort import listed
from mil.metrics.classification import Predictions
from mil.report.pooled import PredictedSlide, RunPredictions, labelled_predictions

EACH_FOLD_DRAWN_ANEW = frozenset({"monte_carlo"})
TESTED_ONCE = frozenset({"kfold", "few_shot", "site_preserved", "leave_one_site_out"})
"""Schemes in which a patient that is test in two folds is a mistake."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Repeat:
    """The out-of-fold predictions of one drawing of folds.

    Attributes:
        folds: Of the drawing.
        predictions: Of its labelled test slides, seeds averaged.
        fold_of: The fold that each was tested in.
    """

    folds: tuple[int, ...]
    predictions: Predictions
    fold_of: Int[np.ndarray, " slide"]


def repeats_of(runs: Sequence[RunPredictions], folds: Sequence[int], *, scheme: str) -> tuple[Repeat, ...]:
    """The drawings of a method, in the order of their folds; empty without a labelled test slide.

    The mean of a slide's predictions in several drawings would be that of an ensemble, which nobody trains, and better
    than any of its models: figures are made within a drawing and averaged.

    Args:
        runs: Of one method.
        folds: The fold of each run.
        scheme: Of the split. Folds of ``monte_carlo`` are a drawing each. Of any other, a fold begins a drawing when it
            tests a patient that the present one has tested.

    Raises:
        InputError: A patient is test in two folds of a scheme that tests each once.
    """
    tested: defaultdict[int, list[PredictedSlide]] = defaultdict(list)
    for fold, run in sorted(zip(folds, runs, strict=True), key=lambda pair: pair[0]):
        tested[fold] += [slide for slide in run.slides if slide.part == "test" and slide.label]
    patients = {fold: {slide.patient_id for slide in slides} for fold, slides in tested.items() if slides}
    if scheme in TESTED_ONCE:
        _require_tested_once(patients, scheme)
    return tuple(_repeat(group, tested, runs[0].classes) for group in _groups(patients, scheme))


def _groups(patients: Mapping[int, set[str]], scheme: str) -> list[list[int]]:
    if scheme in EACH_FOLD_DRAWN_ANEW:
        return [[fold] for fold in patients]
    groups: list[list[int]] = []
    seen: set[str] = set()
    for fold, names in patients.items():
        if not groups or not seen.isdisjoint(names):
            groups.append([])
            seen = set()
        groups[-1].append(fold)
        seen |= names
    return groups


def _repeat(group: Sequence[int], tested: Mapping[int, list[PredictedSlide]], classes: tuple[str, ...]) -> Repeat:
    fold_of = {slide.slide_id: fold for fold in group for slide in tested[fold]}
    predictions = labelled_predictions([slide for fold in group for slide in tested[fold]], classes)
    return Repeat(
        folds=tuple(group),
        predictions=predictions,
        fold_of=np.array([fold_of[slide_id] for slide_id in predictions.slide_ids]),
    )


def _require_tested_once(patients: Mapping[int, set[str]], scheme: str) -> None:
    torn = [
        f"{name} (folds {one} and {other})"
        for one, other in combinations(patients, 2)
        for name in sorted(patients[one] & patients[other])
    ]
    if torn:
        raise InputError(
            f"predictions: scheme {scheme} tests each patient once, and {len(torn)} are test in two folds: "
            f"{listed(torn)}; the runs are not of one split: remove those of the other"
        )
