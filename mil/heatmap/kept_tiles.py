"""What a model says of a part of a slide: tiles are dropped from the bag, never painted over.

Where the logit is a weighted mean of what the tiles say, with weights that do not depend on the other tiles but for
their sum or for a choice of the J best, it follows from numbers of the tiles alone. Everything else is read again.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from mil.aggregator import Aggregator, SixParts
from mil.assign import Attention, StraightThroughTopJ, TopEvidence, TopJ, Uniform, ranked
from mil.bag import Bag, pack_tiles
from mil.packed import pack
from mil.parts import Head, Tiles
from mil.route import PerClass, Shared

MOST_CELLS = 20_000_000
"""Of a matrix of sets and tiles that is worked on at once."""
MOST_TILES = 65_536
"""Of the bags that are read again in one pass."""
MOST_READINGS = 1_000_000
"""Tiles that are read again, in all, to learn what dropping each tile alone does."""
LEAST_WEIGHT = 1e-200
"""Of a set, relative to the slide's heaviest tile; below it the weights are computed again for the set."""
DOMINANT = 0.5
"""A tile with more than this share of the weight is dropped by summing the others: a difference would lose digits."""


class Reader(ABC):
    """A slide's logits from some of its tiles.

    Attributes:
        how: Said in the tables.
        n_tiles: Of the slide at the magnification whose tiles are dropped.
    """

    how: ClassVar[str]
    n_tiles: int

    @abstractmethod
    def logits(self, kept: Bool[np.ndarray, "set tile"]) -> Float64[np.ndarray, "set class"]:
        """The logits with only the tiles where ``kept`` is true; each set keeps at least one."""

    def occlusion(self) -> Float64[np.ndarray, "tile class"] | None:
        """Logits of the slide less those without each tile; None where that takes too long or nothing would be left."""
        if self.n_tiles == 1 or self.n_tiles**2 > MOST_READINGS:
            return None
        every = np.ones((1, self.n_tiles), dtype=bool)
        return self.logits(every) - self.logits(~np.eye(self.n_tiles, dtype=bool))


@dataclass(frozen=True, slots=True, kw_only=True)
class TileScores:
    """The numbers of each tile that determine the logits of every part of a slide.

    ``l_k(S) = sum over C_k(S) of w_ik e_ik / sum over C_k(S) of w_ik + b_k``, C_k(S) all tiles of S or the
    ``n_chosen`` of them with the largest rank (ties: the earlier row).

    Attributes:
        weight: w_ik, not negative, the largest of a class 1.
        log_weight: Its logarithm.
        evidence: e_ik.
        order: For each class the tiles from the best rank down, None where all count.
        n_chosen: J, None where all count.
        bias: b_k.
    """

    weight: Float64[np.ndarray, "tile class"]
    log_weight: Float64[np.ndarray, "tile class"]
    evidence: Float64[np.ndarray, "tile class"]
    order: Int64[np.ndarray, "tile class"] | None
    n_chosen: int | None
    bias: Float64[np.ndarray, " class"]


