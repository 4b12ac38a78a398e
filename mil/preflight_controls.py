"""Draws of the preflight: class vectors in other words, exchanged ones or none, and how the truth stands there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import Float64

from feature_extraction.text_bank import TextBank
from mil.bag import Bag
from mil.parts import Pooling
from mil.prompt_subsets import draw_class_vectors

MOST_SHUFFLES = 23
"""All other orders of four classes."""
DRAWS_AT_ONCE = 16
"""Draws whose tile scores are in memory together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The deciding figure where there is nothing to find.

    Attributes:
        n: How many draws.
        median: Their median; nan without draws.
        high: The value that 95 % of them stay below.
        p: Share of draws that reach the observed figure, the observed one counted in.
    """

    n: int
    median: float
    high: float
    p: float


def slide_logits_of_draws(
    bag: Bag,
    scale: float,
    directions: Float64[np.ndarray, "draw class dim"],
    background: int | None,
    pooling: Pooling,
) -> Float64[np.ndarray, "draw class"]:
    """One slide's logits for every draw of class vectors, by the rule of `mil.zeroshot.pool_scores`."""
    rows = scale * bag.unit_rows()
    n_chosen = min(pooling.n_chosen or len(rows), len(rows))
    blocks: list[np.ndarray] = []
    for start in range(0, len(directions), DRAWS_AT_ONCE):
        scores = np.einsum("nd,bkd->bkn", rows, directions[start : start + DRAWS_AT_ONCE], optimize=True)
        if pooling.rule == "margin" and background is not None:
            scores = scores - scores[:, [background]]
        best = np.partition(scores, len(rows) - n_chosen, axis=2)[:, :, len(rows) - n_chosen :]
        blocks.append(best.mean(axis=2))
    return np.concatenate(blocks)


def nonsense_vectors(
    vectors: Float64[np.ndarray, "class dim"], n: int, generator: np.random.Generator
) -> Float64[np.ndarray, "draw class dim"]:
    """Random directions that have the vectors' cosines between them: their Gram matrix's root on a random frame."""
    values, columns = np.linalg.eigh(vectors @ vectors.T)
    root = columns * np.sqrt(np.maximum(values, 0))
    n_classes, dim = vectors.shape
    frames = [np.linalg.qr(generator.standard_normal((dim, n_classes)))[0] for _ in range(n)]
    return np.stack([root @ frame.T for frame in frames])


def shuffled_vectors(
    vectors: Float64[np.ndarray, "class dim"], generator: np.random.Generator
) -> Float64[np.ndarray, "draw class dim"]:
    """The vectors in every other order; of many orders, some."""
    n_classes = len(vectors)
    if math.factorial(n_classes) <= MOST_SHUFFLES + 1:
        orders = np.array(list(permutations(range(n_classes))))[1:]
    else:
        orders = np.stack([generator.permutation(n_classes) for _ in range(MOST_SHUFFLES)])
    return vectors[orders]


def half_wordings(bank: TextBank, classes: Sequence[str], n: int, seed: int) -> Float64[np.ndarray, "draw class dim"]:
    """Vectors of random halves of the prompts (`draw_class_vectors`); none when each class has one sentence."""
    n_sentences = sum(row.role in ("class", "background") and row.owner in classes for row in bank.rows)
    if n_sentences == len(classes):
        return np.empty((0, len(classes), bank.embeddings.shape[1]))
    return draw_class_vectors(bank, classes, n_subsets=n, seed=seed)


def control(observed: float, drawn: Float64[np.ndarray, " draw"]) -> Control:
    """The observed figure counts as one more draw, so that p is never 0 (Davison & Hinkley 1997, eq. 4.11)."""
    if np.isnan(observed) or np.isnan(drawn).any():
        return Control(n=len(drawn), median=math.nan, high=math.nan, p=math.nan)
    p = (1 + int((drawn >= observed).sum())) / (1 + len(drawn))
    return Control(n=len(drawn), median=float(np.median(drawn)), high=float(np.quantile(drawn, 0.95)), p=p)
