"""One batch through one encoder: the device, the precision, and what to do when its memory runs out."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from feature_extraction.batch_size import embed_in_chunks
from feature_extraction.work import Lane


class Embedder:
    """Embeds batches with one encoder.

    Args:
        lane: The encoder and what to keep of it.
        device: Where it computes.
        batch_size: Tiles to embed at once; halved for good when the device's memory does not hold them.
    """

    def __init__(self, lane: Lane, device: torch.device, batch_size: int) -> None:
        self._lane = lane
        self._device = device
        self._chunk = batch_size

    def embed(self, tiles: UInt8[Tensor, "place 3 side side"]) -> Float32[np.ndarray, "place width"]:
        """Rows of a batch, all spaces side by side; once more in float32 where half precision overflowed."""
        is_half = self._lane.extraction.precision == "bf16"
        rows = self._embed_in(tiles, is_half=is_half)
        return rows if not is_half or np.isfinite(rows).all() else self._embed_in(tiles, is_half=False)

    def try_out(self, n_tiles: int, side_px: int) -> None:
        """Embed ``n_tiles`` blank tiles at once, to learn whether the memory holds them and how long it takes."""
        spaces = self._lane.extraction.spaces
        blank = torch.zeros((n_tiles, side_px, side_px, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        with self._autocast(is_half=self._lane.extraction.precision == "bf16"):
            self._lane.encoder.embed_tiles(blank, spaces)

    def _autocast(self, *, is_half: bool) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16 if is_half else None, enabled=is_half)

    def _embed_in(
        self, tiles: UInt8[Tensor, "place 3 side side"], *, is_half: bool
    ) -> Float32[np.ndarray, "place width"]:
        spaces = self._lane.extraction.spaces
        with self._autocast(is_half=is_half):
            embeddings, self._chunk = embed_in_chunks(
                lambda chunk: self._lane.encoder.embed_tiles(chunk, spaces), tiles, self._chunk
            )
        return side_by_side({space: rows.float().numpy() for space, rows in embeddings.items()}, spaces)


def side_by_side(embeddings: Mapping[str, Float32[np.ndarray, "tile dim"]], spaces: Sequence[str]) -> np.ndarray:
    """The embeddings of one batch as journal rows: all spaces of a tile in one row, in the order of ``spaces``."""
    return np.concatenate([embeddings[space] for space in spaces], axis=1)
