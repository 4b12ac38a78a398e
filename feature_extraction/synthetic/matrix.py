"""Everything between the glands: stroma, lymphocytes, alveoli, mucin, necrosis, blood.

Each function draws one tissue over a shape and returns optical densities of three dyes in the order of `Dye`.
``likeness`` (0..1) is how much the drawing leans towards what it could be mistaken for.
"""

import numpy as np
from jaxtyping import Float32
from numpy.random import Generator

from feature_extraction.synthetic.noise import (
    Shape,
    cell_border,
    fine_noise,
    keep_fraction,
    mesh,
    resize_field,
    sample_at,
    scatter,
    smooth_noise,
)
from feature_extraction.synthetic.nuclei import (
    NucleusKind,
    any_stamp,
    nucleus_bank,
    red_cell_bank,
    stamp,
    stamp_for_angle,
)

HAEMATOXYLIN, EOSIN, RED = 0, 1, 2
"""Index of each dye in a drawing; red is the colour of haemoglobin and, faintly, of keratin."""

Dyes = Float32[np.ndarray, "3 height width"]

LYMPHOCYTE = NucleusKind(radius_px=6.3, spread=0.1, elongation=1.06, irregularity=0.02, density=1.25, texture=0.2)
SPINDLE = NucleusKind(radius_px=4.6, spread=0.15, elongation=4.2, irregularity=0.03, density=0.85, texture=0.12)
FLAT = NucleusKind(radius_px=4.4, spread=0.15, elongation=1.9, density=0.9)
FRAGMENT = NucleusKind(radius_px=2.2, spread=0.4, elongation=1.3, irregularity=0.15, density=1.0)


def empty(shape: Shape) -> Dyes:
    """No dye at all."""
    return np.zeros((3, *shape), np.float32)


