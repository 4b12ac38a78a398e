"""One class a slide: softmax over the logits, cross-entropy."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from mil.task import Task


class Classification(Task):
    """Softmax classification.

    Args:
        class_weights: ``balanced`` gives each class the same total weight in the training part; ``none`` each bag.
    """

    def __init__(self, *, class_weights: Literal["balanced", "none"] = "balanced") -> None:
        self._is_balanced = class_weights == "balanced"
        self._weights: Float[Tensor, " class"] | None = None

    def fit(self, train_labels: Int[Tensor, " bag"], n_classes: int) -> None:
        """Class weights N / (K n_k) from the training part."""
        if self._is_balanced:
            counts = torch.bincount(train_labels, minlength=n_classes).clamp(min=1)
            self._weights = len(train_labels) / (n_classes * counts.float())

    def loss(self, logits: Float[Tensor, "bag class"], labels: Int[Tensor, " bag"]) -> Float[Tensor, ""]:
        """Weighted cross-entropy."""
        weights = None if self._weights is None else self._weights.to(logits)
        return cross_entropy(logits, labels, weight=weights)

    def probabilities(self, logits: Float[Tensor, "bag class"]) -> Float[Tensor, "bag class"]:
        """Softmax."""
        return logits.softmax(dim=-1)
