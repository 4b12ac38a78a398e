"""Losses besides the task's: what a part of an aggregator learns from beyond the slide's label."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mil.packed import sum_groups
from mil.parts import AggregatorOutput, Auxiliary, Facts
from mil.task import Targets, Task


class InstanceClusters(Auxiliary):
    """The tiles with the most and the least attention are pseudo-labelled (CLAM: Lu et al. 2021, arXiv 2004.09666).

    For the class of the bag the B most attended tiles are to be in, the B least attended out; for the other classes the
    B most attended are to be out (subtyping: classes exclude each other). B is at most half of the bag. One head of two
    outputs a class, which starts as ``[-e_ik / 2, e_ik / 2]`` and learns a residual.

    Args:
        facts: Given by the composition.
        n_tiles: B.
        weight: Of the loss.
    """

    def __init__(self, facts: Facts, *, n_tiles: int = 8, weight: float = 0.3) -> None:
        super().__init__()
        self.n_tiles = n_tiles
        self.weight = weight
        self.residual = nn.Linear(facts.width, 2 * facts.n_classes)
        for parameter in self.residual.parameters():
            nn.init.zeros_(parameter)

    def forward(self, output: AggregatorOutput, labels: Int[Tensor, " bag"], task: Task) -> Float[Tensor, ""]:
        """Mean cross-entropy over the bags and the classes that have pseudo-labels."""
        packing = output.packing
        half = (output.packing.sizes // 2).clamp(max=self.n_tiles)
        losses: list[Tensor] = []
        for bag in range(packing.n_bags):
            size = int(half[bag])
            if size == 0:
                continue
            rows = slice(int(packing.offsets[bag]), int(packing.offsets[bag + 1]))
            scores = self._scores(output, rows)
            order = output.attention[rows].argsort(dim=0, descending=True, stable=True)
            for k in range(scores.shape[1]):
                is_own = int(labels[bag]) == k
                chosen = torch.cat([order[:size, k], order[-size:, k]]) if is_own else order[:size, k]
                target = torch.zeros(len(chosen), dtype=torch.long, device=chosen.device)
                target[: size if is_own else 0] = 1
                losses.append(cross_entropy(scores[chosen, k], target))
        return torch.stack(losses).mean() if losses else output.logits.sum() * 0

    def _scores(self, output: AggregatorOutput, rows: slice) -> Float[Tensor, "tile class 2"]:
        evidence = output.evidence[rows]
        start = torch.stack([-evidence / 2, evidence / 2], dim=2)
        return start + self.residual(output.vectors[rows]).unflatten(1, (-1, 2))


class FirstTier(Auxiliary):
    """Each pseudo-bag is to have its bag's label (DTFD: Zhang et al. 2022, arXiv 2203.12081, tier 1).

    Args:
        facts: Given by the composition.
        weight: Of the loss.
    """

    def __init__(self, facts: Facts, *, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, output: AggregatorOutput, labels: Targets, task: Task) -> Float[Tensor, ""]:
        """The task's loss of the pseudo-bags."""
        groups, in_group = output.assignment.groups, output.assignment.in_group
        if groups is None or in_group is None:
            raise TypeError("the assignment has no pseudo-bags: use this loss with mil.assign_tiers.TwoTier")
        n_groups = int(groups.max()) + 1
        logits = sum_groups(in_group * output.evidence, groups, n_groups) + output.bias
        bag_of_group = torch.zeros(n_groups, dtype=torch.long, device=groups.device)
        bag_of_group[groups] = output.packing.bag_of_tile
        return task.loss(logits, labels[bag_of_group])


class Diversity(Auxiliary):
    """The queries of a bag are to look at different tiles: mean cosine between their columns of weights.

    Args:
        facts: Given by the composition.
        weight: Of the loss.
    """

    def __init__(self, facts: Facts, *, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, output: AggregatorOutput, labels: Targets, task: Task) -> Float[Tensor, ""]:
        """0 when no two queries share a tile."""
        weights, packing = output.assignment.weights, output.packing
        pairs = torch.triu_indices(weights.shape[1], weights.shape[1], offset=1, device=weights.device)
        if pairs.shape[1] == 0:
            return output.logits.sum() * 0
        products = sum_groups(weights[:, pairs[0]] * weights[:, pairs[1]], packing.bag_of_tile, packing.n_bags)
        norms = sum_groups(weights.square(), packing.bag_of_tile, packing.n_bags).clamp(min=1e-12).sqrt()
        return (products / (norms[:, pairs[0]] * norms[:, pairs[1]])).mean()
