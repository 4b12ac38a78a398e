"""Part 2 of an aggregator, context: the tiles of a bag see each other. Optional."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from mil.packed import Packing
from mil.parts import Context, Facts


class SelfAttentionContext(Context):
    """Multi-head self-attention within each bag: v <- norm(v + gamma * Block(v)), gamma = 0 at the start.

    With the layer scale at zero the vectors are unchanged whatever the block computes, so the start stays zero-shot
    (LayerScale: Touvron et al. 2021, arXiv 2103.17239, eq. 4). Vectors must have unit length.

    Args:
        facts: Given by the composition.
        heads: Attention heads; must divide the width.
    """

    def __init__(self, facts: Facts, *, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(facts.dim)
        self.project_in = nn.Linear(facts.dim, 3 * facts.dim)
        self.project_out = nn.Linear(facts.dim, facts.dim)
        self.gamma = nn.Parameter(torch.zeros(facts.dim))

    def forward(self, vectors: Float[Tensor, "tile width"], packing: Packing) -> Float[Tensor, "tile width"]:
        """Attend bag by bag: full attention, memory grows with the square of the largest bag only inside the kernel."""
        projected = self.project_in(self.norm(vectors))
        bounds = packing.offsets.tolist()
        bags = [self._attend(projected[a:b]) for a, b in pairwise(bounds)]
        return normalize(vectors + self.gamma * self.project_out(torch.cat(bags)), dim=-1)

    def residuals(self) -> Iterator[nn.Parameter]:
        """The layer scale."""
        yield self.gamma

    def _attend(self, projected: Float[Tensor, "tile three_widths"]) -> Float[Tensor, "tile width"]:
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        return scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
