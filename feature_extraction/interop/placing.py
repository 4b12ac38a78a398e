"""Where another tool's tiles lie, in our terms: level-0 pixels and the micrometres of a pixel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from feature_extraction.errors import SlideError
from feature_extraction.interop.peer import PeerGeometry, PeerSlide
from feature_extraction.mpp import Mpp
from feature_extraction.slide import SlideInfo

SLACK = 1.25
"""A tile may be this much finer or coarser than the tool was asked for: tools take the nearest magnification."""
USUAL_MPP = tuple(0.0625 * 2**step for step in range(8))
"""µm per pixel that tools mean by 160x, 80x, 40x, 20x, …: what the levels of CLAM, which states none, stand for."""
WHOLE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The tiles of one slide.

    Attributes:
        coords_lv0: Top-left x, y, in the order of the rows.
        order: Which row comes when: by y and then x.
        size_lv0: Width and height of a tile in level-0 pixels.
        step_lv0: From one tile to the next along x and y.
        tile_mpp: µm per tile pixel that the tool was asked for.
        mpp: µm per level-0 pixel.
        width_lv0: Of the slide, 0 when unknown.
        height_lv0: Of the slide, 0 when unknown.
        bounds_lv0: x, y, width, height of the scanned area; of the tiles when the slide's size is unknown.
    """

    coords_lv0: Int64[np.ndarray, "tile 2"]
    order: Int64[np.ndarray, " tile"]
    size_lv0: tuple[float, float]
    step_lv0: tuple[float, float]
    tile_mpp: float
    mpp: Mpp
    width_lv0: int
    height_lv0: int
    bounds_lv0: tuple[int, int, int, int]


def place(slide_id: str, peer: PeerSlide, mpp: Mpp, info: SlideInfo | None, tile_mpp: float | None) -> Placement:
    """Put another tool's tiles into level-0 pixels.

    Args:
        slide_id: Named in errors.
        peer: What the tool says.
        mpp: µm per level-0 pixel.
        info: Of the slide file, None when it is not at hand.
        tile_mpp: µm per tile pixel as the user says, None for what the tool was asked for.

    Raises:
        SlideError: A corner is no whole pixel or lies outside the slide, or the tiles are not of the expected size.
    """
    geometry = peer.geometry
    scale = np.array([mpp.x, mpp.y]) if geometry.unit == "um" else np.ones(2)
    coords = _whole(slide_id, peer.coords / scale, is_exact=geometry.unit == "px")
    size = (geometry.tile_size[0] / scale[0], geometry.tile_size[1] / scale[1])
    step = None if geometry.step is None else (geometry.step / scale[0], geometry.step / scale[1])
    width, height = _slide_size(geometry, info)
    _require_inside(slide_id, coords, (width, height))
    return Placement(
        coords_lv0=coords,
        order=np.lexsort((coords[:, 0], coords[:, 1])).astype(np.int64),
        size_lv0=(float(size[0]), float(size[1])),
        step_lv0=_measured_step(coords, size) if step is None else (float(step[0]), float(step[1])),
        tile_mpp=_asked_mpp(slide_id, geometry, size[0] * mpp.x / geometry.tile_px, tile_mpp),
        mpp=mpp,
        width_lv0=width,
        height_lv0=height,
        bounds_lv0=_bounds(coords, size, (width, height), info),
    )


def _whole(slide_id: str, coords: Float64[np.ndarray, "tile 2"], *, is_exact: bool) -> Int64[np.ndarray, "tile 2"]:
    """Corners as whole pixels; those in pixels must be whole already."""
    if not np.isfinite(coords).all() or (coords.size and coords.min() < -WHOLE):
        raise _error(slide_id, "a tile's corner is negative or no number", "take the file from its source again")
    found = np.rint(coords)
    if is_exact and coords.size and np.abs(found - coords).max() > WHOLE:
        raise _error(
            slide_id, "corners are no whole pixels, so they are not level-0 pixels", "say from=stamp if they are µm"
        )
    return found.astype(np.int64)


def _slide_size(geometry: PeerGeometry, info: SlideInfo | None) -> tuple[int, int]:
    if info is not None:
        return info.width_lv0, info.height_lv0
    return geometry.size_lv0 or (0, 0)


def _require_inside(slide_id: str, coords: Int64[np.ndarray, "tile 2"], size: tuple[int, int]) -> None:
    """A tile that begins outside the slide shows another slide, another frame or a wrong mpp."""
    if coords.size and min(size) > 0 and bool((coords >= np.array(size)).any()):
        x, y = coords.max(axis=0)
        raise _error(
            slide_id,
            f"tiles begin at up to level-0 ({x}, {y}), the slide has {size[0]} x {size[1]} pixels",
            "check that this is the slide they were cut from, and its µm per pixel",
        )


def _asked_mpp(slide_id: str, geometry: PeerGeometry, actual: float, told: float | None) -> float:
    """What the tiles of a whole cohort share, though each scanner's own value is a little different."""
    asked = told or geometry.tile_mpp or min(USUAL_MPP, key=lambda usual: abs(math.log(usual / actual)))
    if not 1 / SLACK <= actual / asked <= SLACK:
        raise SlideError(
            slide_id=slide_id,
            stage="mpp",
            cause=f"its tiles are at {actual:.4g} µm per pixel, {asked:g} was expected",
            remedy=f"check the slide's µm per pixel, or convert such slides alone with tile_mpp={actual:.2g}",
            code="E-scale",
        )
    return asked


def _measured_step(coords: Int64[np.ndarray, "tile 2"], size: tuple[float, float]) -> tuple[float, float]:
    """The most frequent distance between neighbours along x and y; the tile's size where no two are neighbours."""
    across = _most_frequent_gap(coords[np.lexsort((coords[:, 0], coords[:, 1]))])
    down = _most_frequent_gap(coords[np.lexsort((coords[:, 1], coords[:, 0]))][:, ::-1])
    return across or size[0], down or size[1]


def _most_frequent_gap(coords: Int64[np.ndarray, "tile 2"]) -> float | None:
    """Between successive tiles of one line; lines have one value in the second column."""
    gaps = np.diff(coords, axis=0)
    along = gaps[(gaps[:, 1] == 0) & (gaps[:, 0] > 0), 0]
    if not len(along):
        return None
    values, counts = np.unique(along, return_counts=True)
    return float(values[np.argmax(counts)])


def _bounds(
    coords: Int64[np.ndarray, "tile 2"], size: Sequence[float], slide: tuple[int, int], info: SlideInfo | None
) -> tuple[int, int, int, int]:
    if info is not None:
        return info.bounds_lv0
    if min(slide) > 0 or not coords.size:
        return (0, 0, *slide)
    far = coords.max(axis=0)
    return 0, 0, math.ceil(far[0] + size[0]), math.ceil(far[1] + size[1])


def _error(slide_id: str, cause: str, remedy: str) -> SlideError:
    return SlideError(slide_id=slide_id, stage="read", cause=cause, remedy=remedy, code="E-coords")
