"""Packed bags: many bags as one tensor of tiles, and what is done to each bag in it.

Nothing is padded: bag b is rows ``offsets[b] : offsets[b + 1]``.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where each bag lies among the tiles.

    Attributes:
        offsets: First row of each bag, and the number of rows at the end.
        bag_of_tile: Index of the bag that each tile belongs to.
    """

    offsets: Int[Tensor, " bag_and_end"]
    bag_of_tile: Int[Tensor, " tile"]

    @property
    def n_bags(self) -> int:
        """Number of bags."""
        return len(self.offsets) - 1

    def to(self, device: torch.device) -> "Packing":
        """The same packing on ``device``."""
        return Packing(offsets=self.offsets.to(device), bag_of_tile=self.bag_of_tile.to(device))


def pack(sizes: list[int]) -> Packing:
    """Packing of bags of the given sizes, in that order."""
    counts = torch.tensor(sizes, dtype=torch.long)
    offsets = torch.zeros(len(sizes) + 1, dtype=torch.long)
    offsets[1:] = counts.cumsum(0)
    return Packing(offsets=offsets, bag_of_tile=torch.repeat_interleave(torch.arange(len(sizes)), counts))


def sum_bags(values: Float[Tensor, "tile column"], packing: Packing) -> Float[Tensor, "bag column"]:
    """Sum over the tiles of each bag."""
    total = values.new_zeros((packing.n_bags, values.shape[1]))
    return total.index_add(0, packing.bag_of_tile, values)


def softmax_bags(scores: Float[Tensor, "tile column"], packing: Packing) -> Float[Tensor, "tile column"]:
    """Softmax over the tiles of each bag, for each column; -inf takes a tile out."""
    index = packing.bag_of_tile.unsqueeze(1).expand_as(scores)
    peak = scores.new_full((packing.n_bags, scores.shape[1]), -torch.inf)
    peak = peak.scatter_reduce(0, index, scores.detach(), "amax")
    weights = (scores - peak[packing.bag_of_tile]).exp()
    return weights / sum_bags(weights, packing)[packing.bag_of_tile]


def is_top(scores: Float[Tensor, "tile column"], packing: Packing, top_j: int | None) -> Bool[Tensor, "tile column"]:
    """True for the ``top_j`` largest of each bag and column (all of a smaller bag); ties go to the earlier row.

    Args:
        scores: Higher is better.
        packing: The bags.
        top_j: How many; None for all.
    """
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    if top_j is None:
        return ~chosen
    bounds = packing.offsets.tolist()
    for start, end in pairwise(bounds):
        order = scores[start:end].argsort(dim=0, descending=True, stable=True)[:top_j]
        chosen[start:end].scatter_(0, order, True)
    return chosen
