"""Lay out one slide: pieces of tissue on glass, a mosaic of ordinary tissue, and the lesion with its true outline."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64
from numpy.random import Generator
from PIL import Image
from scipy.ndimage import binary_erosion, find_objects, gaussian_filter
from scipy.spatial import KDTree
from shapely import Polygon, contains_xy

from feature_extraction.synthetic.matrix import Dyes
from feature_extraction.synthetic.noise import Shape, resize_field, scatter, smooth_noise
from feature_extraction.synthetic.stain import Pixels, random_stain, render
from feature_extraction.synthetic.tissue import Tissue, draw, ink, stroke

Label = Literal["normal", "glandular", "keratinizing"]
LABELS: tuple[Label, ...] = ("normal", "glandular", "keratinizing")

DRAWN_MPP = 0.5
"""Micrometres per pixel at which everything is drawn."""

COARSE = 8
"""Layouts are planned on pixels this many times larger than those drawn."""

MOSAIC: dict[Tissue, float] = {
    "stroma": 0.28,
    "alveoli": 0.25,
    "lymphocytes": 0.13,
    "benign_glands": 0.17,
    "mucin": 0.06,
    "necrosis": 0.06,
    "blood": 0.05,
}
"""Shares of ordinary tissue. The same for every label, so that only the lesion tells labels apart."""

Outline = Float64[np.ndarray, "vertex 2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidePlan:
    """Everything that determines a slide's pixels.

    Attributes:
        label: What the lesion is, ``normal`` for none.
        seed: Source of the layout and of every texture.
        stain_seed: Source of the stain; slides of one site share it.
        mpp: Micrometres per pixel of level 0.
        side_um: Side of the slide in micrometres.
        likeness: Range of how far each tissue leans towards what it can be mistaken for;
            training of the demo encoder stays below 0.6, and above 1 exaggerates.
    """

    label: Label
    seed: int
    stain_seed: int
    mpp: float = DRAWN_MPP
    side_um: float = 1152.0
    likeness: tuple[float, float] = (0.6, 1.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnSlide:
    """A slide and its truth.

    Attributes:
        pixels: Level 0.
        lesions_lv0: Outlines (x, y) of the lesions in level-0 pixels, each closed.
    """

    pixels: Pixels
    lesions_lv0: tuple[Outline, ...]


def draw_slide(plan: SlidePlan) -> DrawnSlide:
    """Draw the slide of a plan; the same plan gives the same pixels."""
    rng = np.random.default_rng(plan.seed)
    side_px = round(plan.side_um / DRAWN_MPP / COARSE) * COARSE
    shape = (side_px, side_px)
    is_tissue = _tissue_pieces(rng, (side_px // COARSE, side_px // COARSE))
    dyes = _mosaic(rng, is_tissue, shape, plan.likeness)
    lesions = () if plan.label == "normal" else _lesion_outlines(rng, is_tissue)
    for index, outline in enumerate(lesions):
        tissue: Tissue = "solid" if index > 0 and rng.random() < 0.2 else _lesion_tissue(plan.label)
        _paint(dyes, tissue, _filled(outline, is_tissue.shape), rng, plan.likeness)
    dyes *= resize_field(gaussian_filter(is_tissue.astype(np.float32), 0.7), shape).clip(0, 1)
    stain = random_stain(np.random.default_rng(plan.stain_seed), variety=1.0)
    pixels = render(dyes, stain, rng)
    if rng.random() < 0.35:
        pixels = _pen_mark(pixels, rng)
    return _at_mpp(pixels, lesions, plan.mpp)


def _tissue_pieces(rng: Generator, shape: Shape) -> Bool[np.ndarray, "rows columns"]:
    """True where tissue lies: one large ragged piece, or two smaller ones."""
    field = smooth_noise(rng, shape, scale_px=shape[0] / 6) * np.float32(0.1)
    field += smooth_noise(rng, shape, scale_px=shape[0] / 30) * np.float32(0.02)
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    if rng.random() < 0.65:
        ellipses = [(0.0, 0.0, 0.92, rng.uniform(0.75, 0.92))]
    else:
        ellipses = [(-0.47, rng.uniform(-0.1, 0.1), 0.46, 0.85), (0.47, rng.uniform(-0.1, 0.1), 0.46, 0.85)]
    turned = rng.random() < 0.5
    distance = np.full(shape, 9, np.float32)
    for centre_y, centre_x, radius_y, radius_x in ellipses:
        ellipse = np.hypot((y[:, None] - centre_y) / radius_y, (x - centre_x) / radius_x)
        distance = np.minimum(distance, ellipse.T if turned else ellipse)
    is_tissue = distance + field < 0.96
    is_tissue[[0, -1]] = False
    is_tissue[:, [0, -1]] = False
    return is_tissue


def _mosaic(
    rng: Generator, is_tissue: Bool[np.ndarray, "rows columns"], shape: Shape, likeness: tuple[float, float]
) -> Dyes:
    """Ordinary tissue everywhere: stroma, and over it patches of the `MOSAIC` with soft ragged borders."""
    dyes = draw("stroma", rng, shape, likeness=rng.uniform(*likeness))
    rows, columns = is_tissue.shape
    centres = scatter(rng, is_tissue.shape, spacing_px=rows / 4.2, jitter=0.25)
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    warp = [smooth_noise(rng, is_tissue.shape, scale_px=14.0) * np.float32(2.5) for _ in range(2)]
    _, nearest = KDTree(centres).query(np.stack([y + warp[0], x + warp[1]], axis=-1).reshape(-1, 2))
    patch = nearest.reshape(rows, columns) + 1
    patch[~is_tissue] = 0
    kinds = rng.choice(list(MOSAIC), len(centres), p=list(MOSAIC.values()))
    for index, box in enumerate(find_objects(patch)):
        if box is not None and kinds[index] != "stroma":
            _paint(dyes, kinds[index].item(), patch == index + 1, rng, likeness)
    return dyes


def _paint(
    dyes: Dyes,
    tissue: Tissue,
    is_here: Bool[np.ndarray, "rows columns"],
    rng: Generator,
    likeness: tuple[float, float],
) -> None:
    """Draw a tissue into ``dyes`` in place where ``is_here`` (a coarse map) is True, with a soft border."""
    where = find_objects(is_here.astype(np.int8))
    if not where:
        return
    rows, columns = (slice(max(0, part.start - 2), part.stop + 2) for part in where[0])
    coarse = gaussian_filter(is_here[rows, columns].astype(np.float32), 0.8)
    box_shape = (len(coarse) * COARSE, coarse[0].size * COARSE)
    top, left = rows.start * COARSE, columns.start * COARSE
    target = dyes[:, top : top + box_shape[0], left : left + box_shape[1]]
    share = resize_field(coarse, box_shape).clip(0, 1)
    drawn = draw(tissue, rng, box_shape, likeness=rng.uniform(*likeness))
    drawn -= target
    drawn *= share
    target += drawn


def _lesion_tissue(label: Label) -> Tissue:
    """The tissue a label is named after."""
    return "glandular" if label == "glandular" else "keratinizing"


def _lesion_outlines(rng: Generator, is_tissue: Bool[np.ndarray, "rows columns"]) -> tuple[Outline, ...]:
    """One to three ragged outlines (x, y) in drawn pixels, inside the tissue, together 4.5 to 8 % of its area."""
    count = int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2]))
    area = is_tissue.sum() * rng.uniform(0.045, 0.08)
    shares = rng.dirichlet([6] * count)
    free = is_tissue.copy()
    outlines: list[Outline] = []
    for share in shares:
        radius = np.sqrt(area * share / np.pi)
        inner = binary_erosion(free, iterations=int(radius * 1.05))
        candidates = np.argwhere(inner if inner.any() else free)
        centre = candidates[rng.integers(len(candidates))][::-1] + 0.5
        theta = np.linspace(0, 2 * np.pi, 65)
        waves = sum(rng.normal(0, 0.07) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5))
        outline = centre + (radius * (1 + waves))[:, None] * np.stack([np.cos(theta), np.sin(theta)], axis=1)
        outline[-1] = outline[0]
        outline = np.clip(outline, 0, is_tissue.shape[0]) * COARSE
        free &= ~_filled(outline, is_tissue.shape)
        outlines.append(outline)
    return tuple(outlines)


def _filled(outline: Outline, shape: Shape) -> Bool[np.ndarray, "rows columns"]:
    """True in the coarse pixels whose centre lies inside an outline given in drawn pixels."""
    y, x = (np.mgrid[: shape[0], : shape[1]] + 0.5) * COARSE
    return np.asarray(contains_xy(Polygon(outline), x, y))


def _pen_mark(pixels: Pixels, rng: Generator) -> Pixels:
    """Ink a short stroke across one corner of the slide."""
    side = pixels.shape[0] // 3
    top, left = (int(rng.choice([0, length - side])) for length in pixels.shape[:2])
    corner = pixels[top : top + side, left : left + side]
    reach = np.minimum(1, np.minimum(np.arange(side), np.arange(side)[::-1]).astype(np.float32) / 60)
    amount: Float32[np.ndarray, "height width"] = stroke(rng, (side, side), width_px=float(rng.uniform(60, 110)))
    amount = amount * reach[:, None] * reach
    pixels[top : top + side, left : left + side] = ink(corner, amount, rng)
    return pixels


def _at_mpp(pixels: Pixels, lesions: tuple[Outline, ...], mpp: float) -> DrawnSlide:
    """Resample what was drawn to another size of pixel."""
    if mpp == DRAWN_MPP:
        return DrawnSlide(pixels=pixels, lesions_lv0=lesions)
    side = round(pixels.shape[0] * DRAWN_MPP / mpp)
    factor = side / pixels.shape[0]
    resized = np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
    return DrawnSlide(pixels=resized, lesions_lv0=tuple(outline * factor for outline in lesions))
