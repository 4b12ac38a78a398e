"""Nuclei and red cells: banks of small stamps, and stamping them by the thousand."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64
from numpy.random import Generator

BANK = 48
"""Stamps in a bank. Stamp i is turned by i/48 of half a turn, so that an angle chooses a stamp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NucleusKind:
    """What the nuclei of one cell type look like.

    Attributes:
        radius_px: Mean radius, in pixels of 0.5 µm.
        spread: Standard deviation of the radius relative to it (anisokaryosis).
        elongation: Long axis over short axis.
        irregularity: Amplitude of the dents in the outline, relative to the radius.
        density: Haematoxylin taken up, in units of optical density.
        texture: Contrast of the chromatin, relative to the density.
        nucleolus: Optical density that a nucleolus adds.
    """

    radius_px: float
    spread: float = 0.12
    elongation: float = 1.15
    irregularity: float = 0.04
    density: float = 0.9
    texture: float = 0.15
    nucleolus: float = 0.0


def nucleus_bank(rng: Generator, kind: NucleusKind) -> Float32[np.ndarray, "stamp side side"]:
    """Draw `BANK` nuclei of one kind as haematoxylin density."""
    reach = (
        int(np.ceil(kind.radius_px * (1 + 2 * kind.spread) * np.sqrt(kind.elongation) * (1 + kind.irregularity))) + 2
    )
    axis = np.arange(-reach, reach + 1, dtype=np.float32)
    angle = (np.arange(BANK, dtype=np.float32) * np.float32(np.pi / BANK))[:, None, None]
    along = axis * np.cos(angle) + axis[:, None] * np.sin(angle)
    across = axis[:, None] * np.cos(angle) - axis * np.sin(angle)
    size = 1 + kind.spread * np.clip(rng.standard_normal((BANK, 1, 1)), -2, 2)
    stretch = np.sqrt(kind.elongation)
    along, across = along / (kind.radius_px * size * stretch), across / (kind.radius_px * size / stretch)
    depth = np.hypot(along, across) / _outline(rng, np.arctan2(across, along), kind.irregularity)
    inside = 1 / (1 + np.exp(np.clip((depth - 1) * kind.radius_px * 2.2, -30, 30)))
    rim = 0.35 * np.exp(-(((depth - 0.85) / 0.14) ** 2))
    grain = kind.texture * _grain(rng, inside.shape)
    spot_y, spot_x = (rng.uniform(-0.35, 0.35, (BANK, 1, 1)) for _ in range(2))
    spot = kind.nucleolus * np.exp(-((along - spot_x) ** 2 + (across - spot_y) ** 2) / 0.05)
    uptake = rng.normal(1, 0.1, (BANK, 1, 1))
    return (inside * (kind.density * uptake * (0.8 + rim + grain) + spot)).astype(np.float32)


def red_cell_bank(rng: Generator) -> Float32[np.ndarray, "stamp side side"]:
    """Draw `BANK` red cells, paler in the middle, in units of optical density."""
    axis = np.arange(-9, 10, dtype=np.float32)
    radius = rng.normal(6.5, 0.5, (BANK, 1, 1))
    squeeze = rng.normal(1, 0.1, (BANK, 1, 1))
    depth = np.hypot(axis * squeeze, axis[:, None] / squeeze) / radius
    inside = 1 / (1 + np.exp(np.clip((depth - 1) * 12, -30, 30)))
    return (inside * (0.95 - 0.35 * np.exp(-((depth / 0.45) ** 2)))).astype(np.float32)


def stamp(
    layer: Float32[np.ndarray, "height width"],
    bank: Float32[np.ndarray, "stamp side side"],
    points: Float32[np.ndarray, "point 2"],
    chosen: Int64[np.ndarray, "point"],
) -> None:
    """Press stamps into ``layer`` in place, keeping the larger value; parts outside the layer are cut off.

    Args:
        layer: Optical density, changed in place.
        bank: The stamps.
        points: Centres (y, x) in pixels of the layer.
        chosen: Index of the stamp at each point.
    """
    side = bank.shape[1]
    corners = np.rint(points).astype(np.int64) - side // 2
    height, width = layer.shape
    is_inside = ((corners > -side) & (corners < (height, width))).all(axis=1)
    for (top, left), index in zip(corners[is_inside].tolist(), chosen[is_inside].tolist(), strict=True):
        up, back = max(0, -top), max(0, -left)
        target = layer[top + up : top + side, left + back : left + side]
        np.maximum(target, bank[index, up : up + target.shape[0], back : back + target.shape[1]], out=target)


def any_stamp(rng: Generator, points: Float32[np.ndarray, "point 2"]) -> Int64[np.ndarray, "point"]:
    """A random stamp for each point."""
    return rng.integers(0, BANK, len(points))


def stamp_for_angle(angle: Float32[np.ndarray, "point"]) -> Int64[np.ndarray, "point"]:
    """The stamp whose long axis lies at ``angle`` (radians, from x towards y)."""
    return np.rint(angle * (BANK / np.pi)).astype(np.int64) % BANK


def _outline(
    rng: Generator, theta: Float[np.ndarray, "stamp side side"], amplitude: float
) -> Float[np.ndarray, "stamp side side"]:
    """Radius of a dented outline at each polar angle, around 1."""
    radius = np.ones_like(theta)
    for harmonic in (2, 3, 4):
        phase = rng.uniform(0, 2 * np.pi, (BANK, 1, 1)).astype(np.float32)
        radius += np.float32(amplitude) * np.cos(harmonic * theta + phase)
    return np.maximum(radius, np.float32(0.4))


def _grain(rng: Generator, shape: tuple[int, ...]) -> Float32[np.ndarray, "stamp side side"]:
    """Chromatin clumps about two pixels across, of about unit variance."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    rolled = noise + np.roll(noise, 1, axis=1) + np.roll(noise, 1, axis=2) + np.roll(noise, (1, 1), axis=(1, 2))
    return rolled / np.float32(2)
