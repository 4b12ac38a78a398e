"""Whether another tool's embeddings are what our encoder makes of the same tiles."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped

from feature_extraction.encoder import Encoder, Space
from feature_extraction.interop.placing import Placement
from feature_extraction.reader import TileReader, TileSource
from feature_extraction.slide import Slide
from feature_extraction.slides import SlideRecord

N_TILES = 8
LIMIT = 0.999
"""Smallest cosine at which two embeddings count as one: precisions and resampling differ a little, weights a lot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The tiles that were embedded again.

    Attributes:
        rows: Which rows they are.
        cosines: Of the stored embedding with ours, one a tile.
    """

    rows: Int64[np.ndarray, " tile"]
    cosines: Float64[np.ndarray, " tile"]

    @property
    def worst(self) -> float:
        """The smallest cosine."""
        return float(self.cosines.min())

    @property
    def holds(self) -> bool:
        """Whether all of them count as one."""
        return self.worst >= LIMIT


def chosen_rows(n_tiles: int) -> Int64[np.ndarray, " tile"]:
    """Up to `N_TILES` rows, spread evenly."""
    return np.unique(np.linspace(0, n_tiles - 1, min(N_TILES, n_tiles)).round().astype(np.int64))


def prove(
    encoder: Encoder,
    space: Space,
    record: SlideRecord,
    placement: Placement,
    tile_px: int,
    stored: tuple[Int64[np.ndarray, " tile"], Shaped[np.ndarray, "tile dim"]],
) -> Proof:
    """Read some tiles of the slide, embed them and compare.

    Args:
        encoder: The declared one.
        space: The declared one.
        record: The slide.
        placement: Where its tiles lie.
        tile_px: Side of a tile.
        stored: Rows, and what the other tool has there.

    Raises:
        SlideError: The slide cannot be opened or read.
    """
    rows, embeddings = stored
    reader = TileReader()
    with Slide(record.slide_id, record.path) as slide:
        level = slide.level_for(min(placement.size_lv0) / tile_px)
    source = TileSource(
        slide_id=record.slide_id,
        path=record.path,
        decoder="openslide",
        level=level,
        size_lv0=placement.size_lv0,
        side_px=tile_px,
    )
    corners = [(int(x), int(y)) for x, y in placement.coords_lv0[rows]]
    pixels = np.stack([reader.read(source, corner) for corner in corners])
    reader.forget(record.path)
    tiles = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    ours = encoder.embed_tiles(tiles, (space,))[space].numpy().astype(np.float64)
    return Proof(rows=rows, cosines=_cosines(ours, embeddings.astype(np.float64)))


def _cosines(
    first: Float64[np.ndarray, "tile dim"], second: Float64[np.ndarray, "tile dim"]
) -> Float64[np.ndarray, " tile"]:
    """Of each pair of rows; 0 where one has no direction."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.divide((first * second).sum(axis=1), lengths, out=np.zeros_like(lengths), where=lengths > 0)
