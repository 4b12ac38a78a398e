"""The tiles that say most for and against a class: their numbers and, where the slide is at hand, their pictures."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8

from feature_extraction.slide import Slide
from mil.bag import Bag
from mil.heatmap.exports.mapped import Mapped
from mil.heatmap.exports.regions import Side
from mil.search.page import jpeg_url, tile_picture


@dataclass(frozen=True, slots=True, kw_only=True)
class TopTile:
    """A tile among the strongest.

    Attributes:
        rank: From 1.
        x_lv0: Left edge of the tile.
        y_lv0: Its upper edge.
        value: Of the layer that the map shows.
        contribution: To the logit of the class.
        attention: How much the tile counts for the class.
        concept: The nearest concept of all classes, empty where there is none.
        pixels: The tile, None when the slide is not at hand.
    """

    rank: int
    x_lv0: int
    y_lv0: int
    value: float
    contribution: float
    attention: float
    concept: str
    pixels: UInt8[np.ndarray, "row column 3"] | None

    @property
    def data_url(self) -> str:
        """The picture as a URL that holds it, empty without one."""
        return "" if self.pixels is None else jpeg_url(self.pixels)


def top_tiles(mapped: Mapped, column: int, side: Side, count: int, slide: Slide | None) -> list[TopTile]:
    """The strongest tiles that speak for or against a class, the strongest first; ties go to the earlier tile.

    Tiles that overlap a stronger one are left out: they show the same pixels. Fewer than ``count``, or none, where no
    more tiles speak for that side.

    Args:
        mapped: The map.
        column: Of the class.
        side: Which of the two.
        count: At most as many.
        slide: To read pictures from.

    Raises:
        SlideError: A tile cannot be decoded.
    """
    explanation = mapped.explanation
    bag = explanation.bag
    values = explanation.map_layer()[:, column]
    names = [str(name) for _, name in mapped.concept_names]
    return [
        TopTile(
            rank=place + 1,
            x_lv0=int(bag.coords_lv0[row, 0]),
            y_lv0=int(bag.coords_lv0[row, 1]),
            value=float(values[row]),
            contribution=float(explanation.contribution[row, column]),
            attention=float(explanation.attention[row, column]),
            concept=names[nearest] if (nearest := int(explanation.concept_of_tile[row])) >= 0 else "",
            pixels=None if slide is None else tile_picture(slide, _corner(bag, row), bag.size_lv0),
        )
        for place, row in enumerate(_strongest_apart(bag, values if side == "for" else -values, count))
    ]


def open_slide(slide_id: str, path: Path | None) -> Slide | None:
    """The slide, None when it is not at hand.

    Raises:
        SlideError: It cannot be opened.
    """
    return None if path is None else Slide(slide_id, path)


def _corner(bag: Bag, row: int) -> tuple[int, int]:
    x, y = bag.coords_lv0[row].tolist()
    return x, y


def _strongest_apart(bag: Bag, values: Float64[np.ndarray, " tile"], count: int) -> list[int]:
    chosen: list[int] = []
    for row in np.argsort(-values, kind="stable").tolist():
        if values[row] <= 0 or len(chosen) == count:
            break
        # Corners are rounded: neighbours without overlap may share a pixel.
        distance = np.abs(bag.coords_lv0[chosen] - bag.coords_lv0[row])
        if not (distance < np.array(bag.size_lv0) - 1).all(axis=1).any():
            chosen.append(row)
    return chosen
