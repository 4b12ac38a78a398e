"""Packed bags: many bags as one tensor of tiles, and what is done to each bag in it.

Nothing is padded: bag b is rows ``offsets[b] : offsets[b + 1]``. Where a bag holds tiles of several magnifications,
each row says of which.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from feature_extraction.errors import InputError

SCALES = ("fine", "coarse")
"""Names of the magnifications, in the order of their numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where each bag lies among the tiles.

    Attributes:
        offsets: First row of each bag, and the number of rows at the end.
        bag_of_tile: Index of the bag that each tile belongs to.
        scale_of_tile: Index of the magnification of each tile, 0 the finest; None when there is one.
        is_stacked: Whether this is one of several packings of the same shape under `torch.vmap`.
    """

    offsets: Int[Tensor, " bag_and_end"]
    bag_of_tile: Int[Tensor, " tile"]
    scale_of_tile: Int[Tensor, " tile"] | None = None
    is_stacked: bool = False

    @property
    def n_bags(self) -> int:
        """Number of bags."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Int[Tensor, " bag"]:
        """Number of tiles of each bag."""
        return self.offsets.diff()

    def to(self, device: torch.device) -> "Packing":
        """The same packing on ``device``."""
        scale = None if self.scale_of_tile is None else self.scale_of_tile.to(device)
        return Packing(offsets=self.offsets.to(device), bag_of_tile=self.bag_of_tile.to(device), scale_of_tile=scale)


def pack(sizes: Sequence[int]) -> Packing:
    """Packing of bags of the given sizes, in that order."""
    bag_of_tile = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.long))
    return _packing(bag_of_tile, len(sizes))


def pack_scales(sizes: Sequence[Sequence[int]]) -> Packing:
    """Packing of bags that hold several magnifications, one after the other within each bag.

    Args:
        sizes: For each bag its number of tiles at each magnification, the finest first.
    """
    runs = torch.tensor(sizes, dtype=torch.long)
    scales = torch.arange(runs.shape[1]).repeat(len(runs))
    packing = pack(runs.sum(dim=1).tolist())
    return replace(packing, scale_of_tile=torch.repeat_interleave(scales, runs.flatten()))


def at_scale(packing: Packing, scale: int) -> tuple[Int[Tensor, " tile_of_scale"], Packing]:
    """The rows of one magnification, and the same bags packed with those rows alone.

    Raises:
        InputError: The bags hold one magnification only.
    """
    if packing.scale_of_tile is None:
        raise InputError(
            "this aggregator reads two magnifications, the bags hold one; give features=[fine folder,coarse folder]"
        )
    rows = (packing.scale_of_tile == scale).nonzero()[:, 0]
    return rows, _packing(packing.bag_of_tile[rows], packing.n_bags)


def _packing(bag_of_tile: Int[Tensor, " tile"], n_bags: int) -> Packing:
    offsets = bag_of_tile.new_zeros(n_bags + 1)
    offsets[1:] = torch.bincount(bag_of_tile, minlength=n_bags).cumsum(0)
    return Packing(offsets=offsets, bag_of_tile=bag_of_tile)


def sum_bags(values: Float[Tensor, "tile column"], packing: Packing) -> Float[Tensor, "bag column"]:
    """Sum over the tiles of each bag."""
    if packing.is_stacked:  # under vmap index_add takes the models one by one; alone it is the faster of the two
        index = packing.bag_of_tile.unsqueeze(1).expand_as(values)
        return values.new_zeros((packing.n_bags, values.shape[1])).scatter_add(0, index, values)
    return sum_groups(values, packing.bag_of_tile, packing.n_bags)


def sum_groups(
    values: Float[Tensor, "tile column"], group_of_tile: Int[Tensor, " tile"], n_groups: int
) -> Float[Tensor, "group column"]:
    """Sum over the tiles of each group."""
    return values.new_zeros((n_groups, values.shape[1])).index_add(0, group_of_tile, values)


def softmax_bags(scores: Float[Tensor, "tile column"], packing: Packing) -> Float[Tensor, "tile column"]:
    """Softmax over the tiles of each bag, for each column; -inf takes a tile out."""
    weights = (scores - _peaks(scores, packing.bag_of_tile, packing.n_bags)[packing.bag_of_tile]).exp()
    return weights / sum_bags(weights, packing)[packing.bag_of_tile]


def softmax_groups(
    scores: Float[Tensor, "tile column"], group_of_tile: Int[Tensor, " tile"], n_groups: int
) -> Float[Tensor, "tile column"]:
    """Softmax over the tiles of each group, for each column; -inf takes a tile out."""
    weights = (scores - _peaks(scores, group_of_tile, n_groups)[group_of_tile]).exp()
    return weights / sum_groups(weights, group_of_tile, n_groups)[group_of_tile]


def logsumexp_bags(scores: Float[Tensor, "tile column"], packing: Packing) -> Float[Tensor, "bag column"]:
    """Logarithm of the sum of exponentials over the tiles of each bag."""
    peaks = _peaks(scores, packing.bag_of_tile, packing.n_bags)
    return peaks + sum_bags((scores - peaks[packing.bag_of_tile]).exp(), packing).log()


def _peaks(
    scores: Float[Tensor, "tile column"], group_of_tile: Int[Tensor, " tile"], n_groups: int
) -> Float[Tensor, "group column"]:
    """The largest score of each group, without a gradient."""
    index = group_of_tile.unsqueeze(1).expand_as(scores)
    peak = scores.new_full((n_groups, scores.shape[1]), -torch.inf)
    return peak.scatter_reduce(0, index, scores.detach(), "amax")


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
    if packing.is_stacked:
        return _is_top_without_a_loop(scores, packing, top_j)
    bounds = packing.offsets.tolist()
    for start, end in pairwise(bounds):
        order = scores[start:end].argsort(dim=0, descending=True, stable=True)[:top_j]
        chosen[start:end].scatter_(0, order, True)
    return chosen


def _is_top_without_a_loop(
    scores: Float[Tensor, "tile column"], packing: Packing, top_j: int
) -> Bool[Tensor, "tile column"]:
    """The same by two sorts of all tiles: under vmap nothing can ask where a bag ends. Alone it takes twice as long."""
    order = scores.argsort(dim=0, descending=True, stable=True)
    order = order.gather(0, packing.bag_of_tile[order].argsort(dim=0, stable=True))
    place = torch.arange(len(scores), device=scores.device) - packing.offsets[packing.bag_of_tile]
    is_first = (place < top_j).unsqueeze(1).expand_as(order)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(0, order, is_first)
