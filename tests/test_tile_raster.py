"""Maps as pixels: overlapping tiles are averaged, nothing leaves its place."""

import numpy as np
import pytest

from mil.heatmap.tile_raster import mean_of_covering, raster_shape


@pytest.mark.parametrize("seed", range(5))
def test_a_pixel_is_the_mean_of_the_tiles_over_its_centre(seed: int):
    """Against a loop over pixels, with overlaps, odd sizes and tiles that reach out of the picture."""
    generator = np.random.default_rng(seed)
    coords = generator.integers(-20, 260, (40, 2))
    values, size, bounds, shape = generator.standard_normal(40), (37.3, 51.9), (5, -7, 240, 201), (53, 61)
    found = mean_of_covering(coords, size, values, bounds, shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            x = bounds[0] + (column + 0.5) * bounds[2] / shape[1]
            y = bounds[1] + (row + 0.5) * bounds[3] / shape[0]
            covers = (coords <= (x, y)).all(axis=1) & (coords + size > (x, y)).all(axis=1)
            expected = values[covers].mean() if covers.any() else np.nan
            np.testing.assert_allclose(found[row, column], expected, atol=1e-9)


def test_a_tile_has_some_pixels_and_a_large_slide_not_too_many():
    assert raster_shape((0, 0, 1000, 500), (100.0, 100.0)) == (20, 40)
    assert max(raster_shape((0, 0, 200_000, 100_000), (100.0, 100.0))) == 2048
