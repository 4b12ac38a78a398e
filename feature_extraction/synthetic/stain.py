"""From dyes to the colours a scanner records: one `Stain` per laboratory and scanner."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from feature_extraction.synthetic.matrix import Dyes
from feature_extraction.synthetic.noise import fine_noise

Pixels = UInt8[np.ndarray, "height width 3"]

TYPICAL = np.array([[0.62, 0.70, 0.32], [0.08, 0.80, 0.27], [0.12, 0.80, 0.55]], np.float32)
"""Optical density of haematoxylin, eosin and haemoglobin in red, green and blue light."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stain:
    """How one laboratory stains and one scanner sees.

    Attributes:
        vectors: Optical density of each dye (rows: haematoxylin, eosin, haemoglobin) in red, green and blue.
        white: What empty glass looks like, 0..255.
        blur_px: Standard deviation of the scanner's blur, in pixels.
        noise: Standard deviation of the sensor's noise, in grey values.
    """

    vectors: Float32[np.ndarray, "3 3"]
    white: Float32[np.ndarray, "3"]
    blur_px: float = 0.0
    noise: float = 2.5


def random_stain(rng: Generator, *, variety: float) -> Stain:
    """A stain around the typical one.

    Args:
        rng: Source of the choice.
        variety: 1 spreads as far as laboratories commonly do.
    """
    gains = np.exp(variety * rng.normal(0, 0.2, (3, 1)))
    tint = variety * rng.normal(0, 0.05, (3, 3))
    vectors = np.clip(TYPICAL * gains + tint, 0.02, None).astype(np.float32)
    white = np.clip(243 + variety * rng.normal(0, 3, 3), 228, 252).astype(np.float32)
    blur = float(rng.choice([0.0, 0.0, 0.6, 0.9]))
    return Stain(vectors=vectors, white=white, blur_px=blur, noise=float(rng.uniform(1, 3.5)))


def render(dyes: Dyes, stain: Stain, rng: Generator) -> Pixels:
    """Light through the dyes (Beer and Lambert), blurred and with the sensor's noise."""
    if stain.blur_px > 0:
        dyes = np.stack([gaussian_filter(layer, stain.blur_px, truncate=2.5) for layer in dyes])
    noise = fine_noise(rng, dyes.shape[1:]) * np.float32(stain.noise)
    pixels = np.empty((*dyes.shape[1:], 3), np.uint8)
    for channel in range(3):
        density = dyes[0] * stain.vectors[0, channel]
        density += dyes[1] * stain.vectors[1, channel]
        density += dyes[2] * stain.vectors[2, channel]
        light = np.exp(np.negative(density, out=density) * np.float32(2.0), out=density)
        light *= stain.white[channel]
        light += noise
        pixels[..., channel] = np.clip(light, 0, 255, out=light)
    return pixels
