"""One class a slide: softmax over the logits, cross-entropy."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from mil.labels import Target
from mil.metrics.classification import classification_metrics
from mil.task import Outcome, Targets, Task, balanced_weights, class_targets


class Classification(Task):
    """Softmax classification. Step 0: the softmax of the zero-shot logits.

    Args:
        class_weights: ``balanced`` gives each class the same total weight in the training part; ``none`` each bag.
    """

    def __init__(self, *, class_weights: Literal["balanced", "none"] = "balanced") -> None:
        super().__init__()
        self._is_balanced = class_weights == "balanced"

    def targets(self, labels: Sequence[str], classes: Sequence[str]) -> list[Target]:
        """Class indices."""
        return class_targets(labels, classes)

    def fit(self, train_targets: Targets, n_classes: int) -> None:
        """Class weights N / (K n_k) from the training part."""
        if self._is_balanced:
            self.learned["weights"] = balanced_weights(train_targets, n_classes)

    def loss(self, logits: Float[Tensor, "bag class"], targets: Targets) -> Float[Tensor, ""]:
        """Weighted cross-entropy."""
        return cross_entropy(logits, targets, weight=self.kept("weights", logits))

    def probabilities(self, logits: Float[Tensor, "bag class"]) -> Float[Tensor, "bag class"]:
        """Softmax."""
        return logits.softmax(dim=-1)

    def metrics(self, targets: Sequence[Target], outcome: Outcome, classes: Sequence[str]) -> dict[str, object]:
        """`mil.metrics.classification`."""
        return classification_metrics(np.array(list(targets), dtype=np.int64), outcome.probabilities, classes)
