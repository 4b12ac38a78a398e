"""Time to an event as a risk that multiplies a common hazard: Cox's partial likelihood."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from feature_extraction.errors import InputError
from mil.task import Targets
from mil.tasks.ordinal import cumulative_logits
from mil.tasks.time_to_event import TimeToEvent

Ties = Literal["breslow", "efron"]


def negative_log_partial_likelihood(
    risks: Float[Tensor, " bag"], times: Float[Tensor, " bag"], is_event: Bool[Tensor, " bag"], *, ties: Ties
) -> Float[Tensor, ""]:
    """Minus the log partial likelihood, a mean over events; 0 without one (Cox 1972; ties: Breslow 1974, Efron 1977).

    ``-sum_i [r_i - log(sum_{j: t_j >= t_i} e^{r_j} - q_i sum_{j in D_i} e^{r_j})]`` over events i, D_i the events at
    the same time; q_i = 0 (Breslow), or the number of events of D_i that stand before i over their number (Efron).

    Args:
        risks: r.
        times: t.
        is_event: Whether the event came at t.
        ties: Of events at one time.
    """
    if not bool(is_event.any()):
        return risks.sum() * 0
    lowest = -torch.inf
    same = times.unsqueeze(1) == times.unsqueeze(0)
    at_risk = (times.unsqueeze(1) <= times.unsqueeze(0))[is_event]
    log_at_risk = risks.expand(len(at_risk), -1).masked_fill(~at_risk, lowest).logsumexp(dim=1)
    if ties == "efron":
        tied = (same & is_event.unsqueeze(0))[is_event]
        log_tied = risks.expand(len(tied), -1).masked_fill(~tied, lowest).logsumexp(dim=1)
        among_events = tied[:, is_event]
        share = among_events.tril(diagonal=-1).sum(dim=1) / among_events.sum(dim=1)
        log_at_risk = log_at_risk + torch.log1p(-share.to(risks) * (log_tied - log_at_risk).exp())
    return (log_at_risk - risks[is_event]).mean()


class Cox(TimeToEvent):
    """The risk is minus the mean of the cumulative logits over the thresholds (of two classes: ``l_0 - l_1``).

    Classes are words for the course, the shortest survival first, as in the discrete hazard. The partial likelihood is
    taken over the slides of a batch: a batch without an event contributes nothing, and larger batches
    (``trainer.batch_size``) compare more slides. Step 0: the same of the zero-shot logits.

    Args:
        ties: ``efron`` or ``breslow``.
        n_outputs: How many classes there are without a prompt set.
    """

    called = "course"

    def __init__(self, *, ties: Ties = "efron", n_outputs: int = 2) -> None:
        super().__init__(n_outputs=n_outputs)
        if ties not in ("breslow", "efron"):
            raise InputError(f"task.ties={ties}: expected breslow or efron")
        self._ties: Ties = ties

    def fit(self, train_targets: Targets, n_classes: int) -> None:
        """Nothing but a check.

        Raises:
            InputError: No event in the training part.
        """
        if not bool((train_targets[:, 1] > 0).any()):
            raise InputError("task=cox: no event in the training part; make another split")

    def loss(self, logits: Float[Tensor, "bag class"], targets: Targets) -> Float[Tensor, ""]:
        """Minus the log partial likelihood of the batch, a mean over its events."""
        return negative_log_partial_likelihood(self.scores(logits), targets[:, 0], targets[:, 1] > 0, ties=self._ties)

    def scores(self, logits: Float[Tensor, "bag class"]) -> Float[Tensor, " bag"]:
        """The logarithm of the hazard ratio."""
        return -cumulative_logits(logits).mean(dim=1)
