"""Does a map show what the model goes by? Tiles are dropped in its order, and the same is done at random.

f(S) is the probability of the explained class from the tiles S alone, f the slide's. The figures:

- **AOPC**, ``mean over l = 0..L of f - f(without the n_l strongest)``, ``n_l = floor(l N / (L + 1))`` (Samek et al.
  2017, arXiv 1509.06321: area over the perturbation curve).
- **Symmetric relevance gain**, ``mean f(without the n_l weakest) - mean f(without the n_l strongest)`` (Bluecher et al.
  2024, arXiv 2401.06654).
- **Sufficiency**, ``f(the K strongest) - mean f(K random tiles)``; **necessity**, ``mean f(without K random tiles) -
  f(without the K strongest)``: keeping and dropping the evidence (DeYoung et al. 2020, arXiv 1911.03429), less chance.
- **Smallest sufficient K**: the fewest strongest tiles, on a ladder of sizes, with ``f(them) >= .95 f``.

Each against random tile sets or orders of the same slide; ``p = (1 + number as good or better) / (1 + number)``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from scipy.stats import rankdata

from mil.heatmap.kept_tiles import ClosedForm, Reader
from mil.task import Task

STEPS = 20
"""L of the curves."""
RANDOM_CLOSED, RANDOM_READ = 99, 19
"""Random orders and sets: where sets cost nothing, and where each is read."""
SUFFICIENT = 0.95
"""Share of the slide's probability that is enough."""
RUNG = 1.25
"""Ratio of the sizes of the ladder on which the smallest sufficient K is looked for."""

NOT_BY_CHANCE = 0.05
"""A larger p of AOPC or gain puts a warning on the map."""
ROUNDING = 1e-7
"""Of a probability in single precision: no difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure beside chance.

    Attributes:
        value: Of the map; for sufficiency and necessity less the mean of the random sets.
        random: Mean of the same over the random orders, or of f over the random sets.
        p: Of the permutation test, one-sided.
    """

    value: float
    random: float
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Faithfulness:
    """The figures of one layer of one slide's map.

    Attributes:
        aopc: Area over the curve, higher is better.
        gain: Symmetric relevance gain, higher is better.
        sufficiency: Higher is better.
        necessity: Higher is better.
        smallest_k: Lower is better.
    """

    aopc: Figure
    gain: Figure
    sufficiency: Figure
    necessity: Figure
    smallest_k: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class FaithfulnessReport:
    """The figures of every layer of one slide's map.

    Attributes:
        layers: By name of the layer.
        how: Whether tiles were dropped by a closed form or by reading what is left.
        n_evidence: K of sufficiency and necessity.
        n_random: How many random orders and sets.
    """

    layers: Mapping[str, Faithfulness]
    how: str
    n_evidence: int
    n_random: int


class Said:
    """f: the probability of one class from some tiles of a slide.

    Args:
        reader: Of the slide.
        task: Turns logits into probabilities.
        class_index: Whose.
    """

    def __init__(self, reader: Reader, task: Task, class_index: int) -> None:
        self.reader, self.task, self.class_index = reader, task, class_index
        self.n_tiles = reader.n_tiles

    def __call__(self, kept: Bool[np.ndarray, "set tile"]) -> Float64[np.ndarray, " set"]:
        """Of each set."""
        logits = torch.from_numpy(self.reader.logits(kept))
        return self.task.probabilities(logits)[:, self.class_index].numpy()

    def whole(self) -> float:
        """Of the slide."""
        return float(self(np.ones((1, self.n_tiles), dtype=bool))[0])


def measure(
    said: Said, layers: Mapping[str, Float64[np.ndarray, " tile"]], share: float, n_random: int | None = None
) -> FaithfulnessReport | None:
    """The figures of every layer; None for a slide of one tile, of which nothing can be dropped.

    Args:
        said: f of the slide.
        layers: What each says of the tiles, higher is more relevant. Ties: the earlier tile is stronger.
        share: Of the tiles that are called the evidence, K = max(1, round(share N)).
        n_random: Random orders and sets; None takes as many as the way of dropping allows.
    """
    n_tiles = said.n_tiles
    if n_tiles == 1:
        return None
    count = n_random or (RANDOM_CLOSED if isinstance(said.reader, ClosedForm) else RANDOM_READ)
    n_evidence = min(max(1, round(share * n_tiles)), n_tiles - 1)
    orders = {name: np.argsort(-values, kind="stable") for name, values in layers.items()}
    generator = np.random.default_rng(0)  # the same map, the same figures
    chance = np.stack([generator.permutation(n_tiles) for _ in range(count)])
    given = np.stack(list(orders.values()))
    every = np.concatenate([given, chance])
    whole = said.whole()
    strong_first = _curves(said, every)
    weak_first = _curves(said, given[:, ::-1])
    kept = said(_prefixes(every, n_evidence))
    dropped = said(~_prefixes(every, n_evidence))
    smallest = _smallest(said, every, whole)
    n_layers = len(orders)
    area = strong_first.mean(axis=1)
    chance_gain = np.roll(area[n_layers:], 1) - area[n_layers:]  # one random order first, another last
    report: dict[str, Faithfulness] = {}
    for row, name in enumerate(orders):
        gain = float(weak_first[row].mean() - area[row])
        report[name] = Faithfulness(
            aopc=_beside(float(whole - area[row]), whole - area[n_layers:]),
            gain=_beside(gain, chance_gain),
            sufficiency=_less_chance(float(kept[row]), kept[n_layers:]),
            necessity=_necessary(float(dropped[row]), dropped[n_layers:]),
            smallest_k=_fewest(int(smallest[row]), smallest[n_layers:]),
        )
    return FaithfulnessReport(layers=report, how=said.reader.how, n_evidence=n_evidence, n_random=count)


