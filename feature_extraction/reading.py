"""Coarse-to-fine reading: which tiles of a slide a budget is spent on, told from a coarser look and some words.

A coarse tile is the parent of the tiles whose centres lie in it. Tiles are taken parent by parent: those whose parents
are most like a class of the words, and those whose parents leave the classes most open.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt8

REASONS = ("similar", "uncertain", "unseen")
"""Why a tile is read, by its number in a feature file; ``unseen``: its slide is too small for a coarse tile."""
SIMILAR, UNCERTAIN, UNSEEN = range(3)
NO_PARENT = -1
FUZZ = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingRule:
    """What determines the choice of tiles, beside the coarse features.

    Attributes:
        budget: Tiles of a slide that are read: a number (int), or a share of those with tissue (float, 0 to 1).
        uncertain: Share of the budget that goes where the classes are most open, 0 to 1; the rest goes by similarity.
        prompt_set: Name of the words.
        prompt_set_sha256: Of their content.
        coarse_mpp: Micrometres per pixel of a coarse tile.
        coarse_fingerprint: Of the configuration that made the coarse features, weights included.
    """

    budget: int | float
    uncertain: float
    prompt_set: str
    prompt_set_sha256: str
    coarse_mpp: float
    coarse_fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassWords:
    """The classes of a text bank, as a slide is searched for them.

    Attributes:
        vectors: Of each class, unit length.
        background: Place of the class that every slide contains, None where there is none.
        scale: The encoder's factor on the cosine.
    """

    vectors: Float64[np.ndarray, "class dim"]
    background: int | None
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoarseTiles:
    """The coarse look at a slide.

    Attributes:
        features: In the joint space, of any length but 0.
        coords_lv0: Top-left corner of each tile.
        size_lv0: Width and height of a tile.
        content_sha256: Of features and corners.
    """

    features: Float[np.ndarray, "parent dim"]
    coords_lv0: Int64[np.ndarray, "parent 2"]
    size_lv0: tuple[float, float]
    content_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChosenTiles:
    """Why each tile of a slide was read.

    Attributes:
        parents_lv0: Top-left corner of each tile's parent; `NO_PARENT` twice for a tile that has none.
        reasons: Of each tile, a place in `REASONS`.
        described: JSON: the rule, ``n_candidates`` (tiles among which was chosen) and ``coarse_content_sha256``.
    """

    parents_lv0: Int64[np.ndarray, "tile 2"]
    reasons: UInt8[np.ndarray, " tile"]
    described: str

    def where(self, is_kept: Bool[np.ndarray, " tile"]) -> "ChosenTiles":
        """The same for some of the tiles."""
        return ChosenTiles(
            parents_lv0=self.parents_lv0[is_kept], reasons=self.reasons[is_kept], described=self.described
        )


def choose_tiles(
    coords_lv0: Int64[np.ndarray, "tile 2"],
    size_lv0: tuple[float, float],
    coarse: CoarseTiles,
    words: ClassWords,
    rule: ReadingRule,
) -> tuple[Int64[np.ndarray, " chosen"], ChosenTiles]:
    """Spend the budget. A larger one takes all that a smaller one takes; equal parents go by their order.

    Args:
        coords_lv0: Top-left corners of the tiles among which is chosen.
        size_lv0: Width and height of them.
        coarse: The coarse look. Without a coarse tile there is nothing to choose by, and every tile is taken.
        words: What is looked for.
        rule: How.

    Returns:
        Rows of the chosen tiles, ascending, and why each was chosen.
    """
    described = json.dumps(
        {**asdict(rule), "n_candidates": len(coords_lv0), "coarse_content_sha256": coarse.content_sha256}
    )
    if len(coarse.features) == 0:
        parents = np.full((len(coords_lv0), 2), NO_PARENT, np.int64)
        reasons = np.full(len(coords_lv0), UNSEEN, np.uint8)
        return np.arange(len(coords_lv0)), ChosenTiles(parents_lv0=parents, reasons=reasons, described=described)
    parent = parent_of(coords_lv0, size_lv0, coarse)
    similarity, uncertainty = interest(coarse.features, words)
    n_wanted = tiles_in(rule.budget, len(coords_lv0))
    # A single class leaves nothing open.
    n_uncertain = math.floor(n_wanted * rule.uncertain + FUZZ) if len(words.vectors) > 1 else 0
    similar = _by(similarity, parent)[: n_wanted - n_uncertain]
    open_ones = _by(uncertainty, parent)
    open_ones = open_ones[~np.isin(open_ones, similar)][:n_uncertain]
    rows = np.concatenate([similar, open_ones])
    reasons = np.repeat(np.array([SIMILAR, UNCERTAIN], np.uint8), [len(similar), len(open_ones)])
    order = np.argsort(rows)
    rows = rows[order]
    return rows, ChosenTiles(parents_lv0=coarse.coords_lv0[parent[rows]], reasons=reasons[order], described=described)


def tiles_in(budget: int | float, n_tiles: int) -> int:
    """How many of ``n_tiles`` tiles a budget pays for: a number (int) or a share (float), the latter rounded up."""
    return min(n_tiles, budget if isinstance(budget, int) else math.ceil(budget * n_tiles - FUZZ))


def interest(
    features: Float[np.ndarray, "parent dim"], words: ClassWords
) -> tuple[Float64[np.ndarray, " parent"], Float64[np.ndarray, " parent"]]:
    """How like a class each coarse tile is, and how open it leaves which.

    Similarity is the largest cosine with a class, less the cosine with the background class where there is one (the
    margin of zero-shot). Openness is the entropy of the softmax over all classes, in nats.
    """
    from scipy.special import entr, softmax  # here, as whoever opens a feature file imports this module

    rows = np.asarray(features, np.float64)
    cosines = rows @ words.vectors.T / np.linalg.norm(rows, axis=1, keepdims=True)
    entropy = entr(softmax(words.scale * cosines, axis=1)).sum(axis=1)
    if words.background is None or len(words.vectors) == 1:
        return cosines.max(axis=1), entropy
    others = np.delete(cosines, words.background, axis=1)
    return others.max(axis=1) - cosines[:, words.background], entropy


def parent_of(
    coords_lv0: Int64[np.ndarray, "tile 2"], size_lv0: tuple[float, float], coarse: CoarseTiles
) -> Int64[np.ndarray, " tile"]:
    """Place of each tile's parent: the coarse tile that holds its centre, else the nearest one.

    Coarse tiles that would reach out of the scanned area are left out, so a border narrower than one has none of its
    own. Distances are measured in coarse tiles, so that of tiles that touch the one that holds a point is the nearest.
    """
    from scipy.spatial import KDTree  # 28 MB

    if len(coords_lv0) == 0:
        return np.empty(0, np.int64)
    unit = np.array(coarse.size_lv0)
    centres = (coords_lv0 + np.array(size_lv0) / 2) / unit
    _, nearest = KDTree(coarse.coords_lv0 / unit + 0.5).query(centres)
    return np.asarray(nearest, np.int64)


def find_defect(chosen: ChosenTiles, n_tiles: int) -> str | None:
    """What is wrong with a file's record of its choice, as part of a sentence; None when nothing is.

    Args:
        chosen: As read from the file.
        n_tiles: Rows of the file.
    """
    if len(chosen.parents_lv0) != n_tiles or len(chosen.reasons) != n_tiles:
        return f"{n_tiles} tiles, but {len(chosen.parents_lv0)} parents and {len(chosen.reasons)} reasons"
    if (chosen.reasons >= len(REASONS)).any():
        return f"reason {chosen.reasons.max()} is unknown; known are 0 to {len(REASONS) - 1}"
    is_unseen = chosen.reasons == UNSEEN
    if not np.array_equal(is_unseen, (chosen.parents_lv0 == NO_PARENT).all(axis=1)):
        return "a tile chosen by its parent lacks one, or an unseen one has one"
    try:
        content = cast("Mapping[str, object]", json.loads(chosen.described))
        n_candidates = cast("int", content["n_candidates"])
        limit = n_candidates if is_unseen.any() else tiles_in(cast("int | float", content["budget"]), n_candidates)
    except (ValueError, TypeError, KeyError) as error:
        return f"how its tiles were chosen cannot be read ({type(error).__name__}: {error})"
    return f"{n_tiles} tiles, more than the {limit} of the budget" if n_tiles > limit else None


def _by(interest_of: Float64[np.ndarray, " parent"], parent: Int64[np.ndarray, " tile"]) -> Int64[np.ndarray, " tile"]:
    """Rows of all tiles, those of the most interesting parent first; equal parents and tiles of one go by place."""
    return np.lexsort((np.arange(len(parent)), parent, -interest_of[parent]))
