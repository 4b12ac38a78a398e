"""Decide what will be read of one slide: its tissue, its grid, the tiles to keep and the level they come from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from feature_extraction.coarse import CoarseReading
from feature_extraction.errors import SlideError
from feature_extraction.grid import Grid, Tiling, make_grid
from feature_extraction.mpp import MppRule
from feature_extraction.qc import KeptTiles, qc_picture
from feature_extraction.reader import Decoder, choose_decoder
from feature_extraction.reading import ChosenTiles
from feature_extraction.segment import SlideTissue, segment
from feature_extraction.slide import Slide, SlideInfo
from feature_extraction.slide_hash import slide_sha256
from feature_extraction.slides import SlideRecord
from feature_extraction.tissue import TissueRule


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidePlan:
    """One slide, ready to be read.

    Attributes:
        record: Which slide.
        info: What it says of itself.
        grid: Where tiles may lie.
        level: Pyramid level to read from.
        decoder: What decodes its pixels.
        coords_lv0: Top-left corners of the tiles to keep, ordered by y and then x.
        tissue_fraction: Of each of them.
        tissue: How tissue was found and how much, for the feature file; plain data without any path.
        qc_jpeg: Picture of all that for people, empty when none was asked for.
        slide_sha256: Hex, over every byte of the slide's files; empty when not asked for.
        chosen: Why each tile is read, None where all tissue is.
    """

    record: SlideRecord
    info: SlideInfo
    grid: Grid
    level: int
    decoder: Decoder
    coords_lv0: Int64[np.ndarray, "tile 2"]
    tissue_fraction: Float32[np.ndarray, " tile"]
    tissue: Mapping[str, object]
    qc_jpeg: bytes
    slide_sha256: str
    chosen: ChosenTiles | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRules:
    """What a plan is made by.

    Attributes:
        tiling: What a tile is.
        tissue: Which tiles are kept.
        mpp: What to do when a slide does not say its mpp.
        may_decode: Whether tiles may be decoded directly where the pixels are the same.
        draws: Whether a picture of the plan is drawn for people.
        hashes: Whether the whole slide file is hashed.
        coarse: Chooses among the tiles with tissue, None to read them all.
    """

    tiling: Tiling
    tissue: TissueRule
    mpp: MppRule
    may_decode: bool = True
    draws: bool = True
    hashes: bool = False
    coarse: CoarseReading | None = None


def plan_slide(record: SlideRecord, rules: PlanRules, on_progress: Callable[[], None] = lambda: None) -> SlidePlan:
    """Open a slide, find its tissue and lay the grid over it.

    Args:
        record: Which slide.
        rules: By what.
        on_progress: Called now and then while it goes on.

    Raises:
        SlideError: It cannot be opened, has no plausible mpp, is coarser than asked, or cannot be read; or there are
            no coarse features to choose its tiles by.
    """
    tiling, tissue = rules.tiling, rules.tissue
    with Slide(record.slide_id, record.path) as slide:
        info = slide.info(record.mpp, rules.mpp)
        slide_mpp = (info.mpp.x, info.mpp.y)
        _refuse_coarse(record, info, tiling)
        grid = make_grid(tiling, slide_mpp, info.bounds_lv0)
        coords = grid.coords_lv0()
        # Also without a tile: an unreadable slide must fail, not count as empty.
        found = segment(slide, info, tissue, on_progress)
        fraction = found.fraction(grid)
        kept = np.flatnonzero(fraction >= tissue.min_fraction)
        chosen = None
        if rules.coarse is not None:
            rows, chosen = rules.coarse.choose(record.slide_id, info.fingerprint, coords[kept], grid.size_lv0)
            kept = kept[rows]
        level = slide.level_for(tiling.downsample(slide_mpp))
        may_decode = rules.may_decode and len(kept) > 0
        return SlidePlan(
            record=record,
            info=info,
            grid=grid,
            level=level,
            decoder=choose_decoder(slide, level, grid.size_lv0) if may_decode else "openslide",
            coords_lv0=coords[kept],
            tissue_fraction=fraction[kept],
            tissue=found.described(grid),
            qc_jpeg=_qc_jpeg(info, grid, found, coords[kept]) if rules.draws else b"",
            slide_sha256=slide_sha256(record.path) if rules.hashes else "",
            chosen=chosen,
        )


def _qc_jpeg(info: SlideInfo, grid: Grid, found: SlideTissue, coords_lv0: Int64[np.ndarray, "tile 2"]) -> bytes:
    kept = KeptTiles(
        origin_lv0=grid.origin_lv0,
        pixel_lv0=found.pixel_lv0,
        coords_lv0=coords_lv0,
        size_lv0=grid.size_lv0,
        n_grid=grid.n_columns * grid.n_rows,
        mpp=info.mpp,
    )
    return qc_picture(found.thumbnail, found.is_tissue, kept)


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
