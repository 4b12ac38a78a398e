"""Part 4 of an aggregator, assign: how much each tile of a bag counts."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from feature_extraction.errors import InputError
from mil.packed import Packing, is_top, softmax_bags
from mil.parts import Assign, Facts, Prototypes


class Uniform(Assign):
    """Every tile counts the same: mean pooling."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()

    def forward(
        self, vectors: Float[Tensor, "tile width"], prototypes: Prototypes | None, packing: Packing
    ) -> Float[Tensor, "tile query"]:
        """1 / N for each tile."""
        return softmax_bags(vectors.new_zeros((len(vectors), 1)), packing)


class Gate(nn.Module):
    """The gated score of attention pooling: u(tanh(V v) * sigmoid(U v)), without a bias in the last layer.

    Ilse et al. 2018, arXiv 1802.04712, eq. 9.

    Args:
        width: Of the vectors.
        hidden: Width of V and U.
        n_queries: Scores a tile.
        is_zero: Start with u = 0, so that every score is 0.
    """

    def __init__(self, width: int, hidden: int, n_queries: int, *, is_zero: bool) -> None:
        super().__init__()
        self.content = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, n_queries, bias=False)
        if is_zero:
            nn.init.zeros_(self.out.weight)

    def forward(self, vectors: Float[Tensor, "tile width"]) -> Float[Tensor, "tile query"]:
        """Score each tile."""
        return self.out(torch.tanh(self.content(vectors)) * torch.sigmoid(self.gate(vectors)))


class GatedAttention(Assign):
    """Softmax over the tiles of a bag of a gated score, one query for all classes (Ilse et al. 2018, eq. 9).

    Args:
        facts: Given by the composition.
        width: Of the vectors that come from embed; None for the width of the features.
        hidden: Of the gate.
    """

    def __init__(self, facts: Facts, *, hidden: int, width: int | None = None) -> None:
        super().__init__()
        self.gate = Gate(width or facts.dim, hidden, 1, is_zero=facts.init == "text")

    def forward(
        self, vectors: Float[Tensor, "tile width"], prototypes: Prototypes | None, packing: Packing
    ) -> Float[Tensor, "tile query"]:
        """Attention of each tile."""
        return softmax_bags(self.gate(vectors), packing)

    def residuals(self) -> Iterator[nn.Parameter]:
        """The last layer, zero at a text start."""
        yield from self.gate.out.parameters()


class TopJ(Assign):
    """The J tiles nearest to each class's selection row count the same (MI-Zero: Lu et al. 2023, arXiv 2306.07831).

    The choice has no gradient: the head learns, the ranking stays the text's.
    """

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.n_chosen = facts.pooling.n_chosen

    def forward(
        self, vectors: Float[Tensor, "tile width"], prototypes: Prototypes | None, packing: Packing
    ) -> Float[Tensor, "tile query"]:
        """1 / J for the chosen, 0 for the others."""
        rank = vectors @ _required(prototypes).selection.T
        chosen = is_top(rank.detach(), packing, self.n_chosen)
        return softmax_bags(torch.zeros_like(rank).masked_fill(~chosen, -math.inf), packing)


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
        self.gate = Gate(facts.dim, hidden, facts.n_classes, is_zero=True)

    def forward(
        self, vectors: Float[Tensor, "tile width"], prototypes: Prototypes | None, packing: Packing
    ) -> Float[Tensor, "tile query"]:
        """Attention over the chosen tiles, 0 for the others."""
        rank = vectors @ _required(prototypes).selection.T
        chosen = is_top(rank.detach(), packing, self.n_chosen)
        relevance = self.kappa * rank
        scores = self.gate(vectors) + (relevance - relevance.detach())
        return softmax_bags(scores.masked_fill(~chosen, -math.inf), packing)

    def residuals(self) -> Iterator[nn.Parameter]:
        """The gate's last layer."""
        yield from self.gate.out.parameters()


def _required(prototypes: Prototypes | None) -> Prototypes:
    if prototypes is None:
        raise InputError("this assignment ranks tiles by prototypes: the aggregator's yaml needs a bank part")
    return prototypes
