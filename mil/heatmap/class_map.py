"""What each tile looks like in words: a class or a non-task thing for every tile, as a table and as a picture."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from scipy.special import softmax

from feature_extraction.text_bank import TextBank
from mil.bag import Bag
from mil.heatmap.backdrop import NOTE_PT, Backdrop, draw_backdrop, draw_scale_bar
from mil.palette import COLOURS

TITLE_PT = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMap:
    """One slide's tiles by what they look like.

    Attributes:
        bag: The slide.
        names: The classes, then the non-task things of the prompt set.
        scores: ``tau v . t`` of each tile and name.
        probabilities: Softmax of a tile's scores over the names.
    """

    bag: Bag
    names: tuple[str, ...]
    scores: Float64[np.ndarray, "tile name"]
    probabilities: Float64[np.ndarray, "tile name"]

    def best(self) -> Int[np.ndarray, " tile"]:
        """Place of each tile's best name."""
        return self.scores.argmax(axis=1)

    def shares(self) -> dict[str, float]:
        """Share of the tiles for each name."""
        counts = np.bincount(self.best(), minlength=len(self.names)) / len(self.bag)
        return dict(zip(self.names, counts.tolist(), strict=True))


def class_map(bag: Bag, bank: TextBank, classes: Sequence[str]) -> ClassMap:
    """Compare every tile with every class and non-task thing."""
    vectors = [bank.class_vector(name) for name in classes] + [bank.nontask_vector(name) for name in bank.nontask()]
    scores = math.exp(bank.logit_scale) * bag.unit_rows() @ np.stack(vectors).T
    return ClassMap(bag=bag, names=(*classes, *bank.nontask()), scores=scores, probabilities=softmax(scores, axis=1))


def class_table(tiles: ClassMap) -> pd.DataFrame:
    """One row a tile: slide_id, x_lv0, y_lv0, size_lv0, class (its best name), score_<name>…, p_<name>…."""
    bag = tiles.bag
    table = pd.DataFrame(
        {
            "slide_id": bag.slide_id,
            "x_lv0": bag.coords_lv0[:, 0],
            "y_lv0": bag.coords_lv0[:, 1],
            "size_lv0": bag.size_lv0[0],
            "class": np.array(tiles.names)[tiles.best()],
        }
    )
    for column, name in enumerate(tiles.names):
        table[f"score_{name}"] = tiles.scores[:, column]
    for column, name in enumerate(tiles.names):
        table[f"p_{name}"] = tiles.probabilities[:, column]
    return table


def class_map_png(tiles: ClassMap, backdrop: Backdrop, note: str) -> bytes:
    """The slide on the left, its tiles coloured by their best name on the right, with each name's share.

    Args:
        tiles: The slide's tiles.
        backdrop: What lies under them.
        note: Printed below, such as prompt set and encoder.
    """
    _, _, width, height = backdrop.bounds_lv0
    figure = Figure(figsize=(10.5, 5.4 * max(0.6, min(1.6, height / width)) + 1.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_backdrop(left, backdrop, is_grey=False)
    draw_backdrop(right, backdrop, is_grey=True)
    draw_scale_bar(left, backdrop)
    tile_width, tile_height = tiles.bag.size_lv0
    for (x, y), best in zip(tiles.bag.coords_lv0.tolist(), tiles.best().tolist(), strict=True):
        colour = (*to_rgb(COLOURS[best % len(COLOURS)]), 0.6)
        right.add_patch(Rectangle((x, y), tile_width, tile_height, linewidth=0, facecolor=colour))
    handles = [
        Patch(facecolor=COLOURS[place % len(COLOURS)], alpha=0.6, label=f"{name} {share:.0%}")
        for place, (name, share) in enumerate(tiles.shares().items())
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=min(4, len(handles)), fontsize=NOTE_PT)
    left.set_title(tiles.bag.slide_id, fontsize=TITLE_PT)
    right.set_title("most similar words, tile by tile", fontsize=TITLE_PT)
    figure.supxlabel(f"{note}   ·   research use only", fontsize=NOTE_PT)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": "promptmil"})
    return stream.getvalue()
