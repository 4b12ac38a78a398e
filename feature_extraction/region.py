"""Pure geometry: which pixels of a level a tile is made from."""

import math
from dataclasses import dataclass

WHOLE = 1e-6
"""Positions this near to a whole pixel count as whole (sums of exact fractions are off by less)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """The smallest rectangle of whole level pixels that holds a tile, and where the tile lies in it.

    Attributes:
        corner: x, y of the rectangle, in pixels of the level.
        size: Its width and height.
        inset: x, y of the tile's corner inside the rectangle; fractional, below 1.
        extent: Width and height of the tile inside the rectangle; fractional, the mpp is exact.
    """

    corner: tuple[int, int]
    size: tuple[int, int]
    inset: tuple[float, float]
    extent: tuple[float, float]


def region_of(corner_lv0: tuple[int, int], size_lv0: tuple[float, float], factor: float) -> Region:
    """The region of a tile.

    Args:
        corner_lv0: x, y of the tile in level-0 pixels.
        size_lv0: Its width and height in level-0 pixels.
        factor: Level-0 pixels to a pixel of the level.
    """
    (x, inset_x, columns, width), (y, inset_y, rows, height) = (
        _span(start / factor, length / factor) for start, length in zip(corner_lv0, size_lv0, strict=True)
    )
    return Region(corner=(x, y), size=(columns, rows), inset=(inset_x, inset_y), extent=(width, height))


def _span(start: float, length: float) -> tuple[int, float, int, float]:
    """First whole pixel, inset, number of whole pixels and fractional length along one axis."""
    first = int(start + WHOLE)
    inset = max(start - first, 0.0)
    count = math.ceil(start + length - first - WHOLE)
    return first, inset, count, min(length, count - inset)
