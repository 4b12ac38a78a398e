"""A slide's map as a picture: the slide in grey, what speaks for and against a class in colour."""

import io
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mil.bag import Bag
from mil.heatmap.backdrop import NOTE_PT, Backdrop, draw_backdrop, draw_scale_bar
from mil.heatmap.contributions import Explanation
from mil.heatmap.tile_raster import mean_of_covering, raster_shape

COLOURS = mpl.colormaps["PuOr_r"]
"""Diverging, centred on 0, told apart with any colour vision: orange for the class, purple against it."""
TITLE_PT = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """What is written on the map.

    Attributes:
        class_name: Whose support is shown.
        prediction: Of the slide, in the words of its task, with the label where it is known.
        model: Name of the aggregator and the hash of the run.
        trust: Figures of faithfulness and stability, empty where nothing was measured.
    """

    class_name: str
    prediction: str
    model: str
    trust: str


def overview_png(explanation: Explanation, class_index: int, backdrop: Backdrop, caption: Caption) -> bytes:
    """The overview as PNG: slide on the left, map on the right, scale bar, colour bar, prediction."""
    _, _, width, height = backdrop.bounds_lv0
    figure = Figure(figsize=(10.5, 5.4 * max(0.6, min(1.6, height / width)) + 1.0), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_backdrop(left, backdrop, is_grey=False)
    draw_backdrop(right, backdrop, is_grey=True)
    values = explanation.map_layer()[:, class_index]
    limit = max(float(np.abs(values).max()), 1e-9)
    _draw_map(right, explanation.bag, values / limit, backdrop)
    draw_scale_bar(left, backdrop)
    colours = ScalarMappable(Normalize(-limit, limit), COLOURS)
    name = "evidence" if explanation.is_sparse else "contribution"
    figure.colorbar(colours, ax=right, shrink=0.7, label=f"{name} for {caption.class_name} (logits)")
    left.set_title(explanation.bag.slide_id, fontsize=TITLE_PT)
    right.set_title(caption.prediction, fontsize=TITLE_PT)
    figure.supxlabel(_note(explanation, class_index, caption), fontsize=NOTE_PT)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": "promptmil"})
    return stream.getvalue()


def bare_png(explanation: Explanation, class_index: int, backdrop: Backdrop) -> tuple[bytes, float]:
    """Slide and map without words, for a page that says everything in text; and the value of the strongest colour."""
    figure = Figure(figsize=(7.6, 2.85), dpi=200, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_backdrop(left, backdrop, is_grey=False)
    draw_backdrop(right, backdrop, is_grey=True)
    values = explanation.map_layer()[:, class_index]
    limit = max(float(np.abs(values).max()), 1e-9)
    _draw_map(right, explanation.bag, values / limit, backdrop)
    draw_scale_bar(left, backdrop)
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), COLOURS), ax=right, shrink=0.9)
    bar.ax.tick_params(labelsize=NOTE_PT)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": "promptmil"})
    return stream.getvalue(), limit


def _draw_map(axes: Axes, bag: Bag, shares: Float64[np.ndarray, " tile"], backdrop: Backdrop) -> None:
    """The map over the slide, smooth where tiles overlap; the stronger, the less transparent."""
    x, y, width, height = backdrop.bounds_lv0
    shape = raster_shape(backdrop.bounds_lv0, bag.size_lv0)
    values = mean_of_covering(bag.coords_lv0, bag.size_lv0, shares, backdrop.bounds_lv0, shape)
    pixels = COLOURS(0.5 + np.nan_to_num(values) / 2)
    pixels[..., 3] = np.where(np.isnan(values), 0.0, 0.15 + 0.65 * np.abs(np.nan_to_num(values)))
    axes.imshow(pixels, extent=(x, x + width, y + height, y), interpolation="nearest")


def _note(explanation: Explanation, class_index: int, caption: Caption) -> str:
    total, elsewhere = float(explanation.contribution[:, class_index].sum()), float(explanation.elsewhere[class_index])
    other = f" {elsewhere:+.3f} at the other magnification" if explanation.elsewhere.any() else ""
    bias, logit = float(explanation.bias[class_index]), float(explanation.logits[class_index])
    return (
        f"contributions {total:+.3f}{other} + bias {bias:+.3f} = logit {logit:+.3f} for {caption.class_name}   ·   "
        f"{caption.model}   ·   research use only" + (f"\n{caption.trust}" if caption.trust else "")
    )
