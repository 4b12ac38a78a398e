"""Classes that have an order (a grade, a stage): one cumulative logit a threshold."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from feature_extraction.errors import InputError
from mil.labels import Target
from mil.metrics.ordinal import median_class, ordinal_metrics
from mil.task import Outcome, Targets, Task, Words, balanced_weights, class_targets


def cumulative_logits(logits: Float[Tensor, "bag class"]) -> Float[Tensor, "bag threshold"]:
    """``logsumexp_{j > k} l_j - logsumexp_{j <= k} l_j``: logit of "above class k", for all classes but the last."""
    below = logits.logcumsumexp(dim=1)[:, :-1]
    above = logits.flip(1).logcumsumexp(dim=1).flip(1)[:, 1:]
    return above - below


class Ordinal(Task):
    """Cumulative binary cross-entropy, the mean over the thresholds.

    ``P(y > k) = sigmoid(logsumexp_{j > k} l_j - logsumexp_{j <= k} l_j)``, which never rises with k, and so the
    probability of a class is the softmax. Predicted is the median: the first class not surpassed with P >= .5. Step 0:
    the same of the zero-shot logits.

    Args:
        order: Names from the lowest to the highest; None takes the order of the prompt set.
        class_weights: ``balanced`` gives each class the same total weight in the training part; ``none`` each bag.
    """

    def __init__(
        self, *, order: Sequence[str] | None = None, class_weights: Literal["balanced", "none"] = "balanced"
    ) -> None:
        super().__init__()
        self._order = order
        self._is_balanced = class_weights == "balanced"

    def classes(self, labels: Sequence[str], words: Words | None) -> list[str]:
        """From the lowest to the highest.

        Raises:
            InputError: Nothing says what the order is, or a class is not in it.
        """
        found = super().classes(labels, words)
        if self._order is None:
            if words is None:
                raise InputError(
                    "task=ordinal: without bank=… nothing orders the classes; give task.order=[low,…,high]"
                )
            return found
        missing = [name for name in found if name not in self._order]
        if missing or len(set(self._order)) != len(self._order):
            raise InputError(
                f"task.order={list(self._order)}: expected every class of the labels once; {', '.join(missing)} missing"
            )
        return [name for name in self._order if name in found]

    def targets(self, labels: Sequence[str], classes: Sequence[str]) -> list[Target]:
        """Places in the order."""
        return class_targets(labels, classes)

    def fit(self, train_targets: Targets, n_classes: int) -> None:
        """Class weights from the training part."""
        if self._is_balanced:
            self.learned["weights"] = balanced_weights(train_targets, n_classes)

    def loss(self, logits: Float[Tensor, "bag class"], targets: Targets) -> Float[Tensor, ""]:
        """Weighted mean over bags of the mean over thresholds."""
        above = cumulative_logits(logits)
        thresholds = torch.arange(above.shape[1], device=targets.device)
        is_above = (targets.unsqueeze(1) > thresholds).to(above)
        costs = binary_cross_entropy_with_logits(above, is_above, reduction="none").mean(dim=1)
        kept = self.kept("weights", logits)
        weights = torch.ones_like(costs) if kept is None else kept[targets]
        return (weights * costs).sum() / weights.sum()

    def probabilities(self, logits: Float[Tensor, "bag class"]) -> Float[Tensor, "bag class"]:
        """P(y > k - 1) - P(y > k): the softmax."""
        return logits.softmax(dim=-1)

    def decisions(self, probabilities: Float64[np.ndarray, "slide class"], classes: Sequence[str]) -> list[str]:
        """The median class."""
        return [classes[int(index)] for index in median_class(probabilities)]

    def metrics(self, targets: Sequence[Target], outcome: Outcome, classes: Sequence[str]) -> dict[str, object]:
        """`mil.metrics.classification`, and what counts how far off a class is."""
        labels = np.array(list(targets), dtype=np.int64)
        return ordinal_metrics(labels, outcome.probabilities, classes)
