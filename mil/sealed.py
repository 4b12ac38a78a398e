"""The test part of a fold, closed until training is over: one reading gives its predictions and figures, and ends it.

Training takes a `mil.fit.Fold`, which has no test part, and nothing in this type can be trained on, iterated or looked
into. So no callback, choice of an epoch or ranking can use it, by mistake or on purpose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from feature_extraction.files import publish_json, read_json
from mil.aggregator import Aggregator
from mil.fit import Labelled, logits_of
from mil.splits.file import SplitRow
from mil.task import Outcome, Task

READINGS = ".test_readings"
"""Hidden folder beside the runs of a sweep: how often the test part of each cell was read for a finished run."""


class AlreadyReadError(RuntimeError):
    """The test part was read before: a fault in the code that asks twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the one reading gives.

    Attributes:
        rows: Of the split, in the order of the bags.
        outcome: What was predicted.
        figures: As the task computes them.
    """

    rows: Sequence[SplitRow]
    outcome: Outcome
    figures: dict[str, object]


class SealedPart:
    """Test bags with their rows and targets. They cannot be copied or written to a file either.

    Args:
        rows: Of the split, one a bag.
        part: Bags and targets.
    """

    def __init__(self, rows: Sequence[SplitRow], part: Labelled) -> None:
        self._kept: tuple[Sequence[SplitRow], Labelled] | None = (rows, part)
        self.n_slides = len(part.bags)

    def read(self, aggregator: Aggregator, task: Task, classes: list[str], *, batch_size: int) -> Reading:
        """Evaluate the test part; afterwards it is gone.

        Args:
            aggregator: With the weights that training chose.
            task: Fitted to the training part.
            classes: Names of the logits.
            batch_size: Bags at a time.

        Raises:
            AlreadyReadError: It was read before.
            DamagedFileError: A slide has features that are not finite.
            DivergedError: The logits are not finite though the features are.
        """
        if self._kept is None:
            raise AlreadyReadError("the test part of a fold is read once, after training; it was read before")
        (rows, part), self._kept = self._kept, None
        outcome = task.predict(torch.from_numpy(logits_of(aggregator, part.bags, batch_size=batch_size)))
        return Reading(rows=rows, outcome=outcome, figures=task.metrics(part.labels, outcome, classes))

    def __reduce__(self) -> str:
        raise TypeError("the test part of a fold cannot be copied")


def readings_before(out: Path, cell: str) -> int:
    """For how many finished runs of a cell, in this folder of runs, its test part was read before.

    A run whose folder was removed or has changed counts; an attempt that was killed before its end does not, nobody
    has seen its figures.

    Args:
        out: Folder of runs.
        cell: Its address.

    Raises:
        DamagedFileError: The record is not what was written.
    """
    path = out / READINGS / f"{cell}.json"
    return int(str(read_json(path)["readings"])) if path.is_file() else 0


def count_reading(out: Path, cell: str) -> None:
    """Count a reading whose run is finished; for the owner of the cell only."""
    publish_json(out / READINGS / f"{cell}.json", {"readings": readings_before(out, cell) + 1})
