"""Part 5 of an aggregator, route: which query speaks for which class."""

from jaxtyping import Float
from torch import Tensor

from feature_extraction.errors import InputError
from mil.packed import sum_bags
from mil.parts import Assignment, Facts, Prototypes, Route, Tiles


class Shared(Route):
    """One query speaks for every class."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.n_classes = facts.n_classes

    def forward(self, assignment: Assignment, tiles: Tiles) -> Float[Tensor, "tile class"]:
        """The same column for each class."""
        return assignment.weights.expand(-1, self.n_classes)


class PerClass(Route):
    """Query k speaks for class k."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()

    def forward(self, assignment: Assignment, tiles: Tiles) -> Float[Tensor, "tile class"]:
        """As they are."""
        return assignment.weights


class Average(Route):
    """All queries together speak for every class, each column of weights scaled to what a bag's column sums to."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.n_classes = facts.n_classes

    def forward(self, assignment: Assignment, tiles: Tiles) -> Float[Tensor, "tile class"]:
        """Sum over the queries, scaled to sum to 1 over each bag."""
        return _to_one(assignment.weights.sum(dim=1, keepdim=True), tiles).expand(-1, self.n_classes)


class Members(Route):
    """The rows that were written for a class speak for it: its concepts, or its name where it has none.

    Args:
        facts: Given by the composition.
        normalise: Scale each class to sum to 1 over a bag. Without it, a class whose rows take few tiles counts little.
    """

    def __init__(self, facts: Facts, *, normalise: bool = True) -> None:
        super().__init__()
        self.normalise = normalise

    def forward(self, assignment: Assignment, tiles: Tiles) -> Float[Tensor, "tile class"]:
        """Sum over the rows of each class."""
        attention = assignment.weights @ required(tiles.prototypes).membership
        return _to_one(attention, tiles) if self.normalise else attention


class Affinity(Route):
    """A row speaks for each class as far as it resembles the class's row: R = softmax over classes of tau c_m . c_k.

    Args:
        facts: Given by the composition.
        normalise: Scale each class to sum to 1 over a bag.
    """

    def __init__(self, facts: Facts, *, normalise: bool = True) -> None:
        super().__init__()
        self.scale = facts.scale
        self.normalise = normalise

    def forward(self, assignment: Assignment, tiles: Tiles) -> Float[Tensor, "tile class"]:
        """Weights of the rows, dealt out to the classes."""
        prototypes = required(tiles.prototypes)
        if prototypes.classes is None:
            raise InputError("this route compares rows with class words: use it with init=text")
        routing = (self.scale * prototypes.rows @ prototypes.classes.T).softmax(dim=1)
        attention = assignment.weights @ routing
        return _to_one(attention, tiles) if self.normalise else attention


def required(prototypes: Prototypes | None) -> Prototypes:
    """The prototypes of an aggregator that must have some.

    Raises:
        InputError: Its yaml has no bank.
    """
    if prototypes is None:
        raise InputError("this part compares tiles with prototypes: the aggregator's yaml needs a bank part")
    return prototypes


def _to_one(attention: Float[Tensor, "tile class"], tiles: Tiles) -> Float[Tensor, "tile class"]:
    return attention / sum_bags(attention, tiles.packing)[tiles.packing.bag_of_tile].clamp(min=1e-12)
