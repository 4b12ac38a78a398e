"""Two classes and one logit: how much more the positive class is said than the negative one."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from feature_extraction.errors import InputError
from mil.labels import Target
from mil.metrics.classification import classification_metrics
from mil.task import Outcome, Targets, Task, Words, balanced_weights, class_targets


class Binary(Task):
    """Sigmoid of ``l = l_1 - l_0``.

    The negative class is the one that the margin rule counts from, so under that rule (the default, when there are
    words) ``l_0 = 0``, the aggregator has one trained row ``w = (t_1 - t_0) + Delta``, not normalised again, and tiles
    are ranked by it. Under another rule both classes have a row, and their difference counts. Step 0: the sigmoid of
    the zero-shot logit of the positive class less that of the negative one.

    Args:
        negative: Name of the negative class; None takes the background, or the first class of the prompt set (without
            one, by the alphabet).
        class_weights: ``balanced`` gives each class the same total weight in the training part; ``none`` each bag.
    """

    n_classes = 2

    def __init__(self, *, negative: str | None = None, class_weights: Literal["balanced", "none"] = "balanced") -> None:
        super().__init__()
        self._negative = negative
        self._is_balanced = class_weights == "balanced"

    def classes(self, labels: Sequence[str], words: Words | None) -> list[str]:
        """The negative class, then the positive one.

        Raises:
            InputError: Not two classes, or ``negative`` is none of them.
        """
        found = super().classes(labels, words)
        background = words.background if words is not None and words.background in found else None
        first = self._negative or background or found[0]
        if first not in found:
            raise InputError(f"task.negative={first}: expected one of {', '.join(found)}")
        return [first, *(name for name in found if name != first)]

    def reference(self, classes: Sequence[str], words: Words) -> str | None:
        """The negative class."""
        return classes[0]

    def targets(self, labels: Sequence[str], classes: Sequence[str]) -> list[Target]:
        """0 or 1."""
        return class_targets(labels, classes)

    def fit(self, train_targets: Targets, n_classes: int) -> None:
        """Class weights from the training part."""
        if self._is_balanced:
            self.learned["weights"] = balanced_weights(train_targets, n_classes)

    def loss(self, logits: Float[Tensor, "bag class"], targets: Targets) -> Float[Tensor, ""]:
        """Weighted binary cross-entropy."""
        said = logits[:, 1] - logits[:, 0]
        kept = self.kept("weights", logits)
        weights = torch.ones_like(said) if kept is None else kept[targets]
        costs = binary_cross_entropy_with_logits(said, targets.to(said), reduction="none")
        return (weights * costs).sum() / weights.sum()

    def probabilities(self, logits: Float[Tensor, "bag class"]) -> Float[Tensor, "bag class"]:
        """Of both classes; they sum to 1."""
        said = logits[:, 1] - logits[:, 0]
        return torch.stack([(-said).sigmoid(), said.sigmoid()], dim=1)

    def metrics(self, targets: Sequence[Target], outcome: Outcome, classes: Sequence[str]) -> dict[str, object]:
        """`mil.metrics.classification`; of the areas, that of the positive class."""
        return classification_metrics(np.array(list(targets), dtype=np.int64), outcome.probabilities, classes)
