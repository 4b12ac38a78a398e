"""A number a slide: the mean of the classes' values, weighed by how much each is said."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from feature_extraction.errors import InputError
from mil.labels import NUMBER, Target, in_order
from mil.metrics.regression import regression_metrics
from mil.task import Outcome, Targets, Task, Words

FEWEST_ANCHORS = 2


class Regression(Task):
    """``y = sum_k a_k softmax(l)_k`` with an anchor value a_k for each class; squared error over the training variance.

    Classes are words for a value ("few lymphocytes", "many lymphocytes"), in the order of their values. A prediction
    never leaves the range of the anchors. Step 0: the same mean under the softmax of the zero-shot logits.

    Args:
        anchors: Value of each class, rising; None takes evenly spaced quantiles of the training labels, from the
            least to the greatest.
        n_outputs: How many classes there are without a prompt set.
    """

    labels = NUMBER
    score_name = "value"

    def __init__(self, *, anchors: Sequence[int | float] | None = None, n_outputs: int = 4) -> None:
        super().__init__()
        self._n_outputs = n_outputs
        self._given = None if anchors is None else [float(value) for value in anchors]
        if self._given is not None:
            if len(self._given) < FEWEST_ANCHORS or not np.all(np.diff(self._given) > 0):
                raise InputError(f"task.anchors={self._given}: expected two or more rising values, one a class")
            self.learned["anchors"] = self._given

    def classes(self, labels: Sequence[str], words: Words | None) -> list[str]:
        """Those of the prompt set, in its order; else ``value_01`` and on.

        Raises:
            InputError: Another number of anchors than of classes.
        """
        n_outputs = self._n_outputs if self._given is None else len(self._given)
        names = [f"value_{place + 1:02}" for place in range(n_outputs)]
        found = in_order(names, None) if words is None else list(words.classes)
        if self._given is not None and len(found) != len(self._given):
            raise InputError(f"task.anchors={self._given}: expected one a class of the prompt set ({', '.join(found)})")
        return found

    def targets(self, labels: Sequence[str], classes: Sequence[str]) -> list[Target]:
        """The numbers."""
        return [float(label) for label in labels]

    def fit(self, train_targets: Targets, n_classes: int) -> None:
        """Anchors, unless they are given, and the variance of the training labels.

        Raises:
            InputError: The training labels have too few different values.
        """
        values = train_targets.double()
        if self._given is None:
            anchors = torch.quantile(values, torch.linspace(0, 1, n_classes, dtype=torch.float64))
            if bool((anchors.diff() <= 0).any()):
                raise InputError(
                    f"task=regression: quantiles of the training labels are not {n_classes} different values "
                    f"({anchors.tolist()}); give task.anchors=[…], or use task=ordinal"
                )
            self.learned["anchors"] = anchors.tolist()
        variance = float(values.var(correction=0))
        self.learned["variance"] = [variance if variance > 0 else 1.0]

    def loss(self, logits: Float[Tensor, "bag class"], targets: Targets) -> Float[Tensor, ""]:
        """Mean squared error, over the variance of the training labels."""
        variance = self.kept("variance", logits)
        error = (self.scores(logits) - targets).square().mean()
        return error if variance is None else error / variance[0]

    def probabilities(self, logits: Float[Tensor, "bag class"]) -> Float[Tensor, "bag class"]:
        """Weight of each class's value; they sum to 1."""
        return logits.softmax(dim=-1)

    def scores(self, logits: Float[Tensor, "bag class"]) -> Float[Tensor, " bag"]:
        """The number.

        Raises:
            InputError: Nothing was learned and no anchors are given.
        """
        anchors = self.kept("anchors", logits)
        if anchors is None:
            raise InputError("task=regression: words have no values of their own; give task.anchors=[…], one a class")
        return logits.softmax(dim=-1) @ anchors

    def decisions(self, probabilities: object, classes: Sequence[str]) -> None:
        """The number says it."""
        return

    def metrics(self, targets: Sequence[Target], outcome: Outcome, classes: Sequence[str]) -> dict[str, object]:
        """`mil.metrics.regression`."""
        if outcome.score is None:
            raise TypeError("a regression predicts a number")
        return regression_metrics(np.array(list(targets), dtype=np.float64), outcome.score)
