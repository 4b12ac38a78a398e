"""How a split is drawn: patients into folds, validation patients out of training, a few of them for few-shot."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import check_random_state

from feature_extraction.errors import InputError
from mil.cohort import Cohort, listed
from mil.labels import ONE_CLASS, LabelKind
from mil.splits import FEW_SHOT, KFOLD, SplitRow, SplitTable, check_split, make_table

SCHEMES = (KFOLD, FEW_SHOT)
MOST_SHOTS_WITHOUT_VAL = 4
"""A few-shot training part this small has no val: choosing on more labels than one trains on is not few-shot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    """What determines every draw.

    Attributes:
        seed: Of the split.
        folds: How many.
        val_fraction: Share of each class's training patients that becomes val.
    """

    seed: int
    folds: int
    val_fraction: float


def make_split(
    cohort: Cohort,
    *,
    scheme: str = KFOLD,
    folds: int = 5,
    seed: int = 0,
    shots: int | None = None,
    val_fraction: float = 0.2,
    kind: LabelKind = ONE_CLASS,
) -> SplitTable:
    """Draw a split; the same cohort, in any order of rows, and the same seed give the same split.

    ``kfold``: each patient is test in exactly one fold; every class is spread evenly; val is taken from the others,
    class by class. ``few_shot``: the test parts of ``kfold`` with the same seed, ``shots`` training patients per class
    drawn from its train part (those of 2 shots contain those of 1), and its val part, or none up to 4 shots. Labels
    that are not one class are spread evenly by the groups that their kind makes of them, in ``kfold`` only.

    Raises:
        InputError: Unknown scheme, a setting out of range, or too few patients of a class.
    """
    _require_settings(scheme, folds, seed, shots, val_fraction)
    if scheme == FEW_SHOT and kind.fewest_names < 2:
        raise InputError("scheme=few_shot: draws patients of each class, and these labels are not one class; use kfold")
    given = cohort.labels_of_patients()
    labels, groups = kind.strata(given, _fewest(folds)), kind.groups(given, _fewest(folds))
    _require_patients(labels, folds, kind)
    drawing = _Drawing(seed=seed, folds=folds, val_fraction=val_fraction)
    assigned = _kfold(labels, groups, drawing)
    if shots is not None:
        assigned = [_few_shot(parts, labels, fold, shots, seed) for fold, parts in enumerate(assigned)]
    rows = (
        SplitRow(
            patient_id=row.patient_id,
            slide_id=row.slide_id,
            label=row.label,
            site=row.site,
            parts=tuple(parts[row.patient_id] for parts in assigned),
        )
        for row in cohort.rows
    )
    table = make_table(rows, scheme=scheme, shots=shots)
    check_split(table, cohort=cohort, kind=kind)
    return table


def _require_settings(scheme: str, folds: int, seed: int, shots: int | None, val_fraction: float) -> None:
    if scheme not in SCHEMES:
        raise InputError(f"scheme={scheme}: expected one of {', '.join(SCHEMES)}")
    if folds < 2:
        raise InputError(f"folds={folds}: expected at least 2")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed}: expected 0 to 4294967295")
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction={val_fraction}: expected a share between 0 and 1")
    if scheme == FEW_SHOT and (shots is None or shots < 1):
        raise InputError(f"shots={shots}: expected the number of training patients per class, 1 or more")
    if scheme == KFOLD and shots is not None:
        raise InputError(f"shots={shots}: kfold uses every label; leave shots out, or set scheme=few_shot")


def _fewest(folds: int) -> int:
    """Patients of each class: one in every test part, and one each left for train and val."""
    return 4 if folds == 2 else folds


def _require_patients(labels: Mapping[str, str], folds: int, kind: LabelKind) -> None:
    needed = _fewest(folds)
    counts = {name: len(patients) for name, patients in _by_class(labels).items()}
    few = [f"{name} ({count})" for name, count in counts.items() if count < needed]
    if few:
        raise InputError(
            f"folds={folds}: expected {needed} or more patients of each class, got {listed(few)}; use fewer folds"
        )
    if len(counts) < kind.fewest_names:
        raise InputError(f"labels: expected at least two classes, got {listed(counts)}")


def _kfold(labels: Mapping[str, str], groups: Mapping[str, str], drawing: _Drawing) -> list[dict[str, str]]:
    """Patient to part, one mapping a fold; val is drawn from each group, however small."""
    patients = np.array(list(labels))
    classes = np.array(list(labels.values()))
    folds = StratifiedKFold(drawing.folds, shuffle=True, random_state=drawing.seed)
    assigned: list[dict[str, str]] = []
    for fold, (_, test) in enumerate(folds.split(patients, classes)):
        parts = {**dict.fromkeys(labels, "train"), **dict.fromkeys(patients[test].tolist(), "test")}
        for name in _val_patients({key: groups[key] for key in labels if parts[key] == "train"}, fold, drawing):
            parts[name] = "val"
        assigned.append(parts)
    return assigned


def _val_patients(labels: Mapping[str, str], fold: int, drawing: _Drawing) -> list[str]:
    """A share of each class, at least one patient in val and one left in train."""
    chosen: list[str] = []
    for number, patients in enumerate(_by_class(labels).values()):
        size = min(max(round(drawing.val_fraction * len(patients)), 1), len(patients) - 1)
        chosen += _drawn(patients, (drawing.seed, fold, number, 0))[:size]
    return chosen


def _few_shot(parts: Mapping[str, str], labels: Mapping[str, str], fold: int, shots: int, seed: int) -> dict[str, str]:
    """Keep the first ``shots`` of each class's training patients, in an order that does not depend on ``shots``."""
    stay = ("test", "val") if shots > MOST_SHOTS_WITHOUT_VAL else ("test",)
    kept = {name: part for name, part in parts.items() if part in stay}
    training = {name: label for name, label in labels.items() if parts[name] == "train"}
    for number, (label, patients) in enumerate(_by_class(training).items()):
        if len(patients) < shots:
            raise InputError(
                f"shots={shots}: fold {fold} has {len(patients)} training patients of class {label}; use fewer shots"
            )
        kept |= dict.fromkeys(_drawn(patients, (seed, fold, number, 1))[:shots], "train")
    return {name: kept.get(name, "") for name in parts}


def _by_class(labels: Mapping[str, str]) -> dict[str, list[str]]:
    """Class to its patients, both sorted."""
    patients: defaultdict[str, list[str]] = defaultdict(list)
    for name, label in sorted(labels.items()):
        patients[label].append(name)
    return dict(sorted(patients.items()))


def _drawn(patients: Sequence[str], key: tuple[int, ...]) -> list[str]:
    """The patients in an order of their own for each key."""
    state = int(np.random.SeedSequence(key).generate_state(1)[0])
    return [str(patients[int(place)]) for place in check_random_state(state).permutation(len(patients))]
