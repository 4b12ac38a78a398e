"""A map as pixels: where tiles overlap, a pixel is the mean of the tiles that cover it."""

import numpy as np
from jaxtyping import Float64, Int64

MOST_PIXELS = 2048
"""Of the longer side."""
PIXELS_A_TILE = 4


def raster_shape(bounds_lv0: tuple[int, int, int, int], size_lv0: tuple[float, float]) -> tuple[int, int]:
    """Rows and columns that give a tile some pixels, within `MOST_PIXELS`.

    Args:
        bounds_lv0: x, y, width, height of what is shown.
        size_lv0: Width and height of a tile.
    """
    _, _, width, height = bounds_lv0
    pixel = max(min(size_lv0) / PIXELS_A_TILE, max(width, height) / MOST_PIXELS)
    return max(1, round(height / pixel)), max(1, round(width / pixel))


def mean_of_covering(
    coords_lv0: Int64[np.ndarray, "tile 2"],
    size_lv0: tuple[float, float],
    values: Float64[np.ndarray, " tile"],
    bounds_lv0: tuple[int, int, int, int],
    shape: tuple[int, int],
) -> Float64[np.ndarray, "row column"]:
    """For each pixel the mean of the tiles that cover its centre, nan where none does.

    Args:
        coords_lv0: Top-left corner of each tile.
        size_lv0: Width and height of a tile.
        values: One a tile.
        bounds_lv0: x, y, width, height of the picture, in level-0 pixels.
        shape: Rows and columns of the picture.
    """
    x, y, width, height = bounds_lv0
    pixel = (width / shape[1], height / shape[0])
    return mean_on_pixels(coords_lv0, size_lv0, values, origin_lv0=(x, y), pixel_lv0=pixel, shape=shape)


def mean_on_pixels(
    coords_lv0: Int64[np.ndarray, "tile 2"],
    size_lv0: tuple[float, float],
    values: Float64[np.ndarray, " tile"],
    *,
    origin_lv0: tuple[int, int],
    pixel_lv0: tuple[float, float],
    shape: tuple[int, int],
) -> Float64[np.ndarray, "row column"]:
    """`mean_of_covering` for pixels of a given size.

    Four numbers are written for each tile and summed along both axes, so that the time does not depend on its size.

    Args:
        coords_lv0: Top-left corner of each tile.
        size_lv0: Width and height of a tile.
        values: One a tile.
        origin_lv0: Top-left corner of the picture.
        pixel_lv0: Width and height of a pixel, in level-0 pixels.
        shape: Rows and columns of the picture.
    """
    left, right = _span(coords_lv0[:, 0] - origin_lv0[0], size_lv0[0], pixel_lv0[0], shape[1])
    top, bottom = _span(coords_lv0[:, 1] - origin_lv0[1], size_lv0[1], pixel_lv0[1], shape[0])
    count = _summed(left, right, top, bottom, np.ones(len(values)), shape).round()
    total = _summed(left, right, top, bottom, values, shape)
    return np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)


def _span(
    start: Int64[np.ndarray, " tile"], length: float, pixel: float, n_pixels: int
) -> tuple[Int64[np.ndarray, " tile"], Int64[np.ndarray, " tile"]]:
    """First pixel whose centre lies in each tile, and the one after the last."""
    first = np.ceil(start / pixel - 0.5).astype(np.int64).clip(0, n_pixels)
    end = np.ceil((start + length) / pixel - 0.5).astype(np.int64).clip(0, n_pixels)
    return first, end


def _summed(
    left: Int64[np.ndarray, " tile"],
    right: Int64[np.ndarray, " tile"],
    top: Int64[np.ndarray, " tile"],
    bottom: Int64[np.ndarray, " tile"],
    values: Float64[np.ndarray, " tile"],
    shape: tuple[int, int],
) -> Float64[np.ndarray, "row column"]:
    corners = np.zeros((shape[0] + 1, shape[1] + 1))
    for rows, columns, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(corners, (rows, columns), sign * values)
    return corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
