"""Out-of-fold predictions of tasks that predict no class, or an order of classes: their figures with intervals."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int

from feature_extraction.errors import InputError
from mil.cohort import is_missing, listed, read_rows
from mil.labels import NUMBER, ONE_CLASS, SEVERAL_CLASSES, TIME_TO_EVENT, has_and_unknown, time_and_event
from mil.metrics.bootstrap import RESAMPLES, Figures
from mil.metrics.intervals import LEVELS, Estimate, Level, bootstrap_figures
from mil.metrics.multilabel import weighted_multilabel
from mil.metrics.ordinal import weighted_ordinal
from mil.metrics.regression import weighted_regression
from mil.metrics.survival import weighted_concordance
from mil.runs import Run

_PROBABILITY, _AUC = "p_", "auc_"
_SCORES = {NUMBER.name: "value", TIME_TO_EVENT.name: "risk"}
_ORDINAL = "qwk"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tested:
    """What the runs of a method predicted for slides they had not seen.

    Attributes:
        kind: Of the labels, `mil.labels`.
        patient_ids: Of each row.
        labels: Of each row, as in the table.
        folds: The fold whose models predicted the row; 0 everywhere where folds can be compared.
        said: The score, or one probability a class; the mean over seeds.
        classes: Names of the columns of ``said``, in the order of the task; empty for a score.
        n_slides: Different slides among the rows.
    """

    kind: str
    patient_ids: tuple[str, ...]
    labels: tuple[str, ...]
    folds: Int[np.ndarray, " row"]
    said: Float64[np.ndarray, "row column"]
    classes: tuple[str, ...]
    n_slides: int


def pooled_figures(
    runs: Sequence[Run], names: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[Level, dict[str, Estimate]]:
    """Figures of the pooled test slides of one method's runs, with intervals over patients, at both levels.

    Numbers, classes in an order and several classes are pooled over folds. Risks are compared within a fold only
    (`mil.metrics.survival.weighted_concordance`). Patients are drawn within the classes, or within events and censored
    ones; for numbers and several classes, from all.

    Args:
        runs: Of one method.
        names: Figures that the runs have computed; they say which there are.
        resamples: Of the bootstrap.
        seed: Of the draws.

    Raises:
        InputError: Predictions that cannot be read, or runs that disagree on a slide.
    """
    tested = _tested(runs, names)
    if tested is None:
        return {}
    return {
        level: _intervals(tested if level == "slide" else _by_patient(tested), tested, resamples=resamples, seed=seed)
        for level in LEVELS
    }


def patients_of_parts(runs: Sequence[Run]) -> tuple[float, float]:
    """Mean number of training and of test patients of the folds; 0 where the predictions do not hold a part."""
    found: dict[object, dict[str, set[str]]] = {}
    for run in runs:
        parts = found.setdefault(run.cell.get("fold"), {"train": set(), "test": set()})
        for line in read_rows(run.folder / "predictions.csv")[1].values():
            if line["part"] in parts:
                parts[line["part"]].add(line["patient_id"])
    counts = [[len(parts[part]) for part in ("train", "test")] for parts in found.values()]
    n_train, n_test = np.mean(counts, axis=0) if counts else (0.0, 0.0)
    return float(n_train), float(n_test)


def _tested(runs: Sequence[Run], names: Sequence[str]) -> Tested | None:
    kind = str(runs[0].cell.get("labels", ONE_CLASS.name))
    if kind == ONE_CLASS.name and _ORDINAL not in names:
        return None
    rows: defaultdict[tuple[str, int], list[Mapping[str, str]]] = defaultdict(list)
    columns: tuple[str, ...] = ()
    for run in runs:
        header, lines = read_rows(run.folder / "predictions.csv")
        columns = columns or _columns(kind, header, names)
        missing = [name for name in columns if name not in header]
        if missing:
            raise InputError(
                f"{run.folder / 'predictions.csv'}: no column {listed(missing)}, unlike other runs; train anew"
            )
        fold = int(str(run.cell.get("fold") or 0)) if kind == TIME_TO_EVENT.name else 0
        for line in lines.values():
            if line["part"] == "test" and not is_missing(line["label"]):
                rows[line["slide_id"], fold].append(line)
    return _joined(kind, columns, rows) if rows and columns else None


def _columns(kind: str, header: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """What to read: the score, or the probabilities of the classes that the figures are of."""
    if kind in _SCORES:
        return (_SCORES[kind],)
    found = tuple(name for name in header if name.startswith(_PROBABILITY))
    if kind == SEVERAL_CLASSES.name:
        return tuple(name for name in found if f"{_AUC}{name.removeprefix(_PROBABILITY)}" in names)
    return found


def _joined(kind: str, columns: tuple[str, ...], rows: Mapping[tuple[str, int], Sequence[Mapping[str, str]]]) -> Tested:
    torn = [key[0] for key, lines in rows.items() if len({(line["patient_id"], line["label"]) for line in lines}) > 1]
    if torn:
        raise InputError(f"predictions: slide {listed(torn)} has another label or patient in another run; train anew")
    keys = sorted(rows)
    said = [np.mean([[_number(line, name) for name in columns] for line in rows[key]], axis=0) for key in keys]
    return Tested(
        kind=kind,
        patient_ids=tuple(rows[key][0]["patient_id"] for key in keys),
        labels=tuple(rows[key][0]["label"] for key in keys),
        folds=np.array([fold for _, fold in keys]),
        said=np.array(said),
        classes=() if kind in _SCORES else tuple(name.removeprefix(_PROBABILITY) for name in columns),
        n_slides=len({slide for slide, _ in keys}),
    )


def _number(line: Mapping[str, str], name: str) -> float:
    try:
        return float(line[name])
    except ValueError as error:
        raise InputError(f"predictions: slide {line['slide_id']}: {name}={line[name]!r}, expected a number") from error


def _by_patient(tested: Tested) -> Tested:
    """The mean of each patient's slides within a fold."""
    places: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for row, key in enumerate(zip(tested.patient_ids, tested.folds.tolist(), strict=True)):
        places[key].append(row)
    torn = sorted({key[0] for key, rows in places.items() if len({tested.labels[row] for row in rows}) > 1})
    if torn:
        raise InputError(
            f"predictions: slides of patient {listed(torn)} have different labels; correct the labels table"
        )
    return replace(
        tested,
        patient_ids=tuple(patient for patient, _ in places),
        labels=tuple(tested.labels[rows[0]] for rows in places.values()),
        folds=np.array([fold for _, fold in places]),
        said=np.array([tested.said[rows].mean(axis=0) for rows in places.values()]),
    )


