"""What lies under a map: the slide's thumbnail, if the slide is at hand, and a scale bar."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes

from feature_extraction.header import FeatureHeader
from feature_extraction.slide import Slide

THUMBNAIL_UM = 4.0
NOTE_PT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Backdrop:
    """The slide under the map.

    Attributes:
        pixels: RGB thumbnail of the scanned area, None when the slide is not at hand.
        bounds_lv0: x, y, width, height of that area in level-0 pixels.
        slide_mpp: µm per level-0 pixel along x.
    """

    pixels: UInt8[np.ndarray, "row column 3"] | None
    bounds_lv0: tuple[int, int, int, int]
    slide_mpp: float


def backdrop_of(slide_id: str, path: Path | None, header: FeatureHeader) -> Backdrop:
    """The slide's thumbnail when the slide is at hand.

    Raises:
        SlideError: The slide cannot be opened or read.
    """
    x, y, width, height = json.loads(header.bounds_lv0)
    bounds = (int(x), int(y), int(width), int(height))
    pixels = None
    if path is not None:
        with Slide(slide_id, path) as slide:
            pixels = slide.thumbnail(bounds, max(1.0, THUMBNAIL_UM / header.slide_mpp_x))
    return Backdrop(pixels=pixels, bounds_lv0=bounds, slide_mpp=header.slide_mpp_x)


def draw_backdrop(axes: Axes, backdrop: Backdrop, *, is_grey: bool) -> None:
    """Fix the axes to the scanned area, in level-0 pixels, and draw the slide, pale grey where colour is the map's."""
    x0, y0, width, height = backdrop.bounds_lv0
    axes.set_xlim(x0, x0 + width)
    axes.set_ylim(y0 + height, y0)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    if backdrop.pixels is not None:
        picture = _greyed(backdrop.pixels) if is_grey else backdrop.pixels
        axes.imshow(picture, extent=(x0, x0 + width, y0 + height, y0))


def draw_scale_bar(axes: Axes, backdrop: Backdrop) -> None:
    """A bar of a round length near a fifth of the width."""
    x0, y0, width, height = backdrop.bounds_lv0
    length_um = _round_length(width * backdrop.slide_mpp / 5)
    length = length_um / backdrop.slide_mpp
    y = y0 + 0.96 * height
    axes.plot([x0 + 0.04 * width, x0 + 0.04 * width + length], [y, y], color="black", linewidth=3)
    text = f"{length_um:g} µm" if length_um < 1000 else f"{length_um / 1000:g} mm"
    axes.text(x0 + 0.04 * width, y - 0.02 * height, text, fontsize=NOTE_PT)


def _greyed(pixels: UInt8[np.ndarray, "row column 3"]) -> UInt8[np.ndarray, "row column 3"]:
    """Pale grey, so that only the map has colour."""
    grey = pixels.astype(np.float32).mean(axis=2, keepdims=True)
    return np.repeat(255 - (255 - grey) * 0.55, 3, axis=2).astype(np.uint8)


def _round_length(length: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above ``length``."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(step * power for step in (1, 2, 5) if step * power <= length)
