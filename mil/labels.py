"""What a cell of the label column says, as text alone: one class, several classes, a number, or a time to an event.

A labels table and a split file have one column ``label``. One class is its name. Several are ``A;B``; a class that
nobody looked for is ``C?``, every other class is absent, and ``-`` is of none. A number is a number. A time to an
event is the time, with a ``+`` when the event had not come by then (``12.5``, ``30+``); a labels table may give it as
two columns, ``time`` and ``event`` (1 or 0).
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from feature_extraction.errors import InputError

Target = int | float | tuple[float, ...]
"""What a label is to a task: the index of a class, a number, or one number a column."""
SEPARATOR, UNKNOWN, CENSORED, NO_CLASS = ";", "?", "+", "-"
MOST_STRATA = 4
"""Groups of like values that a number is dealt out to the folds in."""
_YES, _NO = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no"})


class LabelKind(ABC):
    """How cells of the label column are read, and what of them every part of a fold must have.

    Attributes:
        name: For ``cell.json``.
        fewest_names: How many different things `required` must find in a whole split.
        parts: The parts that must have each of them.
        is_class: Whether those things are classes.
    """

    name: ClassVar[str]
    fewest_names: ClassVar[int] = 1
    parts: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    is_class: ClassVar[bool] = True

    def columns(self, header: Sequence[str]) -> tuple[str, ...]:
        """The columns of a labels table that hold the label."""
        return ("label",)

    def cell(self, line: Mapping[str, str]) -> str:
        """The label of one line of such a table."""
        return line["label"]

    @abstractmethod
    def fault(self, label: str) -> str | None:
        """What was expected of a label that cannot be read, None for a good one."""

    @abstractmethod
    def required(self, label: str) -> tuple[str, ...]:
        """What this label brings that every part needs."""

    @abstractmethod
    def groups(self, labels: Mapping[str, str], fewest: int) -> dict[str, str]:
        """Patient to the group of like labels that is dealt out evenly, of ``fewest`` patients where one may choose."""

    def strata(self, labels: Mapping[str, str], fewest: int) -> dict[str, str]:
        """The groups, those of fewer patients put together; if that is still too few, into the largest."""
        groups = self.groups(labels, fewest)
        counts = Counter(groups.values())
        small = {name for name, count in counts.items() if count < fewest}
        large = [(count, name) for name, count in counts.items() if name not in small]
        is_enough = sum(counts[name] for name in small) >= fewest
        other = "other" if is_enough or not large else max(large)[1]
        return {patient: other if name in small else name for patient, name in groups.items()}


class OneClass(LabelKind):
    """The name of a class."""

    name = "one_class"
    fewest_names = 2

    def fault(self, label: str) -> str | None:
        """Every text is a name."""
        return None

    def required(self, label: str) -> tuple[str, ...]:
        """The class."""
        return (label,)

    def groups(self, labels: Mapping[str, str], fewest: int) -> dict[str, str]:
        """The classes."""
        return dict(labels)

    def strata(self, labels: Mapping[str, str], fewest: int) -> dict[str, str]:
        """The classes, however small: they are not to be mixed."""
        return dict(labels)


class SeveralClasses(LabelKind):
    """``A;B``: of both; ``A;C?``: of A, perhaps of C; of no other class. val and test may lack a class (nan there)."""

    name = "several_classes"
    parts = ("train",)

    def fault(self, label: str) -> str | None:
        """No empty name, none twice."""
        names = [part.strip().removesuffix(UNKNOWN) for part in label.split(SEPARATOR)]
        is_bad = not all(names) or len(set(names)) != len(names)
        return "class names such as A;B, C? for unknown, none twice" if is_bad else None

    def required(self, label: str) -> tuple[str, ...]:
        """The classes it has."""
        return has_and_unknown(label)[0]

    def groups(self, labels: Mapping[str, str], fewest: int) -> dict[str, str]:
        """A patient's rarest class."""
        names = {patient: self.required(label) for patient, label in labels.items()}
        counts = Counter(name for has in names.values() for name in has)
        return {p: min(has, key=lambda name: (counts[name], name), default="none") for p, has in names.items()}


class Number(LabelKind):
    """A finite number."""

    name = "number"
    is_class = False

    def fault(self, label: str) -> str | None:
        """A finite number."""
        return None if np.isfinite(_number(label)) else "a number"

    def required(self, label: str) -> tuple[str, ...]:
        """A slide with a number."""
        return ("with a number",)

    def groups(self, labels: Mapping[str, str], fewest: int) -> dict[str, str]:
        """Up to four groups of like values."""
        n_groups = int(np.clip(len(labels) // max(fewest, 1), 1, MOST_STRATA))
        order = sorted(labels, key=lambda patient: (_number(labels[patient]), patient))
        return {patient: f"group {place * n_groups // len(order)}" for place, patient in enumerate(order)}


class TimeToEvent(LabelKind):
    """``12.5``: the event came at 12.5; ``30+``: it had not come by 30 (censored). Any unit, not negative."""

    name = "time_to_event"
    is_class = False

    def columns(self, header: Sequence[str]) -> tuple[str, ...]:
        """``time`` and ``event`` where the table has them, else ``label``."""
        return ("time", "event") if {"time", "event"} <= set(header) else ("label",)

    def cell(self, line: Mapping[str, str]) -> str:
        """The time, with a ``+`` when censored; an unreadable event stays readable in the message."""
        if not {"time", "event"} <= set(line):
            return line["label"]
        event = line["event"].lower()
        return line["time"] + ("" if event in _YES else CENSORED if event in _NO else f" event={event}")

    def fault(self, label: str) -> str | None:
        """A time that is not negative."""
        time = time_and_event(label)[0]
        return None if np.isfinite(time) and time >= 0 else "a time such as 12.5, 30+ when censored (event 1 or 0)"

    def required(self, label: str) -> tuple[str, ...]:
        """An event."""
        return ("with an event",) if time_and_event(label)[1] else ()

    def groups(self, labels: Mapping[str, str], fewest: int) -> dict[str, str]:
        """With an event, and censored."""
        return {name: "event" if time_and_event(label)[1] else "censored" for name, label in labels.items()}


ONE_CLASS, SEVERAL_CLASSES, NUMBER, TIME_TO_EVENT = OneClass(), SeveralClasses(), Number(), TimeToEvent()


def has_and_unknown(label: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes that ``A;B;C?`` has, and those it leaves open; ``-`` has none."""
    names = [part.strip() for part in label.split(SEPARATOR) if part.strip() != NO_CLASS]
    has = tuple(name for name in names if not name.endswith(UNKNOWN))
    return has, tuple(name.removesuffix(UNKNOWN).strip() for name in names if name.endswith(UNKNOWN))


def time_and_event(label: str) -> tuple[float, bool]:
    """The time, nan when it cannot be read, and whether the event came."""
    return _number(label.removesuffix(CENSORED)), not label.endswith(CENSORED)


def in_order(names: Iterable[str], words: Sequence[str] | None, prompt_set: str = "") -> list[str]:
    """These classes in the order of the prompt set, sorted without one.

    Raises:
        InputError: A class is not in the prompt set.
    """
    wanted = sorted(set(names))
    if words is None:
        return wanted
    missing = [name for name in wanted if name not in words]
    if missing:
        raise InputError(
            f"class {', '.join(missing)} is in the labels but not in the prompt set {prompt_set} (it has "
            f"{', '.join(words)}); add it to the prompt set, or correct the labels"
        )
    return [name for name in words if name in wanted]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
