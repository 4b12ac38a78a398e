"""Decide what will be read of one slide: its tissue, its grid, the tiles to keep and the level they come from."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from feature_extraction.errors import SlideError
from feature_extraction.grid import Grid, Tiling, make_grid
from feature_extraction.mpp import MppRule
from feature_extraction.slide import Slide, SlideInfo
from feature_extraction.slides import SlideRecord
from feature_extraction.tissue import TissueRule, find_tissue, tissue_fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidePlan:
    """One slide, ready to be read.

    Attributes:
        record: Which slide.
        info: What it says of itself.
        grid: Where tiles may lie.
        level: Pyramid level to read from.
        coords_lv0: Top-left corners of the tiles to keep, ordered by y and then x.
        tissue_fraction: Of each of them.
    """

    record: SlideRecord
    info: SlideInfo
    grid: Grid
    level: int
    coords_lv0: Int64[np.ndarray, "tile 2"]
    tissue_fraction: Float32[np.ndarray, " tile"]


def plan_slide(record: SlideRecord, *, tiling: Tiling, tissue: TissueRule, mpp: MppRule) -> SlidePlan:
    """Open a slide, find its tissue and lay the grid over it.

    Raises:
        SlideError: It cannot be opened, has no plausible mpp, is coarser than asked, or cannot be read.
    """
    with Slide(record.slide_id, record.path) as slide:
        info = slide.info(record.mpp, mpp)
        slide_mpp = (info.mpp.x, info.mpp.y)
        _refuse_coarse(record, info, tiling)
        grid = make_grid(tiling, slide_mpp, info.bounds_lv0)
        coords = grid.coords_lv0()
        fraction = np.ones(len(coords), np.float32)
        if tissue.method != "none":  # also without a tile: an unreadable slide must fail, not count as empty
            thumbnail = slide.thumbnail(info.bounds_lv0, max(1.0, tissue.mpp / max(slide_mpp)))
            pixel_lv0 = (info.bounds_lv0[2] / thumbnail.shape[1], info.bounds_lv0[3] / thumbnail.shape[0])
            is_tissue = find_tissue(thumbnail, tissue)
            fraction = tissue_fraction(is_tissue, grid.origin_lv0, pixel_lv0, coords, grid.size_lv0)
        is_kept = fraction >= tissue.min_fraction
        return SlidePlan(
            record=record,
            info=info,
            grid=grid,
            level=slide.level_for(tiling.downsample(slide_mpp)),
            coords_lv0=coords[is_kept],
            tissue_fraction=fraction[is_kept],
        )


def _refuse_coarse(record: SlideRecord, info: SlideInfo, tiling: Tiling) -> None:
    """A slide scanned coarser than the tiles asked for would be enlarged: invented detail."""
    finest = min(info.mpp.x, info.mpp.y)
    if finest > tiling.tile_mpp * 1.1:
        raise SlideError(
            slide_id=record.slide_id,
            stage="mpp",
            cause=f"it is scanned at {finest:g} µm per pixel ({info.mpp.source}), tiles asked at {tiling.tile_mpp:g}",
            remedy="set tiling.tile_mpp to at least the slide's, or leave this slide out",
            code="E-coarse",
        )
