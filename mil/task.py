"""CONTRACT of a task: what the logits of an aggregator mean, and what it costs to be wrong."""

from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor


class Task(ABC):
    """What labels are, how logits become probabilities, and the loss. To add one: a file in ``tasks/`` and a yaml."""

    @abstractmethod
    def fit(self, train_labels: Int[Tensor, " bag"], n_classes: int) -> None:
        """Take what is needed from the labels of the training part, and from no other."""

    @abstractmethod
    def loss(self, logits: Float[Tensor, "bag class"], labels: Int[Tensor, " bag"]) -> Float[Tensor, ""]:
        """What training minimises: the mean over bags."""

    @abstractmethod
    def probabilities(self, logits: Float[Tensor, "bag class"]) -> Float[Tensor, "bag class"]:
        """Rows that sum to 1."""
