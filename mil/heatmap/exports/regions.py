"""What of a map is a region: its level sets as merged polygons, with their holes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import shapely
from jaxtyping import Bool, Float64, Int
from scipy import ndimage

from mil.heatmap.contributions import Explanation
from mil.heatmap.exports.placement import MapPixels, SlidePlace, map_pixels, map_values
from mil.palette import AGAINST, SUPPORT

Side = Literal["for", "against"]
COLOURS: dict[Side, tuple[int, int, int]] = {"for": SUPPORT, "against": AGAINST}
"""Orange and purple, told apart with any colour vision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A connected part of a slide that speaks for or against a class.

    Attributes:
        class_name: The class.
        side: Which of the two.
        level: The map's value that every part of it reaches.
        polygon: In whole level-0 pixels from the corner of the full slide.
        mean: Of the map inside it.
        area_lv0: In square level-0 pixels.
    """

    class_name: str
    side: Side
    level: float
    polygon: shapely.Polygon
    mean: float
    area_lv0: float


def regions_of(explanation: Explanation, classes: Sequence[str], place: SlidePlace, share: float) -> list[Region]:
    """Where the map of each class is strongest, for and against it.

    The set ``map >= t`` (or ``<= t``) where t is the value that the given share of the covered area reaches, and never
    beyond 0: what speaks against a class is no part of a region for it. Where tiles overlap the map is their mean.

    Args:
        explanation: Of one slide at one magnification.
        classes: In the order of the columns of the layers.
        place: Of the slide.
        share: Of the covered area; the strongest tile is always in, with all that say as much.
    """
    pixels = map_pixels(explanation.bag, place)
    layer = explanation.map_layer()
    found: list[Region] = []
    for column, name in enumerate(classes):
        values = map_values(explanation.bag, layer[:, column], pixels)
        for side in get_args(Side):
            found += _level_set(values if side == "for" else -values, pixels, share, (name, side))
    return found


def _level_set(
    values: Float64[np.ndarray, "row column"], pixels: MapPixels, share: float, what: tuple[str, Side]
) -> list[Region]:
    """The regions of one class and side; of "against", the values come with the other sign."""
    name, side = what
    sign = 1.0 if side == "for" else -1.0
    covered = np.sort(values[np.isfinite(values)])
    # Sums of overlapping tiles leave traces of rounding around 0, which are no support.
    if not len(covered) or covered[-1] <= 1e-9 * np.abs(covered).max():
        return []
    level = float(covered[-max(1, int(share * len(covered)))])
    slack = 1e-9 * covered[-1]
    inside: Bool[np.ndarray, "row column"] = np.nan_to_num(values, nan=-1.0) >= max(level - slack, slack)
    labels, count = cast("tuple[np.ndarray, int]", ndimage.label(inside))
    means = np.asarray(ndimage.mean(values, labels, np.arange(1, count + 1)))
    merged = np.array([boxes[0] if len(boxes) == 1 else shapely.union_all(boxes) for boxes in _boxes(labels, count)])
    areas = shapely.area(merged) * pixels.pixel_lv0[0] * pixels.pixel_lv0[1]
    return [
        Region(class_name=name, side=side, level=sign * level, polygon=polygon, mean=sign * mean, area_lv0=area)
        for polygon, mean, area in zip(_placed(merged, pixels), means.tolist(), areas.tolist(), strict=True)
    ]


def _boxes(labels: Int[np.ndarray, "row column"], count: int) -> list[np.ndarray]:
    """Boxes that make up each label, in pixels of the map: its runs along rows, equal ones below each other as one."""
    edged = np.pad(labels, ((0, 0), (1, 1)))
    is_edge = edged[:, 1:] != edged[:, :-1]
    rows, starts = np.nonzero(is_edge & (edged[:, 1:] > 0))
    _, ends = np.nonzero(is_edge & (edged[:, :-1] > 0))
    runs = np.stack([starts, ends, rows], axis=1)[np.lexsort((rows, ends, starts))]
    is_first = np.ones(len(runs), dtype=bool)
    is_first[1:] = (np.diff(runs, axis=0) != (0, 0, 1)).any(axis=1)
    left, right, top = runs[is_first].T
    bottom = runs[np.roll(is_first, -1), 2] + 1  # the last run of a box is the one before the first of the next
    of_box = labels[top, left]
    order = np.argsort(of_box, kind="stable")
    boxes = shapely.box(left, top, right, bottom)[order]
    return np.split(boxes, np.searchsorted(of_box[order], np.arange(2, count + 1)))


def _placed(polygons: np.ndarray, pixels: MapPixels) -> np.ndarray:
    """From pixels of the map to level-0 pixels, rounded as the corners of tiles are, without vertices on a line."""
    origin, pixel = np.array(pixels.origin_lv0), np.array(pixels.pixel_lv0)
    # Simplifying keeps the first vertex of a ring; normalised rings begin at a corner.
    plain = shapely.simplify(shapely.normalize(polygons), 0)
    return shapely.transform(plain, lambda corners: origin + np.floor(corners * pixel + 0.5))
