"""Part 2 of an aggregator, context: the tiles of a bag see each other. Optional.

At a text start a block is scaled by zero (LayerScale: Touvron et al. 2021, arXiv 2103.17239, eq. 4) and the result is
normalised: ``v <- norm(v + gamma * Block(v))``, so that the vectors are unchanged whatever the block computes. At a
random start gamma is one and nothing is normalised: a plain residual block.
"""

from abc import abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from mil.packed import Packing
from mil.parts import Context, Facts


class ResidualContext(Context):
    """A block within each bag, scaled by gamma.

    Args:
        facts: Given by the composition.
    """

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.is_unit = facts.init == "text"
        start = torch.zeros if self.is_unit else torch.ones
        self.gamma = nn.Parameter(start(facts.width))

    @abstractmethod
    def block(self, vectors: Float[Tensor, "tile width"], packing: Packing) -> Float[Tensor, "tile width"]:
        """What the other tiles of the bag make of each tile."""

    def forward(self, vectors: Float[Tensor, "tile width"], packing: Packing) -> Float[Tensor, "tile width"]:
        """Add the block."""
        seen = vectors + self.gamma * self.block(vectors, packing)
        return normalize(seen, dim=-1) if self.is_unit else seen

    def residuals(self) -> Iterator[nn.Parameter]:
        """The layer scale, where it starts at zero."""
        if self.is_unit:
            yield self.gamma


class SelfAttentionContext(ResidualContext):
    """Transformer layers with full attention; memory grows with the square of the largest bag only inside the kernel.

    Args:
        facts: Given by the composition.
        heads: Attention heads; must divide the width.
        layers: Pre-norm layers of attention and a feed-forward net.
        expansion: Width of the feed-forward net over the width of the vectors.
        dropout: After attention and feed-forward net.
    """

    apart_because: ClassVar[str] = "its attention takes one bag after the other"

    def __init__(
        self, facts: Facts, *, heads: int = 4, layers: int = 1, expansion: float = 2.0, dropout: float = 0.0
    ) -> None:
        super().__init__(facts)
        hidden = int(expansion * facts.width)
        self.layers = nn.ModuleList(_Layer(facts.width, heads, hidden, dropout) for _ in range(layers))

    def block(self, vectors: Float[Tensor, "tile width"], packing: Packing) -> Float[Tensor, "tile width"]:
        """What the layers add."""
        seen = vectors
        for layer in self.layers:
            seen = layer(seen, packing)
        return seen - vectors


class _Layer(nn.Module):
    """x + Attention(norm(x)), then x + Net(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_in = nn.LayerNorm(width)
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)
        self.net = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Float[Tensor, "tile width"], packing: Packing) -> Float[Tensor, "tile width"]:
        projected = self.project_in(self.norm_in(vectors))
        bounds = packing.offsets.tolist()
        attended = torch.cat([self._attend(projected[a:b]) for a, b in pairwise(bounds)])
        vectors = vectors + self.dropout(self.project_out(attended))
        return vectors + self.dropout(self.net(vectors))

    def _attend(self, projected: Float[Tensor, "tile three_widths"]) -> Float[Tensor, "tile width"]:
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3).unsqueeze(1)
        attended = scaled_dot_product_attention(query, key, value)  # a batch of one: without it N x N would be held
        return attended[0].transpose(0, 1).flatten(1)
