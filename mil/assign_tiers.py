"""Part 4 of an aggregator, assign: attention that looks twice, at critical tiles or at pseudo-bags."""

from collections.abc import Iterator
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from mil.assign import Gate
from mil.packed import is_top, softmax_bags, softmax_groups, sum_bags, sum_groups
from mil.parts import Assign, Assignment, Facts, Tiles


class CriticalTile(Assign):
    """Half for the tile that says most for a class, half for those that resemble it (Li et al. 2021, arXiv 2011.08939).

    ``a_ik = mix softmax_i(beta q_i . q_m) + (1 - mix) [i = m]``, m the tile with the largest evidence for class k and
    ``q = norm(v + f(v))``, f = 0 at a text start.

    Args:
        facts: Given by the composition.
        hidden: Of f.
        mix: Share of those that resemble it; a constant, one half in the paper, 0 is max pooling.
        beta: Factor on the resemblance; a constant.
    """

    def __init__(self, facts: Facts, *, hidden: int, mix: float = 0.5, beta: float = 10.0) -> None:
        super().__init__()
        self.mix = mix
        self.beta = beta
        self.query = nn.Sequential(nn.Linear(facts.width, hidden), nn.ReLU(), nn.Linear(hidden, facts.width))
        self.starts_at_zero = facts.init == "text"
        if self.starts_at_zero:
            for parameter in self.query[2].parameters():
                nn.init.zeros_(parameter)

    def forward(self, tiles: Tiles) -> Assignment:
        """Attention of each class."""
        queries = normalize(tiles.vectors + self.query(tiles.vectors), dim=-1)
        is_critical = is_top(tiles.evidence.detach(), tiles.packing, 1)
        critical = [sum_bags(is_one.unsqueeze(1) * queries, tiles.packing) for is_one in is_critical.T]
        alike = [(queries * of_bag[tiles.packing.bag_of_tile]).sum(dim=1) for of_bag in critical]
        soft = softmax_bags(self.beta * torch.stack(alike, dim=1), tiles.packing)
        return Assignment(weights=self.mix * soft + (1 - self.mix) * is_critical.to(soft))

    def residuals(self) -> Iterator[nn.Parameter]:
        """The last layer of f, where it starts at zero."""
        if self.starts_at_zero:
            yield from self.query[2].parameters()


class TwoTier(Assign):
    """Attention within pseudo-bags, then over them (DTFD: Zhang et al. 2022, arXiv 2203.12081).

    In training a bag's tiles are dealt out at random; in evaluation by their rank along a fixed random direction, so
    that the order of the tiles changes nothing.

    Args:
        facts: Given by the composition.
        hidden: Of both gates.
        n_groups: Pseudo-bags a bag; a smaller bag has one a tile.
    """

    apart_because: ClassVar[str] = "the number of its pseudo-bags depends on the bags"
    direction: torch.Tensor

    def __init__(self, facts: Facts, *, hidden: int, n_groups: int = 4) -> None:
        super().__init__()
        self.n_groups = n_groups
        self.starts_at_zero = facts.init == "text"
        self.first = Gate(facts.width, hidden, 1, is_zero=self.starts_at_zero)
        self.second = Gate(facts.width, hidden, 1, is_zero=self.starts_at_zero)
        self.register_buffer("direction", torch.randn(facts.width))

    def forward(self, tiles: Tiles) -> Assignment:
        """The product of both attentions."""
        groups, bag_of_group = self._dealt(tiles)
        n_groups = len(bag_of_group)
        in_group = softmax_groups(self.first(tiles.vectors), groups, n_groups)
        vectors = sum_groups(in_group * tiles.vectors, groups, n_groups)
        of_group = softmax_groups(self.second(vectors), bag_of_group, tiles.packing.n_bags)
        return Assignment(weights=in_group * of_group[groups], groups=groups, in_group=in_group)

    def residuals(self) -> Iterator[nn.Parameter]:
        """Both last layers, where they start at zero."""
        if self.starts_at_zero:
            yield from (*self.first.out.parameters(), *self.second.out.parameters())

    def _dealt(self, tiles: Tiles) -> tuple[Int[Tensor, " tile"], Int[Tensor, " group"]]:
        """The pseudo-bag of each tile, and the bag of each pseudo-bag."""
        packing = tiles.packing
        by = torch.rand(len(tiles.vectors), device=tiles.vectors.device) if self.training else self._rank(tiles.vectors)
        order = torch.argsort(by, stable=True)
        order = order[torch.argsort(packing.bag_of_tile[order], stable=True)]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device) - packing.offsets[packing.bag_of_tile[order]]
        counts = packing.sizes.clamp(max=self.n_groups)
        first_group = counts.cumsum(0) - counts
        groups = first_group[packing.bag_of_tile] + place % counts[packing.bag_of_tile]
        return groups, torch.repeat_interleave(torch.arange(packing.n_bags, device=groups.device), counts)

    def _rank(self, vectors: Float[Tensor, "tile width"]) -> Float[Tensor, " tile"]:
        return (vectors @ self.direction).detach()
