"""Glands and sheets of epithelium: benign glands, glandular and keratinizing carcinoma, solid sheets.

Each function draws one tissue over a shape and returns optical densities of three dyes in the order of `matrix`.
``likeness`` (0..1) is how much the drawing leans towards what it could be mistaken for.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32
from numpy.random import Generator

from feature_extraction.synthetic.matrix import EOSIN, HAEMATOXYLIN, RED, Dyes, draw_stroma, empty
from feature_extraction.synthetic.noise import (
    Shape,
    cell_border,
    fine_noise,
    keep_fraction,
    resize_field,
    sample_at,
    scatter,
    smooth_noise,
)
from feature_extraction.synthetic.nuclei import NucleusKind, any_stamp, nucleus_bank, stamp, stamp_for_angle

Points = Float32[np.ndarray, "point 2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GlandKind:
    """What glands look like.

    Attributes:
        pitch_px: Distance of gland centres, in pixels of 0.5 µm.
        fill: Mean radius over half the pitch; above 1 the glands touch.
        roughness: Amplitude of the dents in the outline, relative to the radius.
        lumen: Radius of the lumen over that of the gland.
        rings: Depths of the rings of nuclei, 0 at the centre and 1 at the outline.
        nucleus_step_px: Distance of nuclei along a ring.
        disorder_px: Standard deviation of a nucleus off its ring.
        nucleus: The nuclei.
        apical: Eosin in the cytoplasm; goblet-like glands are pale.
        basophilia: Haematoxylin in the cytoplasm.
    """

    pitch_px: float
    fill: float
    roughness: float
    lumen: float
    rings: tuple[float, ...]
    nucleus_step_px: float
    disorder_px: float
    nucleus: NucleusKind
    apical: float
    basophilia: float


def benign_kind(rng: Generator, likeness: float) -> GlandKind:
    """Round glands, one row of small nuclei at the base; with likeness reactive: larger nuclei, closer glands."""
    return GlandKind(
        pitch_px=float(rng.uniform(125, 160)) - 15 * likeness,
        fill=float(rng.uniform(0.7, 0.8)) + 0.08 * likeness,
        roughness=0.025 + 0.035 * likeness,
        lumen=float(rng.uniform(0.3, 0.42)),
        rings=(0.83,),
        nucleus_step_px=11.5,
        disorder_px=0.7 + 1.2 * likeness,
        nucleus=NucleusKind(
            radius_px=5.2 + 1.3 * likeness, spread=0.07 + 0.08 * likeness, elongation=1.35, density=0.95, texture=0.1
        ),
        apical=float(rng.uniform(0.12, 0.28)),
        basophilia=0.03 + 0.05 * likeness,
    )


def glandular_kind(rng: Generator, likeness: float) -> GlandKind:
    """Crowded irregular glands of stratified atypical nuclei; with likeness well differentiated: nearer to benign."""
    return GlandKind(
        pitch_px=float(rng.uniform(105, 150)),
        fill=float(rng.uniform(1.0, 1.15)) - 0.16 * likeness,
        roughness=float(rng.uniform(0.08, 0.14)) - 0.05 * likeness,
        lumen=float(rng.uniform(0.18, 0.36)),
        rings=(0.88, 0.66) if rng.random() < 0.85 * likeness else (0.9, 0.72, 0.54),
        nucleus_step_px=14.0,
        disorder_px=3.2 - 1.2 * likeness,
        nucleus=NucleusKind(
            radius_px=7.6 - 1.2 * likeness,
            spread=0.22 - 0.08 * likeness,
            elongation=1.45,
            irregularity=0.07,
            density=1.02,
            texture=0.28,
            nucleolus=0.5 * float(rng.random()),
        ),
        apical=float(rng.uniform(0.3, 0.45)),
        basophilia=0.16 - 0.06 * likeness,
    )


def draw_benign_glands(rng: Generator, shape: Shape, likeness: float) -> Dyes:
    """Benign glands in stroma."""
    return draw_glands(rng, shape, benign_kind(rng, likeness))


def draw_glandular(rng: Generator, shape: Shape, likeness: float) -> Dyes:
    """Glandular carcinoma: acinar, or cribriform where lumens pierce one sheet."""
    kind = glandular_kind(rng, likeness)
    return draw_glands(rng, shape, kind)


def draw_glands(rng: Generator, shape: Shape, kind: GlandKind) -> Dyes:
    """Glands of one kind, set in stroma."""
    centres = scatter(rng, shape, spacing_px=kind.pitch_px, jitter=0.1)
    radii = kind.pitch_px / 2 * kind.fill * np.clip(rng.normal(1, 0.1, len(centres)), 0.75, 1.3)
    waves = _outline_waves(rng, len(centres), kind.roughness)
    half = (-(-shape[0] // 2), -(-shape[1] // 2))
    depth = np.full(half, 9, np.float32)
    for centre, radius, wave in zip(centres / 2, radii / 2, waves, strict=True):
        _carve(depth, centre, float(radius), wave)
    depth = resize_field(np.minimum(depth, 1.6), shape)
    dyes = draw_stroma(rng, shape, 0.3)
    gland = _below(depth, 1.0, 18.0)
    lumen = _below(depth + 0.05 * smooth_noise(rng, shape, scale_px=14.0), kind.lumen, 14.0)
    dyes *= 1 - gland
    grain = 1 + 0.1 * fine_noise(rng, shape) + 0.2 * smooth_noise(rng, shape, scale_px=10.0)
    cytoplasm = np.clip(gland - lumen, 0, 1) * grain
    dyes[EOSIN] += kind.apical * cytoplasm * (0.6 + 0.4 * depth)
    dyes[HAEMATOXYLIN] += kind.basophilia * cytoplasm
    points, angles = _ring_nuclei(rng, centres, radii, waves, kind)
    stamp(dyes[HAEMATOXYLIN], nucleus_bank(rng, kind.nucleus), points, stamp_for_angle(angles))
    return np.maximum(dyes, 0)


def draw_solid(rng: Generator, shape: Shape, likeness: float) -> Dyes:
    """A sheet of large atypical cells with little cytoplasm; with likeness, smaller and closer ones."""
    kind = NucleusKind(
        radius_px=8.0 - 1.2 * likeness, spread=0.22, elongation=1.25, irregularity=0.08, density=0.95, texture=0.3,
        nucleolus=0.5,
    )  # fmt: skip
    dyes = empty(shape)
    dyes[EOSIN] = 0.36 + 0.07 * smooth_noise(rng, shape, scale_px=18.0) + 0.03 * fine_noise(rng, shape)
    dyes[HAEMATOXYLIN] = 0.17 + 0.04 * smooth_noise(rng, shape, scale_px=26.0)
    points = scatter(rng, shape, spacing_px=float(rng.uniform(20, 24)) - 2 * likeness, jitter=0.25)
    stamp(dyes[HAEMATOXYLIN], nucleus_bank(rng, kind), points, any_stamp(rng, points))
    return np.maximum(dyes, 0)


def draw_keratinizing(rng: Generator, shape: Shape, likeness: float) -> Dyes:
    """Squamous sheets with bridges and keratin pearls; with likeness, fewer and smaller pearls."""
    cells = scatter(rng, shape, spacing_px=float(rng.uniform(27, 32)), jitter=0.2)
    border = cell_border(cells, shape, step_px=2)
    bridge = np.exp(-((border / 2.2) ** 2))
    dyes = empty(shape)
    dyes[EOSIN] = 0.6 - 0.3 * bridge + 0.08 * smooth_noise(rng, shape, scale_px=20.0) + 0.03 * fine_noise(rng, shape)
    dyes[HAEMATOXYLIN] = 0.07
    pearls = scatter(rng, shape, spacing_px=float(rng.uniform(130, 175)) + 50 * likeness, jitter=0.2)
    radii = rng.uniform(34, 58, len(pearls)).astype(np.float32) * (1 - 0.25 * likeness)
    whorl, depth = _whorls(rng, shape, pearls, radii)
    pearl = _below(depth, 1.0, 14.0)
    is_free = sample_at(depth, cells) > 0.95
    kind = NucleusKind(
        radius_px=7.4, spread=0.2, elongation=1.3, irregularity=0.07, density=0.98, texture=0.25, nucleolus=0.3
    )
    nuclei = cells[is_free]
    stamp(dyes[HAEMATOXYLIN], nucleus_bank(rng, kind), nuclei, any_stamp(rng, nuclei))
    dyes[EOSIN] += pearl * (0.62 + 0.22 * whorl - dyes[EOSIN])
    dyes[RED] += pearl * (0.2 + 0.06 * whorl)
    dyes[HAEMATOXYLIN] *= 1 - 0.8 * pearl
    ghosts = cells[~is_free & keep_fraction(rng, len(cells), 0.25)]
    flat = NucleusKind(radius_px=3.6, elongation=2.6, density=0.7)
    stamp(dyes[HAEMATOXYLIN], nucleus_bank(rng, flat), ghosts, any_stamp(rng, ghosts))
    return np.maximum(dyes, 0)


def _whorls(
    rng: Generator, shape: Shape, pearls: Points, radii: Float32[np.ndarray, "point"]
) -> tuple[Float32[np.ndarray, "height width"], Float32[np.ndarray, "height width"]]:
    """Concentric lamellae (-1..1) and the depth in the nearest pearl (0 centre, 1 outline), at full size."""
    half = (-(-shape[0] // 2), -(-shape[1] // 2))
    depth = np.full(half, 9, np.float32)
    waves = _outline_waves(rng, len(pearls), 0.04)
    for centre, radius, wave in zip(pearls / 2, radii / 2, waves, strict=True):
        _carve(depth, centre, float(radius), wave)
    rings = np.sin(np.minimum(depth, 2) * np.float32(27) + 1.6 * smooth_noise(rng, half, scale_px=12.0))
    return resize_field(rings.astype(np.float32), shape), resize_field(np.minimum(depth, 1.6), shape)


def _outline_waves(rng: Generator, count: int, amplitude: float) -> Float32[np.ndarray, "gland 4 2"]:
    """Cosine and sine weights of the harmonics 2 to 5 of each outline."""
    return (amplitude * rng.standard_normal((count, 4, 2))).astype(np.float32)


def _radius_at(theta: Float32[np.ndarray, "*any"], wave: Float32[np.ndarray, "4 2"]) -> Float32[np.ndarray, "*any"]:
    """Relative radius of an outline at polar angles, around 1."""
    radius = np.ones_like(theta)
    for harmonic, (cosine, sine) in enumerate(wave, start=2):
        radius += cosine * np.cos(harmonic * theta) + sine * np.sin(harmonic * theta)
    return np.maximum(radius, np.float32(0.5))


def _carve(
    depth: Float32[np.ndarray, "height width"],
    centre: Float32[np.ndarray, "2"],
    radius: float,
    wave: Float32[np.ndarray, "4 2"],
) -> None:
    """Lower ``depth`` in place to the relative distance from a centre: 0 there, 1 on the outline."""
    reach = radius * 1.7
    top, left = (max(0, int(value - reach)) for value in centre)
    bottom, right = (max(0, int(value + reach) + 1) for value in centre)
    target = depth[top:bottom, left:right]
    if target.size == 0:
        return
    y = np.arange(top, top + target.shape[0], dtype=np.float32)[:, None] - centre[0]
    x = np.arange(left, left + target.shape[1], dtype=np.float32)[None, :] - centre[1]
    np.minimum(target, np.hypot(y, x) / (radius * _radius_at(np.arctan2(y, x), wave)), out=target)


def _ring_nuclei(
    rng: Generator,
    centres: Float32[np.ndarray, "gland 2"],
    radii: Float[np.ndarray, "gland"],
    waves: Float32[np.ndarray, "gland 4 2"],
    kind: GlandKind,
) -> tuple[Float32[np.ndarray, "nucleus 2"], Float32[np.ndarray, "nucleus"]]:
    """Nuclei in rings along each gland's outline: positions (y, x) and angles, long axis towards the lumen."""
    points: list[Float32[np.ndarray, "nucleus 2"]] = []
    angles: list[Float32[np.ndarray, "nucleus"]] = []
    for centre, radius, wave in zip(centres, radii, waves, strict=True):
        for ring in kind.rings:
            count = max(3, int(2 * np.pi * radius * ring / kind.nucleus_step_px))
            theta = (np.arange(count) + rng.random()) * np.float32(2 * np.pi / count)
            theta = theta.astype(np.float32)
            distance = ring * radius * _radius_at(theta, wave)
            points.append(centre + np.stack([np.sin(theta), np.cos(theta)], axis=1) * distance[:, None])
            angles.append(theta)
    placed = np.concatenate(points)
    placed = placed + rng.normal(0, kind.disorder_px, placed.shape)
    turned = np.concatenate(angles) + rng.normal(0, 0.06 * kind.disorder_px, len(placed))
    return placed.astype(np.float32), turned.astype(np.float32)


def _below(
    field: Float32[np.ndarray, "height width"], bound: float, sharpness: float
) -> Float32[np.ndarray, "height width"]:
    """About 1 where the field is below a bound, 0 above it, with a soft edge."""
    return (1 / (1 + np.exp(np.clip((field - bound) * sharpness, -30, 30)))).astype(np.float32)