def _intervals(rows: Tested, slides: Tested, *, resamples: int, seed: int) -> dict[str, Estimate]:
    found = bootstrap_figures(_figures(rows), rows.patient_ids, _strata(rows), resamples=resamples, seed=seed)
    return {name: replace(estimate, n_slides=slides.n_slides) for name, estimate in found.items()}


def _strata(rows: Tested) -> Sequence[str]:
    if rows.kind == ONE_CLASS.name:
        return rows.labels
    if rows.kind == TIME_TO_EVENT.name:
        return ["event" if time_and_event(label)[1] else "censored" for label in rows.labels]
    return [""] * len(rows.labels)


def _figures(rows: Tested) -> Figures:
    if rows.kind == ONE_CLASS.name:
        places = np.array([rows.classes.index(label) for label in rows.labels])
        return lambda weights: weighted_ordinal(places, rows.said, weights)
    if rows.kind == NUMBER.name:
        truth = np.array([float(label) for label in rows.labels])
        return lambda weights: weighted_regression(truth, rows.said[:, 0], weights)
    if rows.kind == TIME_TO_EVENT.name:
        pairs = [time_and_event(label) for label in rows.labels]
        times, is_event = np.array([time for time, _ in pairs]), np.array([event for _, event in pairs])
        return lambda weights: {"c_index": weighted_concordance(times, is_event, rows.said[:, 0], rows.folds, weights)}
    known = np.array([_row_of_classes(label, rows.classes) for label in rows.labels])
    return lambda weights: weighted_multilabel(known, rows.said, rows.classes, weights)


def _row_of_classes(label: str, classes: Sequence[str]) -> list[float]:
    has, unknown = has_and_unknown(label)
    return [float("nan") if name in unknown else float(name in has) for name in classes]