def rank_correlation(maps: Float64[np.ndarray, "run tile"]) -> float:
    """Mean Spearman correlation of the first map with each other; nan without two maps that vary."""
    varies = [row for row in maps[1:] if np.ptp(row) > 0]
    if not varies or np.ptp(maps[0]) == 0:
        return float("nan")
    first = rankdata(maps[0])
    return float(np.mean([np.corrcoef(first, rankdata(row))[0, 1] for row in varies]))


def trust_line(report: FaithfulnessReport | None, layer: str, stability: object) -> str:
    """The figures of the shown layer in lines for the picture, empty where nothing was measured."""
    lines: list[str] = []
    if report is not None:
        found, k = report.layers[layer], report.n_evidence
        area, gain, kept, dropped = found.aopc, found.gain, found.sufficiency, found.necessity
        lines += [
            f"AOPC {area.value:.3f} (random {area.random:.3f}, p {area.p:.2g}), gain {gain.value:.3f} (p {gain.p:.2g})",
            (
                f"{k} strongest: sufficiency {kept.value:+.2f} (p {kept.p:.2g}), necessity {dropped.value:+.2f} "
                f"(p {dropped.p:.2g})   ·   enough: {found.smallest_k.value:.0f} (random {found.smallest_k.random:.0f})"
            ),
        ]
        if max(area.p, gain.p) > NOT_BY_CHANCE:
            lines.append("not shown to be better than random orders: do not read it as what the model goes by")
    if isinstance(stability, dict) and stability.get("rank_correlation") is not None:
        lines.append(f"rank correlation with other runs ({stability['runs']}) {stability['rank_correlation']:.2f}")
    return "\n".join(lines)


def dropped_at(n_tiles: int) -> Int64[np.ndarray, " step"]:
    """How many tiles are gone at each step of a curve, never all."""
    return np.arange(STEPS + 1) * n_tiles // (STEPS + 1)


def ladder(n_tiles: int) -> list[int]:
    """Sizes from 1 to all, each `RUNG` times the one before or one more."""
    sizes = [1]
    while sizes[-1] < n_tiles:
        sizes.append(min(n_tiles, max(sizes[-1] + 1, int(sizes[-1] * RUNG))))
    return sizes


def _curves(said: Said, orders: Int64[np.ndarray, "order tile"]) -> Float64[np.ndarray, "order step"]:
    """The probability after each step, dropping from the front of each order."""
    gone = dropped_at(said.n_tiles)
    curves = np.empty((len(orders), len(gone)))
    for row, order in enumerate(orders):
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        curves[row] = said(place[None, :] >= gone[:, None])
    return curves


def _prefixes(orders: Int64[np.ndarray, "order tile"], size: int) -> Bool[np.ndarray, "order tile"]:
    """The first tiles of each order."""
    kept = np.zeros(orders.shape, dtype=bool)
    np.put_along_axis(kept, orders[:, :size], True, axis=1)
    return kept


def _smallest(said: Said, orders: Int64[np.ndarray, "order tile"], whole: float) -> Int64[np.ndarray, " order"]:
    """For each order the first size of the ladder that is enough."""
    found = np.full(len(orders), said.n_tiles)
    open_rows = np.arange(len(orders))
    for size in ladder(said.n_tiles)[:-1]:
        is_enough = said(_prefixes(orders[open_rows], size)) >= SUFFICIENT * whole
        found[open_rows[is_enough]] = size
        open_rows = open_rows[~is_enough]
        if not len(open_rows):
            break
    return found


def _beside(value: float, chance: Float64[np.ndarray, " random"]) -> Figure:
    return Figure(value=value, random=float(chance.mean()), p=_p(value, chance))


def _less_chance(value: float, chance: Float64[np.ndarray, " random"]) -> Figure:
    return Figure(value=float(value - chance.mean()), random=float(chance.mean()), p=_p(value, chance))


def _necessary(value: float, chance: Float64[np.ndarray, " random"]) -> Figure:
    return Figure(value=float(chance.mean() - value), random=float(chance.mean()), p=_p(-value, -chance))


def _fewest(value: int, chance: Int64[np.ndarray, " random"]) -> Figure:
    return Figure(value=float(value), random=float(np.median(chance)), p=_p(-float(value), -chance.astype(float)))


def _p(value: float, chance: Float64[np.ndarray, " random"]) -> float:
    """Share of the random ones and this one that are as good or better."""
    return (1 + int((chance >= value - ROUNDING).sum())) / (1 + len(chance))
