"""Where a map lies on its slide: pixels that fit the tiles, in level-0 pixels from the corner of the full slide."""

import json
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from feature_extraction.header import FeatureHeader
from mil.bag import Bag
from mil.heatmap.tile_raster import PIXELS_A_TILE, mean_on_pixels

MOST_PIXELS = 8192
"""Of the longer side of a map; tiles that are small for their slide get fewer pixels each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidePlace:
    """What must be known of a slide to lay something over it.

    Attributes:
        size_lv0: Width and height of the full slide, 0 when another tool did not say.
        bounds_lv0: x, y, width, height of the scanned area.
        slide_mpp: µm per level-0 pixel along x and y.
        step_lv0: From one tile to the next along x and y.
    """

    size_lv0: tuple[int, int]
    bounds_lv0: tuple[int, int, int, int]
    slide_mpp: tuple[float, float]
    step_lv0: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPixels:
    """The pixels of a map.

    Attributes:
        origin_lv0: Top-left corner x, y of the first pixel.
        pixel_lv0: Width and height of a pixel.
        shape: Rows and columns.
    """

    origin_lv0: tuple[int, int]
    pixel_lv0: tuple[float, float]
    shape: tuple[int, int]


def place_of(header: FeatureHeader) -> SlidePlace:
    """The place that a feature file tells."""
    x, y, width, height = json.loads(header.bounds_lv0)
    return SlidePlace(
        size_lv0=(header.level0_width, header.level0_height),
        bounds_lv0=(int(x), int(y), int(width), int(height)),
        slide_mpp=(header.slide_mpp_x, header.slide_mpp_y),
        step_lv0=header.tile_step_lv0(),
    )


def map_pixels(bag: Bag, place: SlidePlace) -> MapPixels:
    """Pixels over the scanned area (and tiles outside it) whose edges are the tiles' where those lie on a grid.

    A whole number of them makes a step from tile to tile, about `PIXELS_A_TILE` a tile. Tile corners are rounded to
    level-0 pixels, pixel corners are not: they agree to half a level-0 pixel.
    """
    x, y, width, height = place.bounds_lv0
    low = np.minimum((x, y), bag.coords_lv0.min(axis=0))
    high = np.maximum((x + width, y + height), bag.coords_lv0.max(axis=0) + np.array(bag.size_lv0))
    # A step of a computed half of a tile is not exactly half.
    counts = [
        math.ceil(PIXELS_A_TILE * step / size - 1e-6) for step, size in zip(place.step_lv0, bag.size_lv0, strict=True)
    ]
    pixel = np.array(place.step_lv0) / counts
    while ((high - low) / pixel).max() > MOST_PIXELS:
        pixel = 2 * pixel
    n_columns, n_rows = np.ceil((high - low) / pixel - 1e-6).astype(int)
    return MapPixels(
        origin_lv0=(int(low[0]), int(low[1])),
        pixel_lv0=(float(pixel[0]), float(pixel[1])),
        shape=(max(1, int(n_rows)), max(1, int(n_columns))),
    )


def map_values(bag: Bag, values: Float64[np.ndarray, " tile"], pixels: MapPixels) -> Float64[np.ndarray, "row column"]:
    """For each pixel the mean of the tiles that cover its centre, nan where none does."""
    return mean_on_pixels(
        bag.coords_lv0,
        bag.size_lv0,
        values,
        origin_lv0=pixels.origin_lv0,
        pixel_lv0=pixels.pixel_lv0,
        shape=pixels.shape,
    )
