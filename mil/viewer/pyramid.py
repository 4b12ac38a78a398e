"""A slide as a DeepZoom pyramid: which tiles there are, where they lie, and their pixels."""

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from feature_extraction.files import publish
from feature_extraction.slide import Slide

TILE_PX, OVERLAP_PX = 510, 1
"""Of a tile without its overlap, which every edge inside the picture has: 512 pixels with it."""
JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True, kw_only=True)
class Pyramid:
    """A picture of the scanned area in halves of halves. Level n has at most 2^n pixels on its longer side.

    Attributes:
        bounds_lv0: x, y, width, height of the scanned area in level-0 pixels.
        factor: Level-0 pixels to a pixel of the finest level, a power of two.
    """

    bounds_lv0: tuple[int, int, int, int]
    factor: int = 1

    @property
    def last_level(self) -> int:
        """The finest."""
        return math.ceil(math.log2(max(self._size(1))))

    @property
    def first_level(self) -> int:
        """The finest that is one tile, as coarse as anybody needs."""
        return next(level for level in range(self.last_level, -1, -1) if max(self.size(level)) <= TILE_PX)

    def size(self, level: int) -> tuple[int, int]:
        """Width and height of a level in its pixels; a last pixel may reach beyond the scanned area."""
        return self._size(2 ** (self.last_level - level))

    def grid(self, level: int) -> tuple[int, int]:
        """Columns and rows of tiles."""
        width, height = self.size(level)
        return math.ceil(width / TILE_PX), math.ceil(height / TILE_PX)

    def n_tiles(self) -> int:
        """Of all levels."""
        return sum(math.prod(self.grid(level)) for level in range(self.first_level, self.last_level + 1))

    def holds(self, level: int, column: int, row: int) -> bool:
        """Whether there is such a tile."""
        if not self.first_level <= level <= self.last_level:
            return False
        columns, rows = self.grid(level)
        return 0 <= column < columns and 0 <= row < rows

    def box(self, level: int, column: int, row: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of a tile with its overlap, in pixels of the level."""
        width, height = self.size(level)
        return (
            max(0, column * TILE_PX - OVERLAP_PX),
            max(0, row * TILE_PX - OVERLAP_PX),
            min(width, (column + 1) * TILE_PX + OVERLAP_PX),
            min(height, (row + 1) * TILE_PX + OVERLAP_PX),
        )

    def described(self, folder: str) -> dict[str, object]:
        """What the page must know, with the folder of the tiles beside it."""
        width, height = self.size(self.last_level)
        return {
            "folder": folder,
            "factor": self.factor,
            "width": width,
            "height": height,
            "tile_px": TILE_PX,
            "overlap_px": OVERLAP_PX,
            "first_level": self.first_level,
            "last_level": self.last_level,
        }

    def _size(self, coarser: int) -> tuple[int, int]:
        _, _, width, height = self.bounds_lv0
        pixel = self.factor * coarser
        return math.ceil(width / pixel), math.ceil(height / pixel)


def pyramid_within(bounds_lv0: tuple[int, int, int, int], most_tiles: int) -> Pyramid:
    """The finest pyramid of at most ``most_tiles`` tiles, and of one at least."""
    factor = 1
    while (pyramid := Pyramid(bounds_lv0=bounds_lv0, factor=factor)).n_tiles() > max(1, most_tiles):
        factor *= 2
    return pyramid


def tile_pixels(slide: Slide, pyramid: Pyramid, level: int, column: int, row: int) -> UInt8[np.ndarray, "row column 3"]:
    """The pixels of one tile, each the mean of what it covers.

    Raises:
        SlideError: They cannot be decoded.
    """
    x, y, _, _ = pyramid.bounds_lv0
    pixel = pyramid.factor * 2 ** (pyramid.last_level - level)
    left, top, right, bottom = pyramid.box(level, column, row)
    region = (x + left * pixel, y + top * pixel, (right - left) * pixel, (bottom - top) * pixel)
    return slide.thumbnail(region, float(pixel))


def tile_jpeg(slide: Slide, pyramid: Pyramid, level: int, column: int, row: int) -> bytes:
    """`tile_pixels` as JPEG."""
    stream = io.BytesIO()
    pixels = tile_pixels(slide, pyramid, level, column, row)
    Image.fromarray(pixels).save(stream, format="JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def write_pyramid(slide: Slide, pyramid: Pyramid, folder: Path) -> list[Path]:
    """Write ``<folder>/<level>/<column>_<row>.jpg``; returns the files.

    Raises:
        SlideError: A tile cannot be decoded.
        OSError: The disk refuses.
    """
    made: list[Path] = []
    for level in range(pyramid.first_level, pyramid.last_level + 1):
        columns, rows = pyramid.grid(level)
        for row in range(rows):
            for column in range(columns):
                made.append(folder / str(level) / f"{column}_{row}.jpg")
                publish(made[-1], tile_jpeg(slide, pyramid, level, column, row))
    return made
