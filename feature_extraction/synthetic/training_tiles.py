"""Tiles to train and to test the demo encoder on: drawn, stained, compressed and downscaled as slides are."""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.random import Generator
from PIL import Image

from feature_extraction.synthetic.stain import Pixels, random_stain, render
from feature_extraction.synthetic.tissue import TISSUES, Tissue, draw, ink, stroke

FIELD_PX = 384
"""Side of a drawn field at 0.5 µm per pixel; half of it after downscaling to 1 µm per pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Fields of one tissue each, at 1 µm per pixel.

    Attributes:
        pixels: RGB.
        tissues: Index into `TISSUES` of each field.
    """

    pixels: UInt8[np.ndarray, "field 192 192 3"]
    tissues: Int64[np.ndarray, "field"]


def draw_fields(seed: int, *, n_each: int, n_stains: int, likeness: tuple[float, float], variety: float) -> Fields:
    """Draw fields of every tissue, each under several stains.

    Args:
        seed: Source of everything.
        n_each: Drawings of each tissue.
        n_stains: Stains of each drawing.
        likeness: Range of `draw`'s likeness.
        variety: Spread of the stains.
    """
    rng = np.random.default_rng(seed)
    pixels: list[UInt8[np.ndarray, "192 192 3"]] = []
    tissues: list[int] = []
    for index, tissue in enumerate(TISSUES):
        for _ in range(n_each):
            dyes = draw(tissue, rng, (FIELD_PX, FIELD_PX), likeness=rng.uniform(*likeness))
            for _ in range(n_stains):
                stained = render(dyes, random_stain(rng, variety=variety), rng)
                pixels.append(as_scanned(_inked(tissue, stained, rng), rng))
                tissues.append(index)
    return Fields(pixels=np.stack(pixels), tissues=np.array(tissues))


def as_scanned(pixels: Pixels, rng: Generator) -> UInt8[np.ndarray, "half_height half_width 3"]:
    """JPEG at 0.5 µm per pixel, then antialiased to 1 µm, as tiles come from a slide."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=int(rng.integers(70, 93)))
    image = Image.open(stream)
    filters = (Image.Resampling.BOX, Image.Resampling.BICUBIC)
    halved = image.resize((image.width // 2, image.height // 2), filters[rng.integers(2)])
    return np.array(halved)


def _inked(tissue: Tissue, pixels: Pixels, rng: Generator) -> Pixels:
    """Ink over the fields that are to show it."""
    if tissue != "pen":
        return pixels
    return ink(pixels, stroke(rng, pixels.shape[:2], width_px=float(rng.uniform(100, 340))), rng)
