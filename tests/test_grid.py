"""Geometry: exact positions, whole tiles inside the bounds, and the way back."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_extraction.grid import Tiling, make_grid


def test_golden_positions_without_resampling():
    grid = make_grid(Tiling(tile_px=224, tile_mpp=0.5, step_px=224), (0.5, 0.5), (0, 0, 700, 500))
    assert grid.coords_lv0().tolist() == [[0, 0], [224, 0], [448, 0], [0, 224], [224, 224], [448, 224]]


def test_golden_positions_at_an_odd_mpp_from_the_bounds_corner():
    grid = make_grid(Tiling(tile_px=100, tile_mpp=0.5, step_px=100), (0.499, 0.4), (37, 11, 330, 260))
    # A tile is 100.2 x 125 level-0 pixels: starts 0, 100, 200 and 0, 125 from the corner.
    assert grid.coords_lv0().tolist() == [[37, 11], [137, 11], [237, 11], [37, 136], [137, 136], [237, 136]]


def test_golden_positions_are_rounded_half_up():
    # A step is 100.6 pixels: 0, 100.6, 201.2 start at 0, 101, 201; and 102.6 at 103.
    grid = make_grid(Tiling(tile_px=100, tile_mpp=0.5, step_px=100), (0.5 / 1.006, 0.5 / 1.026), (0, 0, 310, 210))
    assert grid.coords_lv0().tolist() == [[0, 0], [101, 0], [201, 0], [0, 103], [101, 103], [201, 103]]


def test_a_slide_smaller_than_a_tile_has_none():
    grid = make_grid(Tiling(tile_px=224, tile_mpp=0.5, step_px=224), (0.5, 0.5), (0, 0, 223, 900))
    assert grid.coords_lv0().shape == (0, 2)


@given(
    st.integers(16, 512),
    st.floats(0.1, 2.0),
    st.floats(0.1, 1.0),
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.floats(0.25, 1.0),
)
@settings(max_examples=200, deadline=None)
def test_tiles_lie_inside_cover_what_fits_and_are_found_again(tile_px, tile_mpp, slide_mpp, width, height, overlap):
    tiling = Tiling(tile_px=tile_px, tile_mpp=tile_mpp, step_px=max(1, int(tile_px * overlap)))
    bounds = (13, 7, width, height)
    grid = make_grid(tiling, (slide_mpp, slide_mpp), bounds)
    if grid.n_columns * grid.n_rows > 200_000:
        return
    coords = grid.coords_lv0()
    size, step = grid.size_lv0[0], grid.step_lv0[0]
    assert len(np.unique(coords, axis=0)) == len(coords) or step < 1
    if len(coords):
        assert coords.min(axis=0).tolist() == [13, 7]
        assert (coords + size <= np.array([13 + width, 7 + height]) + 1e-6).all()
        next_column = np.floor(grid.n_columns * step + 0.5)
        assert next_column + size > width  # one more column would reach outside
        if step >= 1.5:
            cells = grid.cells_of(coords)
            assert cells[:, 0].max() == grid.n_columns - 1
            assert (cells[:, 1] * grid.n_columns + cells[:, 0] == np.arange(len(coords))).all()
