"""Any number of classes a slide: a sigmoid for each, classes nobody looked for left out."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from feature_extraction.errors import InputError
from mil.labels import NO_CLASS, SEPARATOR, SEVERAL_CLASSES, Target, has_and_unknown, in_order
from mil.metrics.multilabel import multilabel_metrics
from mil.task import Outcome, Targets, Task, Words

POSITIVE = 0.5
"""Probability from which on a class is predicted."""


class Multilabel(Task):
    """``p_k = sigmoid(l_k)``, each class by itself. A target is 1, 0 or nan (unknown), one a class.

    The background class, when the prompt set has one, is no class of a slide: ``normal`` as a label says "none of
    them", and its column is the probability of none, ``prod_k (1 - p_k)``. Words must say where "no" ends and "yes"
    begins: by the margin over the background (its logit is 0), or by the encoder's own bias (SigLIP), which is added
    to every logit. Step 0: the sigmoid of the zero-shot margin, or of the zero-shot score plus that bias.

    Args:
        class_weights: ``balanced`` gives the slides with and without a class the same total weight in the training
            part, for each class; ``none`` each slide.
    """

    labels = SEVERAL_CLASSES

    def __init__(self, *, class_weights: Literal["balanced", "none"] = "balanced") -> None:
        super().__init__()
        self._is_balanced = class_weights == "balanced"
        self._background: str | None = None

    def classes(self, labels: Sequence[str], words: Words | None) -> list[str]:
        """The classes of the labels, and the background."""
        named = [name for label in labels for names in has_and_unknown(label) for name in names]
        if words is None:
            return in_order(named, None)
        self._background = words.background
        return in_order([*named, *([words.background] if words.background else [])], words.classes, words.prompt_set)

    def targets(self, labels: Sequence[str], classes: Sequence[str]) -> list[Target]:
        """1, 0 or nan a class; nan for the background."""
        rows: list[Target] = []
        for label in labels:
            has, unknown = has_and_unknown(label)
            open_names = {*unknown, self._background}
            rows.append(tuple(float("nan") if name in open_names else float(name in has) for name in classes))
        return rows

    def start(self, classes: Sequence[str], words: Words | None, *, is_margin: bool, is_text: bool) -> None:
        """Remember which columns are classes of a slide, and the encoder's bias.

        Raises:
            InputError: Scores that start from words without a zero.
        """
        bias = words.logit_bias if words is not None and is_text and not is_margin else 0.0
        if is_text and not is_margin and bias == 0:
            raise InputError(
                "task=multilabel: this encoder gives scores without a zero; use pooling.rule=margin with a class of "
                "role background in the prompt set, an encoder trained with a bias (SigLIP), or aggregator.init=random"
            )
        background = words.background if words is not None else None
        self.learned["offset"] = [bias]
        self.learned["is_used"] = [float(name != background) for name in classes]

    def fit(self, train_targets: Targets, n_classes: int) -> None:
        """N / (2 n+) and n / (2 n-) of each class, n its slides of the training part that are known."""
        is_known = ~train_targets.isnan()
        if self._is_balanced:
            n_known, n_with = is_known.sum(dim=0), train_targets.nan_to_num().sum(dim=0)
            self.learned["weight_with"] = (n_known / (2 * n_with.clamp(min=1))).tolist()
            self.learned["weight_without"] = (n_known / (2 * (n_known - n_with).clamp(min=1))).tolist()

    def loss(self, logits: Float[Tensor, "bag class"], targets: Targets) -> Float[Tensor, ""]:
        """Weighted binary cross-entropy over what is known; 0 when nothing is."""
        is_known = ~targets.isnan()
        said = targets.nan_to_num().to(logits)
        costs = binary_cross_entropy_with_logits(self._shifted(logits), said, reduction="none")
        weights = torch.where(is_known, torch.ones_like(costs), 0.0)
        with_class, without = self.kept("weight_with", logits), self.kept("weight_without", logits)
        if with_class is not None and without is not None:
            weights = weights * torch.where(said > 0, with_class, without)
        return (weights * costs).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)

    def probabilities(self, logits: Float[Tensor, "bag class"]) -> Float[Tensor, "bag class"]:
        """Of each class by itself; of the background, that it is none of them."""
        found = self._shifted(logits).sigmoid()
        is_used = self._is_used(found)
        none = torch.where(is_used, 1 - found, 1.0).prod(dim=1, keepdim=True)
        return torch.where(is_used, found, none)

    def decisions(self, probabilities: Float64[np.ndarray, "slide class"], classes: Sequence[str]) -> list[str]:
        """The classes of probability .5 and more, ``A;B``; the background's name, or ``-``, for none."""
        is_used = self._is_used(torch.from_numpy(probabilities)).numpy()
        none = "".join(name for name, used in zip(classes, is_used, strict=True) if not used) or NO_CLASS
        said = (probabilities >= POSITIVE) & is_used
        return [SEPARATOR.join(np.array(classes)[row].tolist()) or none for row in said]

    def metrics(self, targets: Sequence[Target], outcome: Outcome, classes: Sequence[str]) -> dict[str, object]:
        """`mil.metrics.multilabel`, without the background."""
        columns = [index for index, name in enumerate(classes) if name != self._background]
        truth = np.array(list(targets), dtype=np.float64)[:, columns]
        return multilabel_metrics(truth, outcome.probabilities[:, columns], [classes[index] for index in columns])

    def _shifted(self, logits: Float[Tensor, "bag class"]) -> Float[Tensor, "bag class"]:
        offset = self.kept("offset", logits)
        return logits if offset is None else logits + offset

    def _is_used(self, like: Tensor) -> Bool[Tensor, " class"]:
        kept = self.kept("is_used", like)
        return torch.ones_like(like[0], dtype=torch.bool) if kept is None else kept > 0
