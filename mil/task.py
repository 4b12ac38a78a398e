"""CONTRACT of a task: what labels are, what the logits of an aggregator mean, and what it costs to be wrong."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Num
from torch import Tensor

from feature_extraction.errors import InputError
from feature_extraction.targets import construct
from mil.labels import ONE_CLASS, LabelKind, Target, in_order

Targets = Num[Tensor, "bag *column"]
"""Targets of some bags: class indices, numbers, or rows of numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What a task is told of the prompt set.

    Attributes:
        prompt_set: Its name.
        classes: In its order.
        background: The class that every slide contains, None without one.
        logit_bias: What the encoder adds to each class's score before a sigmoid; 0 without one.
    """

    prompt_set: str
    classes: tuple[str, ...]
    background: str | None
    logit_bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was predicted for some slides.

    Attributes:
        probabilities: One column a class.
        score: `Task.scores`; None for a task without.
    """

    probabilities: Float64[np.ndarray, "slide class"]
    score: Float64[np.ndarray, " slide"] | None


class Task(ABC):
    """How labels become targets, logits predictions, and both a loss. To add one: a file in ``tasks/`` and a yaml.

    Attributes:
        labels: How the label column is read.
        n_classes: How many classes it must have, None for any number.
        score_name: Column of `scores` in ``predictions.csv``, None for a task without.
        learned: What `fit` and `start` found, as plain data; it is kept in the model card.
    """

    labels: ClassVar[LabelKind] = ONE_CLASS
    n_classes: ClassVar[int | None] = None
    score_name: ClassVar[str | None] = None

    def __init__(self) -> None:
        self.learned: dict[str, list[float]] = {}

    def classes(self, labels: Sequence[str], words: Words | None) -> list[str]:
        """Names of the aggregator's logits, in their order.

        Args:
            labels: Every label of the split.
            words: Of the prompt set, None without one.

        Raises:
            InputError: A class of the labels is not in the prompt set, or there are too many or few.
        """
        found = in_order(labels, words and words.classes, words.prompt_set if words else "")
        if self.n_classes is not None and len(found) != self.n_classes:
            raise InputError(
                f"task: expected {self.n_classes} classes, got {', '.join(found)}; use task=classification"
            )
        return found

    def reference(self, classes: Sequence[str], words: Words) -> str | None:
        """The class that the margin rule counts from: the prompt set's background, when it is a class of the task."""
        return words.background if words.background in classes else None

    @abstractmethod
    def targets(self, labels: Sequence[str], classes: Sequence[str]) -> list[Target]:
        """One a label; `torch.tensor` of them is what `loss` is given."""

    def start(self, classes: Sequence[str], words: Words | None, *, is_margin: bool, is_text: bool) -> None:
        """Take what is known of the logits before anything is learned.

        Args:
            classes: Names of the logits.
            words: Of the prompt set, None without one.
            is_margin: Whether the reference's logit is 0 and the others count from it.
            is_text: Whether the aggregator starts from the words.

        Raises:
            InputError: The task cannot start from such logits.
        """
        return

    @abstractmethod
    def fit(self, train_targets: Targets, n_classes: int) -> None:
        """Take what is needed from the targets of the training part, and from no other."""

    @abstractmethod
    def loss(self, logits: Float[Tensor, "bag class"], targets: Targets) -> Float[Tensor, ""]:
        """What training minimises: the mean over bags."""

    @abstractmethod
    def probabilities(self, logits: Float[Tensor, "bag class"]) -> Float[Tensor, "bag class"]:
        """One number from 0 to 1 a class; each task says of what."""

    def scores(self, logits: Float[Tensor, "bag class"]) -> Float[Tensor, " bag"] | None:
        """The one number that is predicted where that is not a class."""
        return None

    def decisions(self, probabilities: Float64[np.ndarray, "slide class"], classes: Sequence[str]) -> list[str] | None:
        """What is predicted in words, None where a number says it."""
        return [classes[int(index)] for index in probabilities.argmax(axis=1)]

    @abstractmethod
    def metrics(self, targets: Sequence[Target], outcome: Outcome, classes: Sequence[str]) -> dict[str, object]:
        """Figures for ``metrics.json``: None where undefined, with the reason in ``undefined``."""

    def predict(self, logits: Float[Tensor, "bag class"]) -> Outcome:
        """Probabilities and score, for tables."""
        score = self.scores(logits)
        return Outcome(
            probabilities=self.probabilities(logits).double().numpy(),
            score=None if score is None else score.double().numpy(),
        )

    def state(self) -> dict[str, object]:
        """What was learned, as plain data."""
        return dict(self.learned)

    def load(self, state: Mapping[str, object]) -> None:
        """Take back what `state` gave."""
        self.learned = {
            name: [float(value) for value in values] for name, values in state.items() if isinstance(values, list)
        }

    def kept(self, name: str, like: Tensor) -> Float[Tensor, " column"] | None:
        """Something learned as a tensor of this type and place, None when nothing was."""
        values = self.learned.get(name)
        return None if values is None else like.new_tensor(values)


def build_task(config: Mapping[str, object]) -> Task:
    """The task that a yaml of ``conf/task`` describes.

    Raises:
        InputError: No such task, or options that it does not have.
    """
    return construct(config, kind=Task, packages=("mil",))


def class_targets(labels: Sequence[str], classes: Sequence[str]) -> list[Target]:
    """The index of each label among the classes."""
    return [list(classes).index(label) for label in labels]


def as_array(targets: Sequence[Target]) -> np.ndarray:
    """Targets for a figure: whole numbers, numbers, or rows."""
    return np.array(list(targets))


def balanced_weights(train_targets: Int[Tensor, " bag"], n_classes: int) -> list[float]:
    """N / (K n_k): each class gets the same total weight in the training part."""
    counts = torch.bincount(train_targets, minlength=n_classes).clamp(min=1)
    return (len(train_targets) / (n_classes * counts.float())).tolist()
