"""A slide's map as a picture: the slide in grey, what speaks for and against a class in colour."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mil.contributions import Explanation

COLOURS = mpl.colormaps["PuOr_r"]
"""Diverging, centred on 0, told apart with any colour vision: orange for the class, purple against it."""
TITLE_PT, NOTE_PT = 11, 8


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """What is written on the map.

    Attributes:
        class_name: Whose support is shown.
        classes: All classes, in the order of the probabilities.
        label: The true class, empty when unknown.
        model: Name of the aggregator and the hash of the run.
    """

    class_name: str
    classes: Sequence[str]
    label: str
    model: str


def overview_png(explanation: Explanation, class_index: int, backdrop: Backdrop, caption: Caption) -> bytes:
    """The overview as PNG: slide on the left, map on the right, scale bar, colour bar, prediction."""
    x0, y0, width, height = backdrop.bounds_lv0
    figure = Figure(figsize=(10.5, 5.4 * max(0.6, min(1.6, height / width)) + 1.0), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.set_xlim(x0, x0 + width)
        axes.set_ylim(y0 + height, y0)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        if backdrop.pixels is not None:
            picture = backdrop.pixels if axes is left else _greyed(backdrop.pixels)
            axes.imshow(picture, extent=(x0, x0 + width, y0 + height, y0))
    values = explanation.map_layer()[:, class_index]
    limit = max(float(np.abs(values).max()), 1e-9)
    _draw_tiles(right, explanation, values / limit)
    _draw_scale_bar(left, backdrop)
    colours = ScalarMappable(Normalize(-limit, limit), COLOURS)
    name = "evidence" if explanation.is_sparse else "contribution"
    figure.colorbar(colours, ax=right, shrink=0.7, label=f"{name} for {caption.class_name} (logits)")
    left.set_title(explanation.bag.slide_id, fontsize=TITLE_PT)
    right.set_title(_prediction_line(explanation, caption), fontsize=TITLE_PT)
    figure.supxlabel(_note(explanation, class_index, caption), fontsize=NOTE_PT)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": "promptmil"})
    return stream.getvalue()


def _greyed(pixels: UInt8[np.ndarray, "row column 3"]) -> UInt8[np.ndarray, "row column 3"]:
    """Pale grey, so that only the map has colour."""
    grey = pixels.astype(np.float32).mean(axis=2, keepdims=True)
    return np.repeat(255 - (255 - grey) * 0.55, 3, axis=2).astype(np.uint8)


def _draw_tiles(axes: Axes, explanation: Explanation, shares: Float64[np.ndarray, " tile"]) -> None:
    """One square a tile; the stronger, the less transparent."""
    width, height = explanation.bag.size_lv0
    for (x, y), share in zip(explanation.bag.coords_lv0.tolist(), shares, strict=True):
        red, green, blue, _ = COLOURS(0.5 + share / 2)
        opacity = 0.15 + 0.65 * abs(share)
        axes.add_patch(Rectangle((x, y), width, height, linewidth=0, facecolor=(red, green, blue, opacity)))


def _draw_scale_bar(axes: Axes, backdrop: Backdrop) -> None:
    """A bar of a round length near a fifth of the width."""
    x0, y0, width, height = backdrop.bounds_lv0
    length_um = _round_length(width * backdrop.slide_mpp / 5)
    length = length_um / backdrop.slide_mpp
    y = y0 + 0.96 * height
    axes.plot([x0 + 0.04 * width, x0 + 0.04 * width + length], [y, y], color="black", linewidth=3)
    text = f"{length_um:g} µm" if length_um < 1000 else f"{length_um / 1000:g} mm"
    axes.text(x0 + 0.04 * width, y - 0.02 * height, text, fontsize=NOTE_PT)


def _round_length(length: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above ``length``."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(step * power for step in (1, 2, 5) if step * power <= length)


def _prediction_line(explanation: Explanation, caption: Caption) -> str:
    best = int(explanation.probabilities.argmax())
    truth = f", label {caption.label}" if caption.label else ""
    return f"predicted {caption.classes[best]} (p = {explanation.probabilities[best]:.2f}){truth}"


def _note(explanation: Explanation, class_index: int, caption: Caption) -> str:
    total = float(explanation.contribution[:, class_index].sum())
    bias, logit = float(explanation.bias[class_index]), float(explanation.logits[class_index])
    return (
        f"contributions {total:+.3f} + bias {bias:+.3f} = logit {logit:+.3f} for {caption.class_name}   ·   "
        f"{caption.model}   ·   research use only"
    )
