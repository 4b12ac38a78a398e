"""Bags: the tiles of one slide as the aggregator sees them, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from mil.labels import Target
from mil.packed import Packing, pack, pack_scales
from mil.task import Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Bag:
    """One slide's tiles.

    Attributes:
        slide_id: The slide.
        features: Embeddings as stored, usually a memory map in half precision; writable for torch, never written.
        coords_lv0: Top-left corner of each tile.
        size_lv0: Width and height of a tile.
        coarse: The same slide at a lower magnification, None when there is one magnification.
    """

    slide_id: str
    features: np.ndarray
    coords_lv0: Int64[np.ndarray, "tile 2"]
    size_lv0: tuple[float, float]
    coarse: "Bag | None" = None

    def __len__(self) -> int:
        return len(self.features)

    def scales(self) -> tuple["Bag", ...]:
        """The bag of each magnification, the finest first."""
        return (self,) if self.coarse is None else (self, self.coarse)

    def in_memory(self) -> "Bag":
        """The same bag, read from its file once and for all."""
        coarse = None if self.coarse is None else self.coarse.in_memory()
        return replace(self, features=np.array(self.features), coarse=coarse)

    def stored(self) -> Float[Tensor, "tile dim"]:
        """The embeddings as they are stored, not to be written to."""
        return torch.from_numpy(self.features)

    def tensor(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "tile dim"]:
        """The embeddings for computing."""
        return self.stored().to(dtype)  # ten times as fast as NumPy from half precision

    def unit_rows(self) -> Float64[np.ndarray, "tile dim"]:
        """The embeddings at unit length, double precision; stored joint vectors need not be normalised."""
        rows = np.asarray(self.features, np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class BagBatch:
    """Several bags, packed.

    Attributes:
        tiles: All their tiles, bag after bag.
        packing: Where each bag lies.
        labels: Target of each bag, as the task made them.
        rows: Index of each bag in the data it came from.
    """

    tiles: Float[Tensor, "tile dim"]
    packing: Packing
    labels: Targets
    rows: Int[Tensor, " bag"]

    def to(self, device: torch.device) -> "BagBatch":
        """The same batch on ``device``."""
        return BagBatch(
            tiles=self.tiles.to(device),
            packing=self.packing.to(device),
            labels=self.labels.to(device),
            rows=self.rows.to(device),
        )


Item = tuple[tuple[Float[Tensor, "_ dim"], ...], Target, int]
"""Tiles of each magnification as stored, target, and row of a bag."""


class Collate:
    """Packs items into a batch whose tiles lie in one buffer that the next batch overwrites.

    New memory for every batch costs as much as filling it. Who needs a batch beyond the next one copies it.

    Args:
        dtype: Of the tiles in a batch.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self._buffer = torch.empty(0, dtype=dtype)

    def __call__(self, items: Sequence[Item]) -> BagBatch:
        """Pack (tiles of each magnification, target, row) of several bags."""
        bags, labels, rows = zip(*items, strict=True)
        return BagBatch(
            tiles=self._filled([tiles for bag in bags for tiles in bag]),
            packing=pack_tiles(bags),
            labels=torch.tensor(labels),
            rows=torch.tensor(rows),
        )

    def _filled(self, tiles: Sequence[Float[Tensor, "_ dim"]]) -> Float[Tensor, "tile dim"]:
        n_tiles, width = sum(map(len, tiles)), tiles[0].shape[1]
        if self._buffer.numel() < n_tiles * width:
            self._buffer = torch.empty(n_tiles * width, dtype=self._buffer.dtype)
        filled = self._buffer[: n_tiles * width].view(n_tiles, width)
        for place, some in zip(filled.split([len(some) for some in tiles]), tiles, strict=True):
            place.copy_(some)
        return filled


def pack_tiles(bags: Sequence[Sequence[Float[Tensor, "_ dim"]]]) -> Packing:
    """The packing of bags, each given as its tiles at each magnification."""
    if len(bags[0]) == 1:
        return pack([len(tiles) for (tiles,) in bags])
    return pack_scales([[len(tiles) for tiles in bag] for bag in bags])


def slide_vectors(bags: Sequence[Bag]) -> Float64[np.ndarray, "slide dim"]:
    """Mean of the embeddings of each slide; of two magnifications, the finer."""
    return np.stack([np.asarray(bag.features, np.float64).mean(axis=0) for bag in bags])