class ClosedForm(Reader):
    """The logits from `TileScores`, exact to rounding.

    Args:
        scores: Of the slide.
    """

    how = "closed form"

    def __init__(self, scores: TileScores) -> None:
        self.scores = scores
        self.n_tiles, self.n_classes = scores.evidence.shape

    def logits(self, kept: Bool[np.ndarray, "set tile"]) -> Float64[np.ndarray, "set class"]:
        """The weighted means of the sets."""
        at_once = max(1, MOST_CELLS // self.n_tiles)
        parts = [self._logits(kept[start : start + at_once]) for start in range(0, len(kept), at_once)]
        return np.concatenate(parts)

    def _logits(self, kept: Bool[np.ndarray, "set tile"]) -> Float64[np.ndarray, "set class"]:
        found = np.empty((len(kept), self.n_classes))
        of_all = kept.astype(float) if self.scores.order is None else None
        for k in range(self.n_classes):
            chosen = self._chosen(kept, k) if of_all is None else of_all
            weight, evidence = self.scores.weight[:, k], self.scores.evidence[:, k]
            total = chosen @ weight
            summed = chosen @ (weight * evidence)
            light = np.flatnonzero(total < LEAST_WEIGHT)
            total[light] = 1.0
            found[:, k] = summed / total + self.scores.bias[k]
            for row in light:
                found[row, k] = self._exactly(chosen[row] > 0, k)
        return found

    def _chosen(self, kept: Bool[np.ndarray, "set tile"], k: int) -> Float64[np.ndarray, "set tile"]:
        """1 for the tiles of each set that count for class k."""
        if self.scores.order is None or self.scores.n_chosen is None:
            return kept.astype(float)
        order = self.scores.order[:, k]
        best_first = kept[:, order]
        chosen = np.zeros(kept.shape)
        chosen[:, order] = best_first & (best_first.cumsum(axis=1) <= self.scores.n_chosen)
        return chosen

    def _exactly(self, chosen: Bool[np.ndarray, " tile"], k: int) -> float:
        log_weight = self.scores.log_weight[chosen, k]
        weight = np.exp(log_weight - log_weight.max())
        return float(weight @ self.scores.evidence[chosen, k] / weight.sum() + self.scores.bias[k])

    def occlusion(self) -> Float64[np.ndarray, "tile class"] | None:
        """``l - (M - w_i e_i + w_n e_n) / (W - w_i + w_n)`` for a tile that counts, n the next best; 0 for others."""
        if self.n_tiles == 1:
            return None
        every = np.ones((1, self.n_tiles), dtype=bool)
        whole = self.logits(every)[0] - self.scores.bias
        found = np.zeros((self.n_tiles, self.n_classes))
        for k in range(self.n_classes):
            counts = self._chosen(every, k)[0] > 0
            weight = np.where(counts, self.scores.weight[:, k], 0.0)
            evidence = self.scores.evidence[:, k]
            next_weight, next_said = self._next(k)
            total = weight.sum()
            is_heavy = counts & (weight + next_weight > DOMINANT * total)
            light = counts & ~is_heavy
            left = weight @ evidence - weight[light] * evidence[light] + next_said
            found[light, k] = whole[k] - left / (total - weight[light] + next_weight)
            for row in np.flatnonzero(is_heavy):
                without = every.copy()
                without[0, row] = False
                found[row, k] = whole[k] + self.scores.bias[k] - self.logits(without)[0, k]
        return found

    def _next(self, k: int) -> tuple[float, float]:
        """Weight and weighted evidence of the tile that comes in when one that counts is dropped."""
        order, n_chosen = self.scores.order, self.scores.n_chosen
        if order is None or n_chosen is None or n_chosen >= self.n_tiles:
            return 0.0, 0.0
        row = order[n_chosen, k]
        weight = float(self.scores.weight[row, k])
        return weight, weight * float(self.scores.evidence[row, k])


class Forward(Reader):
    """The logits by reading what is left as a bag of its own, many of them packed into one pass.

    Args:
        aggregator: In evaluation mode.
        bag: The slide.
        scale: Index of the magnification whose tiles are dropped; the other stays whole.
    """

    how = "read again"

    def __init__(self, aggregator: Aggregator, bag: Bag, scale: int = 0) -> None:
        self.aggregator = aggregator
        self.tiles = [one.tensor() for one in bag.scales()]
        self.scale = scale
        self.n_tiles = len(self.tiles[scale])

    @torch.inference_mode()
    def logits(self, kept: Bool[np.ndarray, "set tile"]) -> Float64[np.ndarray, "set class"]:
        """Of each set."""
        others = sum(map(len, self.tiles)) - self.n_tiles
        batches = _batches(kept.sum(axis=1) + others, MOST_TILES)
        return np.concatenate([self._logits(torch.from_numpy(kept[start:end])) for start, end in batches])

    def _logits(self, kept: Bool[Tensor, "set tile"]) -> Float64[np.ndarray, "set class"]:
        bags = [
            [tiles[chosen] if scale == self.scale else tiles for scale, tiles in enumerate(self.tiles)]
            for chosen in kept
        ]
        packed = torch.cat([tiles for bag in bags for tiles in bag])
        return self.aggregator(packed, pack_tiles(bags)).logits.double().numpy()


def reader_of(aggregator: Aggregator, bag: Bag, scale: int = 0) -> Reader:
    """The closed form where the aggregator has one, else reading again.

    Args:
        aggregator: In evaluation mode.
        bag: The slide.
        scale: Index of the magnification whose tiles are dropped.
    """
    scores = tile_scores_of(aggregator, bag)
    return Forward(aggregator, bag, scale) if scores is None else ClosedForm(scores)


@torch.inference_mode()
def tile_scores_of(aggregator: Aggregator, bag: Bag) -> TileScores | None:
    """The numbers that determine the logits of every part of the slide, None for an aggregator without such."""
    if not isinstance(aggregator, SixParts) or not _is_mean(aggregator):
        return None
    exact = copy.deepcopy(aggregator).double().eval()
    vectors = exact.embed(bag.tensor(torch.float64))
    evidence = exact.head.evidence(vectors)
    prototypes = None if exact.bank is None else exact.bank()
    seen = Tiles(vectors=vectors, evidence=evidence, prototypes=prototypes, packing=pack([len(vectors)]))
    log_weight, rank, n_chosen = _weighed(exact, seen)
    log_weight = (log_weight - log_weight.max(dim=0).values).expand_as(evidence)
    order = None if rank is None else rank.expand_as(evidence).argsort(dim=0, descending=True, stable=True).numpy()
    return TileScores(
        weight=log_weight.exp().numpy(),
        log_weight=log_weight.numpy(),
        evidence=evidence.numpy(),
        order=order,
        n_chosen=n_chosen,
        bias=exact.head.bias_row().numpy(),
    )


def _is_mean(aggregator: SixParts) -> bool:
    """Whether the logit is a mean of the evidence with weights that belong to the tiles.

    Classes are compared, not their families: a part that is derived from one of these may weigh otherwise.
    """
    return (
        aggregator.context is None
        and type(aggregator.assign) in (Uniform, Attention, TopJ, TopEvidence, StraightThroughTopJ)
        and type(aggregator.route) in (Shared, PerClass)
        and type(aggregator.head).contributions is Head.contributions
    )


def _weighed(
    aggregator: SixParts, seen: Tiles
) -> tuple[Float[Tensor, "tile query"], Float[Tensor, "tile ranking"] | None, int | None]:
    """Logarithm of the weights, what chooses the tiles that count, and how many; None where all count."""
    assign = aggregator.assign
    even = seen.vectors.new_zeros((len(seen.vectors), 1))
    if isinstance(assign, TopEvidence):
        return even, seen.evidence, 1
    if isinstance(assign, TopJ):
        return even, *_choice(seen, assign.n_chosen)
    if isinstance(assign, StraightThroughTopJ):
        return assign.gate(seen.vectors), *_choice(seen, assign.n_chosen)
    return (assign.gate(seen.vectors) if isinstance(assign, Attention) else even), None, None


def _choice(seen: Tiles, n_chosen: int | None) -> tuple[Float[Tensor, "tile class"] | None, int | None]:
    return (None, None) if n_chosen is None else (ranked(seen), n_chosen)


def _batches(sizes: Int64[np.ndarray, " set"], most: int) -> list[tuple[int, int]]:
    """Consecutive sets whose sizes sum to at most ``most``, or one alone."""
    bounds: list[tuple[int, int]] = []
    start, held = 0, 0
    for row, size in enumerate(sizes.tolist()):
        if row > start and held + size > most:
            bounds.append((start, row))
            start, held = row, 0
        held += size
    return [*bounds, (start, len(sizes))]
