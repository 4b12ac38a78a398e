"""Time to an event as bins of time: the discrete hazard."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from feature_extraction.errors import InputError
from mil.labels import Target
from mil.metrics.survival import discrete_nll
from mil.task import Outcome, Targets
from mil.tasks.time_to_event import TimeToEvent


class DiscreteHazard(TimeToEvent):
    """``f = softmax(l)`` is where the event falls, ``h_k = f_k / sum_{j >= k} f_j`` the hazard of bin k.

    The classes are the bins, from the shortest time to the longest, the last one open; their inner edges are quantiles
    of the times of events in the training part, so each bin has as many events. Negative log-likelihood: ``-log h_k -
    sum_{j < k} log(1 - h_j)`` for an event in bin k; one censored in it was alive at its start, ``-sum_{j < k} log(1 -
    h_j)`` (Kalbfleisch & Prentice 2002, sec. 2.4.2). The risk is ``-sum_k S_k``, S_k the probability to outlive bin k.
    Step 0: the same of the zero-shot logits.

    Args:
        n_outputs: How many bins there are without a prompt set.
    """

    called = "bin"

    def __init__(self, *, n_outputs: int = 4) -> None:
        super().__init__(n_outputs=n_outputs)

    def fit(self, train_targets: Targets, n_classes: int) -> None:
        """Inner edges of the bins.

        Raises:
            InputError: Too few different times of events in the training part.
        """
        events = train_targets[train_targets[:, 1] > 0, 0].double()
        if len(events) == 0:
            raise InputError("task=survival: no event in the training part; make another split")
        edges = torch.quantile(events, torch.linspace(0, 1, n_classes + 1, dtype=torch.float64)[1:-1])
        if bool((edges.diff() <= 0).any()):
            raise InputError(
                f"task=survival: {len(events)} events in the training part do not fill {n_classes} bins (edges "
                f"{edges.tolist()}); use fewer classes, or task=cox"
            )
        self.learned["edges"] = edges.tolist()

    def loss(self, logits: Float[Tensor, "bag class"], targets: Targets) -> Float[Tensor, ""]:
        """Mean negative log-likelihood."""
        edges = self.kept("edges", targets)
        if edges is None:
            raise TypeError("the bins are not known: call fit first")
        bins = torch.bucketize(targets[:, :1].contiguous(), edges, right=True)
        log_f = logits.log_softmax(dim=-1)
        log_reached = log_f.flip(1).logcumsumexp(dim=1).flip(1)
        is_event = targets[:, 1] > 0
        return -torch.where(is_event, log_f.gather(1, bins)[:, 0], log_reached.gather(1, bins)[:, 0]).mean()

    def scores(self, logits: Float[Tensor, "bag class"]) -> Float[Tensor, " bag"]:
        """The risk, from 1 - K (all survive) to 0."""
        survival = 1 - logits.softmax(dim=-1).cumsum(dim=1)[:, :-1]
        return -survival.sum(dim=1)

    def metrics(self, targets: Sequence[Target], outcome: Outcome, classes: Sequence[str]) -> dict[str, object]:
        """`mil.metrics.survival`; ``nll`` where the bins are known."""
        found = super().metrics(targets, outcome, classes)
        if "edges" not in self.learned:
            return found
        rows = np.array(list(targets), dtype=np.float64)
        bins = np.searchsorted(np.array(self.learned["edges"]), rows[:, 0], side="right")
        return {"nll": discrete_nll(bins, rows[:, 1] > 0, outcome.probabilities), **found}
