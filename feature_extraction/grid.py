"""Pure geometry: where the tiles lie, and which tile a point lies in.

All positions are level-0 pixels, x before y, from the top-left corner of the full slide.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """What a tile is, in physical units.

    Attributes:
        tile_px: Side of a tile in pixels.
        tile_mpp: Micrometres per pixel of a tile.
        step_px: From one tile to the next, in tile pixels; less than ``tile_px`` overlaps.
    """

    tile_px: int
    tile_mpp: float
    step_px: int

    def downsample(self, slide_mpp: tuple[float, float]) -> float:
        """How many times coarser than level 0 a tile is, along the finer axis."""
        return self.tile_mpp / max(slide_mpp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The tiles of one slide, before any is left out.

    Attributes:
        origin_lv0: Corner of the scanned area.
        size_lv0: Width and height of a tile; fractional, the mpp is exact.
        step_lv0: From one tile to the next, along x and y; fractional.
        n_columns: Tiles along x that lie inside the scanned area.
        n_rows: Tiles along y.
    """

    origin_lv0: tuple[int, int]
    size_lv0: tuple[float, float]
    step_lv0: tuple[float, float]
    n_columns: int
    n_rows: int

    def coords_lv0(self) -> Int64[np.ndarray, "tile 2"]:
        """Top-left x, y of every tile, ordered by y and then x; tile i starts at floor(i * step + .5)."""
        xs = self.origin_lv0[0] + np.floor(np.arange(self.n_columns) * self.step_lv0[0] + 0.5).astype(np.int64)
        ys = self.origin_lv0[1] + np.floor(np.arange(self.n_rows) * self.step_lv0[1] + 0.5).astype(np.int64)
        columns, rows = np.meshgrid(xs, ys)
        return np.stack([columns.ravel(), rows.ravel()], axis=1)

    def cells_of(self, coords_lv0: Int64[np.ndarray, "tile 2"]) -> Int64[np.ndarray, "tile 2"]:
        """Column and row of tiles given by their corners: the inverse of `coords_lv0`."""
        return np.rint((coords_lv0 - np.array(self.origin_lv0)) / np.array(self.step_lv0)).astype(np.int64)


def make_grid(tiling: Tiling, slide_mpp: tuple[float, float], bounds_lv0: tuple[int, int, int, int]) -> Grid:
    """Lay tiles over the scanned area; those that would reach outside it are left out.

    Args:
        tiling: What a tile is.
        slide_mpp: Micrometres per level-0 pixel along x and y.
        bounds_lv0: x, y, width, height of the scanned area.
    """
    x, y, width, height = bounds_lv0
    size = (tiling.tile_px * tiling.tile_mpp / slide_mpp[0], tiling.tile_px * tiling.tile_mpp / slide_mpp[1])
    step = (tiling.step_px * tiling.tile_mpp / slide_mpp[0], tiling.step_px * tiling.tile_mpp / slide_mpp[1])
    return Grid(
        origin_lv0=(x, y),
        size_lv0=size,
        step_lv0=step,
        n_columns=_fitting(width, size[0], step[0]),
        n_rows=_fitting(height, size[1], step[1]),
    )


def _fitting(extent: int, size: float, step: float) -> int:
    """How many tiles start at floor(i * step + .5) and end within ``extent``."""
    if size > extent:
        return 0
    starts = np.floor(np.arange(int(extent / step) + 2) * step + 0.5)
    return int(np.count_nonzero(starts + size <= extent + 1e-6))
