"""Part 4 of an aggregator, assign: how much each tile of a bag counts, by attention and by choice."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from feature_extraction.errors import InputError
from mil.packed import is_top, softmax_bags
from mil.parts import Assign, Assignment, Facts, Tiles
from mil.route import required


class Uniform(Assign):
    """Every tile counts the same: mean pooling."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()

    def forward(self, tiles: Tiles) -> Assignment:
        """1 / N for each tile."""
        return Assignment(weights=softmax_bags(tiles.vectors.new_zeros((len(tiles.vectors), 1)), tiles.packing))


class Gate(nn.Module):
    """The score of attention pooling: u(tanh(V v)), gated u(tanh(V v) * sigmoid(U v)).

    Ilse et al. 2018, arXiv 1802.04712, eq. 8 and 9. The last layer has no bias: it would cancel in the softmax.

    Args:
        width: Of the vectors.
        hidden: Width of V and U.
        n_queries: Scores a tile.
        is_zero: Start with u = 0, so that every score is 0.
        is_gated: Eq. 9 rather than eq. 8.
    """

    def __init__(self, width: int, hidden: int, n_queries: int, *, is_zero: bool, is_gated: bool = True) -> None:
        super().__init__()
        self.content = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden) if is_gated else None
        self.out = nn.Linear(hidden, n_queries, bias=False)
        if is_zero:
            nn.init.zeros_(self.out.weight)

    def forward(self, vectors: Float[Tensor, "tile width"]) -> Float[Tensor, "tile query"]:
        """Score each tile."""
        content = torch.tanh(self.content(vectors))
        return self.out(content if self.gate is None else content * torch.sigmoid(self.gate(vectors)))


class Attention(Assign):
    """Softmax over the tiles of a bag of a score that is learned (Ilse et al. 2018, eq. 8 and 9).

    Args:
        facts: Given by the composition.
        hidden: Of the gate.
        gated: Eq. 9 rather than eq. 8.
        per_class: One query a class rather than one for all.
        start: ``zero`` starts as the mean at a text start; ``random`` never does.
    """

    def __init__(
        self, facts: Facts, *, hidden: int, gated: bool = True, per_class: bool = False, start: str = "zero"
    ) -> None:
        super().__init__()
        if start not in ("zero", "random"):
            raise InputError(f"aggregator.assign.start={start}: expected zero or random")
        self.starts_at_zero = start == "zero" and facts.init == "text"
        n_queries = facts.n_classes if per_class else 1
        self.gate = Gate(facts.width, hidden, n_queries, is_zero=self.starts_at_zero, is_gated=gated)

    def forward(self, tiles: Tiles) -> Assignment:
        """Attention of each tile."""
        return Assignment(weights=softmax_bags(self.gate(tiles.vectors), tiles.packing))

    def residuals(self) -> Iterator[nn.Parameter]:
        """The last layer, where it starts at zero."""
        if self.starts_at_zero:
            yield from self.gate.out.parameters()


class TopJ(Assign):
    """The J tiles nearest to each class's selection row count the same (MI-Zero: Lu et al. 2023, arXiv 2306.07831).

    The choice has no gradient: the head learns, the ranking stays the text's.

    Args:
        facts: Given by the composition.
        top_j: J; None takes ``pooling.rule`` and ``pooling.top_j``.
    """

    def __init__(self, facts: Facts, *, top_j: int | None = None) -> None:
        super().__init__()
        self.n_chosen = facts.pooling.n_chosen if top_j is None else top_j

    def forward(self, tiles: Tiles) -> Assignment:
        """1 / J for the chosen, 0 for the others."""
        rank = ranked(tiles)
        chosen = is_top(rank.detach(), tiles.packing, self.n_chosen)
        weights = softmax_bags(torch.zeros_like(rank).masked_fill(~chosen, -math.inf), tiles.packing)
        return Assignment(weights=weights)


class TopEvidence(Assign):
    """The tile that says most for a class speaks for it alone: max pooling of the head's scores."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()

    def forward(self, tiles: Tiles) -> Assignment:
        """1 for the tile with the largest evidence of each class, the first of equals; 0 for the others."""
        return Assignment(weights=is_top(tiles.evidence.detach(), tiles.packing, 1).to(tiles.vectors))


class StraightThroughTopJ(Assign):
    """Choose the top J with trainable prototypes and let the gradient through.

    ``a = softmax over the chosen of (g + r - stopgrad(r))``, ``r = kappa * v . selection``: the value is that of ``g``
    alone, uniform at the start, which is top-J zero-shot exactly; the gradient reaches the prototypes.

    Args:
        facts: Given by the composition.
        hidden: Of the gate g, whose last layer starts at zero.
        kappa: Slope of the gradient to the prototypes; a constant.
    """

    def __init__(self, facts: Facts, *, hidden: int, kappa: float = 2.0) -> None:
        super().__init__()
        self.n_chosen = facts.pooling.n_chosen
        self.kappa = kappa
        self.gate = Gate(facts.width, hidden, facts.n_classes, is_zero=True)

    def forward(self, tiles: Tiles) -> Assignment:
        """Attention over the chosen tiles, 0 for the others."""
        rank = ranked(tiles)
        chosen = is_top(rank.detach(), tiles.packing, self.n_chosen)
        relevance = self.kappa * rank
        scores = self.gate(tiles.vectors) + (relevance - relevance.detach())
        return Assignment(weights=softmax_bags(scores.masked_fill(~chosen, -math.inf), tiles.packing))

    def residuals(self) -> Iterator[nn.Parameter]:
        """The gate's last layer."""
        yield from self.gate.out.parameters()


def ranked(tiles: Tiles) -> Float[Tensor, "tile class"]:
    """How near each tile is to each class's selection row.

    Raises:
        InputError: There are no such rows.
    """
    selection = required(tiles.prototypes).selection
    if selection is None:
        raise InputError("this assignment ranks tiles for classes: its bank's rows need names (init=text)")
    return tiles.vectors @ selection.T
