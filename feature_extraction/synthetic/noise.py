"""Random fields and point patterns, the raw material of every drawing."""

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy.random import Generator
from PIL import Image
from scipy.spatial import KDTree

Shape = tuple[int, int]
"""Height and width in pixels."""


def resize_field(field: Float32[np.ndarray, "rows columns"], shape: Shape) -> Float32[np.ndarray, "height width"]:
    """Resize a field bicubically to ``shape``."""
    resized = Image.fromarray(field).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.array(resized, dtype=np.float32)


def smooth_noise(rng: Generator, shape: Shape, *, scale_px: float) -> Float32[np.ndarray, "height width"]:
    """Noise of zero mean and about unit variance whose features are about ``scale_px`` across."""
    rows, columns = (max(2, int(np.ceil(side / scale_px)) + 1) for side in shape)
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return resize_field(coarse, shape) * np.float32(1.4)


def fine_noise(rng: Generator, shape: Shape) -> Float32[np.ndarray, "height width"]:
    """White noise of unit variance; repeats every 512 px, which no eye finds below a texture."""
    patch = rng.standard_normal((min(shape[0], 512), min(shape[1], 512)), dtype=np.float32)
    rows, columns = (-(-side // 512) for side in shape)
    return np.tile(patch, (rows, columns))[: shape[0], : shape[1]]


def mesh(shape: Shape) -> tuple[Float32[np.ndarray, "height 1"], Float32[np.ndarray, "1 width"]]:
    """Pixel positions (y, x) that broadcast to ``shape``."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return y.astype(np.float32), x.astype(np.float32)


def scatter(rng: Generator, shape: Shape, *, spacing_px: float, jitter: float = 0.35) -> Float32[np.ndarray, "point 2"]:
    """Points (y, x) on a jittered hexagonal lattice over ``shape`` and one spacing around it.

    Args:
        rng: Source of the jitter.
        shape: Area to cover, in pixels.
        spacing_px: Distance of neighbours before the jitter.
        jitter: Standard deviation of the jitter, in spacings.
    """
    rows = np.arange(-1, shape[0] / (spacing_px * 0.87) + 1)
    columns = np.arange(-1, shape[1] / spacing_px + 1)
    grid_y, grid_x = np.meshgrid(rows * 0.87, columns, indexing="ij")
    grid_x = grid_x + 0.5 * (rows[:, None] % 2)
    points = np.stack([grid_y.ravel(), grid_x.ravel()], axis=1)
    points = (points + jitter * rng.standard_normal(points.shape)) * spacing_px
    return points.astype(np.float32)


def sample_at(
    field: Float32[np.ndarray, "rows columns"], points: Float32[np.ndarray, "point 2"], *, step_px: float = 1.0
) -> Float32[np.ndarray, "point"]:
    """Values of a field at points (y, x); a field drawn at a coarser step is read at the nearest sample."""
    index: Int64[np.ndarray, "point 2"] = np.floor(points / step_px).astype(np.int64)
    rows = np.clip(index[:, 0], 0, field.shape[0] - 1)
    columns = np.clip(index[:, 1], 0, field.shape[1] - 1)
    return field[rows, columns]


def cell_border(
    points: Float32[np.ndarray, "point 2"], shape: Shape, *, step_px: int
) -> Float32[np.ndarray, "height width"]:
    """Distance in pixels to the border of the Voronoi cell around each pixel (second minus first nearest point).

    Measured every ``step_px`` pixels and interpolated between.
    """
    rows, columns = (-(-side // step_px) for side in shape)
    y, x = np.mgrid[:rows, :columns]
    centres = (np.stack([y.ravel(), x.ravel()], axis=1) + 0.5) * step_px
    distances, _ = KDTree(points).query(centres, k=2)
    border = (distances[:, 1] - distances[:, 0]).reshape(rows, columns).astype(np.float32)
    return resize_field(border, shape)


def keep_fraction(rng: Generator, count: int, fraction: float) -> Bool[np.ndarray, "point"]:
    """Which of ``count`` points to keep so that about ``fraction`` of them stay."""
    return rng.random(count) < fraction
