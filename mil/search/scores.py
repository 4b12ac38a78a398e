"""How much each tile of a slide is like some words, or like another tile, and which of its tiles are the best.

A tile's margin for a phrase is the log-odds of the phrase against its competitors: tau v.t less the log of the sum of
exp(tau v.t_j), with the encoder's own factor tau. That is the softmax of zero-shot classification (Radford et al. 2021)
before it saturates, so that the best tiles keep an order. Without competitors it is the cosine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from feature_extraction.errors import DamagedFileError
from mil.search.files import SearchedFile, require_block

BINS = 1 << 16
AT_FIRST, LONGER = 8, 8
"""How many times more tiles than wanted are looked through for some that do not overlap, and by how much more next."""
TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Queries:
    """What is looked for.

    Attributes:
        names: One a query.
        vectors: Their vectors, unit length.
        competitors: Vectors of what a tile may be like instead, unit length; none to rank by the cosine.
        scale: The encoder's factor on the cosine.
        origin: Slide and row of the tile that is the query, which is no hit of itself; None for words.
    """

    names: tuple[str, ...]
    vectors: Float64[np.ndarray, "query dim"]
    competitors: Float64[np.ndarray, "competitor dim"]
    scale: float
    origin: tuple[str, int] | None = None

    @property
    def limit(self) -> float:
        """No margin is further from 0."""
        n_others = len(self.competitors)
        return 2 * self.scale + float(np.log(n_others)) if n_others else 1.0

    def margins(self, logits: Float32[Tensor, "word tile"]) -> Float32[Tensor, "query tile"]:
        """Margins from ``tau v.t`` of each query and then each competitor."""
        n_queries = len(self.names)
        if len(self.competitors) == 0:
            return logits / self.scale
        return logits[:n_queries] - torch.logsumexp(logits[n_queries:], dim=0)


class Histogram:
    """How often each margin occurs, in `BINS` equal bins: percentiles among any number of tiles in fixed memory.

    Args:
        n_queries: Rows.
        limit: No margin is further from 0.
    """

    def __init__(self, n_queries: int, limit: float) -> None:
        self._counts = np.zeros((n_queries, BINS), np.int64)
        self._factor = BINS / (2 * limit)
        self._lock = Lock()

    def add(self, margins: Float32[np.ndarray, "query tile"]) -> None:
        """Count the margins of some tiles; threads may do so at once."""
        counts = np.stack([np.bincount(self._bins(row), minlength=BINS) for row in margins])
        with self._lock:
            self._counts += counts

    def percentile(self, query: int, margin: float) -> float:
        """How many of a hundred tiles have a margin in a lower bin."""
        counts = self._counts[query]
        below = int(counts[: int(self._bins(np.array([margin]))[0])].sum())
        return 100 * below / max(1, int(counts.sum()))

    def _bins(self, margins: np.ndarray) -> Int64[np.ndarray, " tile"]:
        return np.clip(margins * self._factor + BINS / 2, 0, BINS - 1).astype(np.int64)


def score(file: SearchedFile, queries: Queries) -> Float32[np.ndarray, "query tile"]:
    """Margins of a slide's tiles, whatever the length of their vectors.

    Raises:
        DamagedFileError: A block differs from its checksum, or holds values that are not finite.
        OSError: The file cannot be read.
    """
    words = np.concatenate([queries.vectors, queries.competitors]) * queries.scale
    factors = torch.from_numpy(words.astype(np.float32))
    rows = file.rows
    margins = np.empty((len(queries.names), rows.n_tiles), np.float32)
    buffer = torch.empty(rows.rows_a_block, rows.width)  # stays in the cache of the core
    for number, (first, block) in enumerate(rows.blocks()):
        require_block(file, number, block)
        tiles = buffer[: len(block)].copy_(torch.from_numpy(block))  # ten times as fast as NumPy from half precision
        logits = factors @ tiles.T  # four times as fast as tiles @ factors.T
        if not rows.is_unit:
            logits /= torch.linalg.vector_norm(tiles, dim=1).clamp_min(TINY)
        margins[:, first : first + len(block)] = queries.margins(logits).numpy()
    if not np.isfinite(margins).all():
        raise DamagedFileError(f"slide={file.slide_id}: holds values that are not finite; extract the slide again")
    return margins


def best_apart(
    margins: Float32[np.ndarray, " tile"],
    n_wanted: int,
    coords_lv0: Int64[np.ndarray, "tile 2"],
    size_lv0: tuple[float, float],
    taken: Sequence[int] = (),
) -> Int64[np.ndarray, " hit"]:
    """Rows of the best tiles, best first, none of which shares pixels with a better one or with those that are taken.

    Equal margins go by row.
    """
    n_tiles, n_seen = len(margins), AT_FIRST * (n_wanted + len(taken))
    while True:
        kept = list(taken)
        for row in ranked(margins, min(n_seen, n_tiles)).tolist():
            gaps = np.abs(coords_lv0[kept] - coords_lv0[row])
            if not (gaps < np.array(size_lv0)).all(axis=1).any():
                kept.append(row)
            if len(kept) == n_wanted + len(taken):
                break
        if len(kept) == n_wanted + len(taken) or n_seen >= n_tiles:
            return np.array(kept[len(taken) :], np.int64)
        n_seen *= LONGER


def ranked(margins: Float32[np.ndarray, " tile"], n_seen: int) -> Int64[np.ndarray, " row"]:
    """Rows of at least the ``n_seen`` best, best first."""
    if n_seen == 0:
        return np.empty(0, np.int64)
    worst = np.partition(margins, len(margins) - n_seen)[len(margins) - n_seen]
    rows = np.flatnonzero(margins >= worst)
    return rows[np.argsort(-margins[rows], kind="stable")]
