"""What the tasks with a time to an event have in common: labels, classes in the order of time, and a risk."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from mil.labels import TIME_TO_EVENT, Target, in_order, time_and_event
from mil.metrics.survival import survival_metrics
from mil.task import Outcome, Task, Words


class TimeToEvent(Task):
    """Classes are words for the course, the shortest time first; what is predicted is a risk.

    Args:
        n_outputs: How many classes there are without a prompt set.

    Attributes:
        called: What a class is called without a prompt set.
    """

    labels = TIME_TO_EVENT
    score_name = "risk"
    called: ClassVar[str]

    def __init__(self, *, n_outputs: int) -> None:
        super().__init__()
        self._n_outputs = n_outputs

    def classes(self, labels: Sequence[str], words: Words | None) -> list[str]:
        """Those of the prompt set, in its order; else numbered."""
        names = [f"{self.called}_{place + 1:02}" for place in range(self._n_outputs)]
        return in_order(names, None) if words is None else list(words.classes)

    def targets(self, labels: Sequence[str], classes: Sequence[str]) -> list[Target]:
        """(time, 1 for an event and 0 for none yet)."""
        return [(time, float(is_event)) for time, is_event in map(time_and_event, labels)]

    def probabilities(self, logits: Float[Tensor, "bag class"]) -> Float[Tensor, "bag class"]:
        """Softmax: where the event falls, or which course the slide is most like; they sum to 1."""
        return logits.softmax(dim=-1)

    def decisions(self, probabilities: Float64[np.ndarray, "slide class"], classes: Sequence[str]) -> None:
        """The risk says it."""
        return

    def metrics(self, targets: Sequence[Target], outcome: Outcome, classes: Sequence[str]) -> dict[str, object]:
        """`mil.metrics.survival` of the risk."""
        if outcome.score is None:
            raise TypeError("a survival task predicts a risk")
        rows = np.array(list(targets), dtype=np.float64)
        return survival_metrics(rows[:, 0], rows[:, 1] > 0, outcome.score)
