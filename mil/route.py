"""Part 5 of an aggregator, route: which query speaks for which class."""

from jaxtyping import Float
from torch import Tensor

from mil.parts import Facts, Route


class Shared(Route):
    """One query speaks for every class."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.n_classes = facts.n_classes

    def forward(self, weights: Float[Tensor, "tile query"]) -> Float[Tensor, "tile class"]:
        """The same column for each class."""
        return weights.expand(-1, self.n_classes)


class PerClass(Route):
    """Query k speaks for class k."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()

    def forward(self, weights: Float[Tensor, "tile query"]) -> Float[Tensor, "tile class"]:
        """As they are."""
        return weights
