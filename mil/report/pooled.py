"""The predictions of several runs of one method, put together: one row a slide, from runs that never saw it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_extraction.errors import InputError
from mil.cohort import is_missing, listed, read_rows
from mil.metrics.classification import Predictions
from mil.runs import Run

PREDICTIONS = "predictions.csv"
_PROBABILITY = "p_"


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedSlide:
    """One row of ``predictions.csv``.

    Attributes:
        slide_id: The slide.
        patient_id: Its patient.
        part: train, val or test of the run's fold.
        label: True class, empty when unknown.
        probabilities: In the order of `RunPredictions.classes`.
    """

    slide_id: str
    patient_id: str
    part: str
    label: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPredictions:
    """What one run predicted.

    Attributes:
        classes: Class names, sorted, so that every run has them in one order.
        slides: In the order of the file.
    """

    classes: tuple[str, ...]
    slides: tuple[PredictedSlide, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """The out-of-fold predictions of a method.

    Attributes:
        test: Of the labelled test slides, ordered by slide id; a slide's probabilities are the mean over seeds. None
            without a labelled test slide.
        unlabelled: Test slides without a label, which no figure counts.
        never_tested: Slides that were used for training or validation and are test in no run.
    """

    test: Predictions | None
    unlabelled: tuple[str, ...]
    never_tested: tuple[str, ...]


def read_predictions(run: Run) -> RunPredictions:
    """Read a run's ``predictions.csv``.

    Raises:
        InputError: A column is missing, or a cell is not a number.
    """
    path = run.folder / PREDICTIONS
    columns, lines = read_rows(path)
    classes = tuple(sorted(name.removeprefix(_PROBABILITY) for name in columns if name.startswith(_PROBABILITY)))
    missing = [name for name in ("slide_id", "patient_id", "part", "label") if name not in columns]
    if missing or len(classes) < 2:
        raise InputError(
            f"{path}: expected slide_id, patient_id, part, label and two or more p_<class>; got {listed(columns)}"
        )
    slides = tuple(
        PredictedSlide(
            slide_id=line["slide_id"],
            patient_id=line["patient_id"],
            part=line["part"],
            label="" if is_missing(line["label"]) and line["label"] not in classes else line["label"],
            probabilities=tuple(_number(line[f"{_PROBABILITY}{name}"], path, number) for name in classes),
        )
        for number, line in lines.items()
    )
    return RunPredictions(classes=classes, slides=slides)


def pool(runs: Sequence[RunPredictions]) -> Pooled:
    """Put the test parts of a method's runs together.

    Raises:
        InputError: Runs with other classes, or a slide with two labels or patients.
    """
    classes = _one_list_of_classes(runs)
    tested = [slide for run in runs for slide in run.slides if slide.part == "test"]
    labelled = [slide for slide in tested if slide.label]
    return Pooled(
        test=labelled_predictions(labelled, classes) if labelled else None,
        unlabelled=_ids(slide for slide in tested if not slide.label),
        never_tested=tuple(sorted({slide.slide_id for run in runs for slide in run.slides} - set(_ids(tested)))),
    )


def val_predictions(run: RunPredictions) -> Predictions | None:
    """The validation part of one run, None without one."""
    chosen = [slide for slide in run.slides if slide.part == "val" and slide.label]
    return labelled_predictions(chosen, run.classes) if chosen else None


def labelled_predictions(slides: Sequence[PredictedSlide], classes: tuple[str, ...]) -> Predictions:
    """One row a slide, ordered by slide id; the mean where a slide was predicted more than once.

    Raises:
        InputError: A slide with two labels or patients, or a label that is no class.
    """
    found: defaultdict[str, list[PredictedSlide]] = defaultdict(list)
    for slide in slides:
        found[slide.slide_id].append(slide)
    torn = [name for name, rows in found.items() if len({(row.patient_id, row.label) for row in rows}) > 1]
    if torn:
        raise InputError(f"predictions: slide {listed(torn)} has another label or patient in another run; train anew")
    unknown = sorted({slide.label for slide in slides} - set(classes))
    if unknown:
        raise InputError(f"predictions: label {listed(unknown)} is none of the classes {listed(classes)}; predict anew")
    rows = [found[name] for name in sorted(found)]
    return Predictions(
        slide_ids=tuple(group[0].slide_id for group in rows),
        patient_ids=tuple(group[0].patient_id for group in rows),
        classes=classes,
        labels=np.array([classes.index(group[0].label) for group in rows]),
        probabilities=np.array([np.mean([row.probabilities for row in group], axis=0) for group in rows]),
    )


def _one_list_of_classes(runs: Sequence[RunPredictions]) -> tuple[str, ...]:
    lists = sorted({run.classes for run in runs})
    if len(lists) != 1:
        raise InputError(
            f"predictions: runs of one method have other classes ({'; '.join(map(listed, lists))}); train anew"
        )
    return lists[0]


def _ids(slides: Iterable[PredictedSlide]) -> tuple[str, ...]:
    return tuple(sorted({slide.slide_id for slide in slides}))


def _number(cell: str, path: Path, line: int) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise InputError(f"{path}: line {line}: expected a probability, got {cell!r}; predict anew") from error
