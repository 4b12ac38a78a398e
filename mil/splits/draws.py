"""What every drawn split is made of: patients in an order of their own for each key, a share of each class, val."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.utils import check_random_state

from mil.labels import LabelKind
from mil.splits.table import KFOLD

VAL, SHOTS, TEST, SITES = 0, 1, 2, 3
"""A number of the key: what is drawn for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSettings:
    """What is asked of a split. What a scheme has no use for is None.

    Attributes:
        scheme: Name in `mil.splits.schemes.SCHEMES`.
        folds: How many, and draws of ``monte_carlo``; ``leave_one_site_out`` has one a site.
        seed: Of every draw, 0 to 2³² - 1.
        val_fraction: Share of each class's patients outside the test part that becomes val.
        shots: Training patients per class.
        repeats: How often the folds are drawn.
        test_fraction: Share of each class's patients that becomes test.
    """

    scheme: str = KFOLD
    folds: int = 5
    seed: int = 0
    val_fraction: float = 0.2
    shots: int | None = None
    repeats: int | None = None
    test_fraction: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What a scheme is given.

    Attributes:
        settings: What is asked.
        labels: Patient to the class that is spread evenly, ordered by patient.
        groups: Patient to the class that val is drawn from; small ones are not put together.
        names: Patient to what it brings that every part needs.
        sites: Patient to site; empty for a scheme that does not ask.
        kind: What a label is.
    """

    settings: SplitSettings
    labels: Mapping[str, str]
    groups: Mapping[str, str]
    names: Mapping[str, tuple[str, ...]]
    sites: Mapping[str, str]
    kind: LabelKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What a scheme gives.

    Attributes:
        folds: Patient to part, one mapping a fold; empty for a patient that is not used.
        note: What people should know of the draw, empty for nothing.
    """

    folds: tuple[dict[str, str], ...]
    note: str = ""


def with_val(drawing: Drawing, test: Sequence[str], fold: int) -> dict[str, str]:
    """Patient to part: these are test, and a share of each class of the others is val."""
    parts = {**dict.fromkeys(drawing.labels, "train"), **dict.fromkeys(test, "test")}
    training = {name: drawing.groups[name] for name in drawing.labels if parts[name] == "train"}
    settings = drawing.settings
    return parts | dict.fromkeys(share(training, settings.val_fraction, (settings.seed, fold), VAL), "val")


def share(
    classes: Mapping[str, str], fraction: float, key: tuple[int, int], purpose: int, *, left: int = 1
) -> list[str]:
    """A share of each class's patients, one at least unless fewer than ``left`` would remain."""
    chosen: list[str] = []
    for number, patients in enumerate(by_class(classes).values()):
        size = min(max(round(fraction * len(patients)), 1), max(len(patients) - left, 0))
        chosen += in_drawn_order(patients, (*key, number, purpose))[:size]
    return chosen


def by_class(classes: Mapping[str, str]) -> dict[str, list[str]]:
    """Class to its patients, both sorted."""
    patients: defaultdict[str, list[str]] = defaultdict(list)
    for name, label in sorted(classes.items()):
        patients[label].append(name)
    return dict(sorted(patients.items()))


def in_drawn_order(patients: Sequence[str], key: tuple[int, ...]) -> list[str]:
    """The patients in an order of their own for each key."""
    state = int(np.random.SeedSequence(key).generate_state(1)[0])
    return [str(patients[int(place)]) for place in check_random_state(state).permutation(len(patients))]