def draw_stroma(rng: Generator, shape: Shape, likeness: float) -> Dyes:
    """Wavy collagen with spindle nuclei along the fibres; with likeness, more cells (desmoplasia)."""
    half = (-(-shape[0] // 2), -(-shape[1] // 2))
    y, x = mesh(half)
    turn = rng.uniform(0, np.pi)
    direction = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    warp = smooth_noise(rng, half, scale_px=110.0) * 26 + smooth_noise(rng, half, scale_px=30.0) * 4
    across = direction[0] * y - direction[1] * x + warp
    wave = np.sin(across * np.float32(0.42)) + 0.6 * np.sin(
        across * np.float32(1.13) + smooth_noise(rng, half, scale_px=40.0)
    )
    bundle = 0.5 + 0.25 * wave + 0.16 * smooth_noise(rng, half, scale_px=25.0)
    coarse = np.clip(0.55 * bundle + 0.12, 0.03, 1.0).astype(np.float32)
    dyes = empty(shape)
    dyes[EOSIN] = resize_field(coarse, shape)
    dyes[HAEMATOXYLIN] = 0.08 * dyes[EOSIN]
    slope_y, slope_x = np.gradient(warp)
    angle = np.arctan2(-(slope_x - direction[1]), slope_y + direction[0]).astype(np.float32)
    points = scatter(rng, shape, spacing_px=float(rng.uniform(42, 62)) - 12 * likeness)
    along = sample_at(angle, points, step_px=2.0) + rng.normal(0, 0.15, len(points)).astype(np.float32)
    stamp(dyes[HAEMATOXYLIN], nucleus_bank(rng, SPINDLE), points, stamp_for_angle(along))
    return dyes


def draw_lymphocytes(rng: Generator, shape: Shape, likeness: float) -> Dyes:
    """A sheet of small round dark nuclei with hardly any cytoplasm; with likeness, sparser and larger."""
    dyes = empty(shape)
    dyes[EOSIN] = 0.22 + 0.05 * smooth_noise(rng, shape, scale_px=30.0)
    dyes[HAEMATOXYLIN] = 0.12
    points = scatter(rng, shape, spacing_px=float(rng.uniform(15.5, 18.5)) + 3 * likeness, jitter=0.22)
    stamp(dyes[HAEMATOXYLIN], nucleus_bank(rng, LYMPHOCYTE), points, any_stamp(rng, points))
    return np.maximum(dyes, 0)


def draw_alveoli(rng: Generator, shape: Shape, likeness: float) -> Dyes:
    """Air spaces with thin walls of flat nuclei; with likeness, thicker and more cellular walls."""
    centres = scatter(rng, shape, spacing_px=float(rng.uniform(105, 165)), jitter=0.3)
    border = cell_border(centres, shape, step_px=4) + 3 * smooth_noise(rng, shape, scale_px=24.0)
    width_px = float(rng.uniform(9, 13)) + 8 * likeness
    wall = 1 / (1 + np.exp(np.clip((border - width_px) * 0.5, -30, 30)))
    dyes = empty(shape)
    dyes[EOSIN] = 0.42 * wall * (1 + 0.12 * fine_noise(rng, shape))
    dyes[HAEMATOXYLIN] = 0.08 * wall
    points = scatter(rng, shape, spacing_px=17.0)
    points = points[sample_at(border, points) < width_px * 0.9]
    points = points[keep_fraction(rng, len(points), 0.6 + 0.2 * likeness)]
    stamp(dyes[HAEMATOXYLIN], nucleus_bank(rng, FLAT), points, any_stamp(rng, points))
    red = points[keep_fraction(rng, len(points), 0.12)] + rng.normal(0, 5, (1, 2)).astype(np.float32)
    stamp(dyes[RED], red_cell_bank(rng), red, any_stamp(rng, red))
    return np.maximum(dyes, 0)


def draw_mucin(rng: Generator, shape: Shape, likeness: float) -> Dyes:
    """Pale bluish pools with strands and a few floating cells; with likeness, more cells."""
    half = (-(-shape[0] // 2), -(-shape[1] // 2))
    strand = np.abs(
        0.4 * smooth_noise(rng, half, scale_px=6.0)
        + smooth_noise(rng, half, scale_px=34.0)
        + 0.5 * smooth_noise(rng, half, scale_px=14.0)
    )
    pool = np.clip(
        0.14 + 0.13 * np.exp(-((strand / 0.3) ** 2)) + 0.05 * smooth_noise(rng, half, scale_px=70.0), 0.02, 1
    )
    dyes = empty(shape)
    dyes[HAEMATOXYLIN] = resize_field(pool.astype(np.float32), shape)
    dyes[EOSIN] = 0.25 * dyes[HAEMATOXYLIN]
    points = scatter(rng, shape, spacing_px=75.0)
    points = points[keep_fraction(rng, len(points), 0.3 + 0.3 * likeness)]
    stamp(dyes[HAEMATOXYLIN], nucleus_bank(rng, FLAT), points, any_stamp(rng, points))
    return dyes


def draw_necrosis(rng: Generator, shape: Shape, likeness: float) -> Dyes:
    """Granular pink debris with nuclear dust and no whole cells; with likeness, more dust."""
    granules = smooth_noise(rng, shape, scale_px=5.0)
    dyes = empty(shape)
    dyes[EOSIN] = np.clip(0.42 + 0.1 * granules + 0.09 * smooth_noise(rng, shape, scale_px=40.0), 0.05, 1.2)
    dyes[HAEMATOXYLIN] = np.clip(0.1 + 0.07 * smooth_noise(rng, shape, scale_px=12.0), 0, 1)
    points = scatter(rng, shape, spacing_px=15.0, jitter=0.6)
    is_cloudy = sample_at(smooth_noise(rng, shape, scale_px=60.0), points) > 0.1 - 0.4 * likeness
    points = points[is_cloudy & keep_fraction(rng, len(points), 0.7)]
    stamp(dyes[HAEMATOXYLIN], nucleus_bank(rng, FRAGMENT), points, any_stamp(rng, points))
    return dyes


def draw_blood(rng: Generator, shape: Shape, likeness: float) -> Dyes:
    """Packed red cells with thin pale gaps; with likeness, a few white cells among them."""
    dyes = empty(shape)
    points = scatter(rng, shape, spacing_px=float(rng.uniform(11.5, 14)), jitter=0.25)
    stamp(dyes[RED], red_cell_bank(rng), points, any_stamp(rng, points))
    white = scatter(rng, shape, spacing_px=110.0)
    white = white[keep_fraction(rng, len(white), 0.3 + 0.5 * likeness)]
    stamp(dyes[HAEMATOXYLIN], nucleus_bank(rng, LYMPHOCYTE), white, any_stamp(rng, white))
    return dyes


def draw_glass(rng: Generator, shape: Shape, likeness: float) -> Dyes:
    """Empty glass with dust; with likeness, more of it."""
    dyes = empty(shape)
    points = scatter(rng, shape, spacing_px=260.0)
    points = points[keep_fraction(rng, len(points), 0.2 + 0.3 * likeness)]
    stamp(dyes[EOSIN], 0.4 * nucleus_bank(rng, FRAGMENT), points, any_stamp(rng, points))
    return dyes
