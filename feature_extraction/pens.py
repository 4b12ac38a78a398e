"""Where a felt pen was used: ink lets other light through than the dyes of tissue do.

Haematoxylin, eosin and blood absorb green most, DAB blue. Green, cyan and blue inks absorb red most, black ink all
three alike. Red ink cannot be told from blood, eosin and red chromogens by its colour, so it stays. Collagen that was
stained blue or green on purpose (trichromes, Alcian blue) has the colour of ink: switch the rule off for such slides.
"""

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

LIT, MIN_LIT_SHARE = 128, 0.01
"""Pixels of which every channel reaches `LIT`; a picture with fewer of them was not taken with white light."""
GLASS_STEP = 7
"""Every seventh pixel of the glass says its colour as well as all do."""
MIN_RED_DENSITY = 0.25
GREEN_RATIO, BLUE_RATIO = 1.4, 1.15
"""Ink absorbs red this many times as much as green; the lower one holds where blue passes nearly freely."""
MAX_BLUE_DENSITY = 0.34
"""Of the red density: haematoxylin has about .45 in blue, blue ink .1 to .3."""
BLACK_BRIGHTNESS, BLACK_CHROMA, BLACK_EVENNESS = 0.40, 0.12, 0.75
"""Black ink is dark and nearly without colour (shares of white), its least density this share of its greatest."""
PALE_RATIO, PALE_DENSITY, PALE_BRIGHTNESS = 1.1, 0.1, 0.75
"""The pale rim of a stroke: looser limits, used only beside a sure one."""
MIN_INK_UM2, RIM_UM, MARGIN_UM = 3_000.0, 40.0, 10.0

Plane = Float32[np.ndarray, "row column"]


def find_pens(
    smooth: Float32[np.ndarray, "row column 3"], is_stained: Bool[np.ndarray, "row column"], mpp: float
) -> Bool[np.ndarray, "row column"]:
    """True on pen strokes and their pale rims.

    Only compact ink is believed: a stroke is at least two pixels wide and `MIN_INK_UM2` large.

    Args:
        smooth: The thumbnail with its noise smoothed, 0..255.
        is_stained: Where anything but glass lies, ink included.
        mpp: Micrometres per pixel.
    """
    least, greatest = extremes(smooth)
    if (least >= LIT).mean() < MIN_LIT_SHARE:
        return np.zeros_like(is_stained)
    density = _density(smooth, ~is_stained & (least >= LIT))
    red, green, blue = density[..., 0], density[..., 1], density[..., 2]
    is_coloured = (red > GREEN_RATIO * green) | ((red > BLUE_RATIO * green) & (blue < MAX_BLUE_DENSITY * red))
    is_grey = greatest - least < BLACK_CHROMA * 255
    thinnest, densest = extremes(density)
    is_even = thinnest > BLACK_EVENNESS * densest
    is_ink = (red > MIN_RED_DENSITY) & is_coloured | (greatest < BLACK_BRIGHTNESS * 255) & is_grey & is_even
    is_ink = _compact(is_ink, MIN_INK_UM2 / mpp**2)
    if not is_ink.any():
        return is_ink
    is_pale = (red > PALE_DENSITY) & (red > PALE_RATIO * green) | (greatest < PALE_BRIGHTNESS * 255) & is_grey
    is_ink = ndimage.binary_dilation(is_ink, iterations=_pixels(RIM_UM, mpp), mask=is_pale | is_ink)
    return ndimage.binary_dilation(is_ink, iterations=_pixels(MARGIN_UM, mpp))


def extremes(picture: Float32[np.ndarray, "row column 3"]) -> tuple[Plane, Plane]:
    """The least and the greatest channel of each pixel; five times as fast as reducing an axis of three."""
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


def _density(
    smooth: Float32[np.ndarray, "row column 3"], is_glass: Bool[np.ndarray, "row column"]
) -> Float32[np.ndarray, "row column 3"]:
    """Optical density (decadic) against the slide's own glass, so that the tint of the lamp does not count as ink."""
    white = np.full(3, 255, np.float32)
    if is_glass.mean() > MIN_LIT_SHARE:
        white = np.median(smooth[is_glass][::GLASS_STEP], axis=0)
    return np.maximum(-np.log10(np.maximum(smooth, 1) / white), 0).astype(np.float32)


def _compact(flags: Bool[np.ndarray, "row column"], min_pixels: float) -> Bool[np.ndarray, "row column"]:
    """Without lines one pixel wide, and without connected groups of fewer than ``min_pixels``."""
    flags = ndimage.binary_opening(flags, np.ones((2, 2)))
    labels = np.empty(flags.shape, np.int32)
    ndimage.label(flags, output=labels)
    keep = np.bincount(labels.ravel()) >= min_pixels
    keep[0] = False
    return keep[labels]


def _pixels(length_um: float, mpp: float) -> int:
    return max(1, round(length_um / mpp))
