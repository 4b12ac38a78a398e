"""The tissue types by name, and pen marks."""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32
from numpy.random import Generator

from feature_extraction.synthetic import epithelium, matrix
from feature_extraction.synthetic.matrix import Dyes
from feature_extraction.synthetic.noise import Shape, mesh, smooth_noise
from feature_extraction.synthetic.stain import Pixels

Tissue = Literal[
    "glandular",
    "keratinizing",
    "solid",
    "benign_glands",
    "lymphocytes",
    "stroma",
    "alveoli",
    "mucin",
    "necrosis",
    "blood",
    "pen",
    "glass",
]
TISSUES: tuple[Tissue, ...] = get_args(Tissue)

_DRAWERS: Mapping[str, Callable[[Generator, Shape, float], Dyes]] = {
    "glandular": epithelium.draw_glandular,
    "keratinizing": epithelium.draw_keratinizing,
    "solid": epithelium.draw_solid,
    "benign_glands": epithelium.draw_benign_glands,
    "lymphocytes": matrix.draw_lymphocytes,
    "stroma": matrix.draw_stroma,
    "alveoli": matrix.draw_alveoli,
    "mucin": matrix.draw_mucin,
    "necrosis": matrix.draw_necrosis,
    "blood": matrix.draw_blood,
    "pen": matrix.draw_glass,
    "glass": matrix.draw_glass,
}

INKS = np.array([[0.15, 0.3, 0.75], [0.1, 0.55, 0.3], [0.12, 0.12, 0.14], [0.8, 0.15, 0.2]], np.float32)
"""What blue, green, black and red ink let through in red, green and blue light."""


def draw(tissue: Tissue, rng: Generator, shape: Shape, *, likeness: float) -> Dyes:
    """Draw one tissue at 0.5 µm per pixel.

    Args:
        tissue: What to draw; ``pen`` gives the glass below the ink, see `ink`.
        rng: Source of every choice.
        shape: Height and width in pixels.
        likeness: 0..1, how far the drawing leans towards what it can be mistaken for.
    """
    return _DRAWERS[tissue](rng, shape, likeness)


def stroke(rng: Generator, shape: Shape, *, width_px: float) -> Float32[np.ndarray, "height width"]:
    """How much ink lies at each pixel (0..1): one wavy stroke of a felt pen through the middle."""
    y, x = mesh(shape)
    turn = rng.uniform(0, np.pi)
    offset = (y - shape[0] / 2) * np.float32(np.cos(turn)) - (x - shape[1] / 2) * np.float32(np.sin(turn))
    offset = offset + smooth_noise(rng, shape, scale_px=max(shape) / 3) * np.float32(max(shape) / 12)
    streaks = 1 + 0.05 * np.sin(offset * np.float32(rng.uniform(0.15, 0.5)))
    cover = 1 / (1 + np.exp(np.clip((np.abs(offset) - width_px / 2) * 0.3, -30, 30)))
    return (cover * streaks * rng.uniform(0.65, 1.0)).astype(np.float32)


def ink(pixels: Pixels, amount: Float32[np.ndarray, "height width"], rng: Generator) -> Pixels:
    """Lay ink of one random colour over pixels."""
    colour = np.clip(INKS[rng.integers(len(INKS))] + rng.normal(0, 0.05, 3), 0.05, 0.95).astype(np.float32)
    inked = np.empty_like(pixels)
    for channel in range(3):
        passed = 1 - amount * (1 - colour[channel])
        inked[..., channel] = np.clip(pixels[..., channel] * passed, 0, 255)
    return inked
