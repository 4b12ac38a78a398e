"""Take a slide of very many tiles from its first row to its sealed file, and say how much memory that took."""

import json
import sys
from pathlib import Path
from typing import cast

import numpy as np

from feature_extraction.encoder import Encoder, EncoderSpec
from feature_extraction.grid import Grid, Tiling
from feature_extraction.mpp import Mpp, MppRule
from feature_extraction.plan import SlidePlan
from feature_extraction.slide import SlideInfo
from feature_extraction.slides import SlideRecord
from feature_extraction.store import FeatureFile
from feature_extraction.tissue import TissueRule
from feature_extraction.work import Extraction, Lane, SlideWork

BATCH = 4096


class NoTower:
    """What a lane asks of an encoder when nothing is embedded."""

    fingerprint = "f" * 64
    logit_scale = 0.0
    logit_bias = 0.0

    def __init__(self, width: int) -> None:
        self.spec = EncoderSpec(
            name="none", widths={"joint": width}, input_px=96, tile_mpp=1.0, mean=(0, 0, 0), std=(1, 1, 1)
        )


def plan_of(side: int) -> SlidePlan:
    """A square slide of ``side`` times ``side`` tiles."""
    grid = Grid(origin_lv0=(0, 0), size_lv0=(96.0, 96.0), step_lv0=(96.0, 96.0), n_columns=side, n_rows=side)
    coords = grid.coords_lv0()
    info = SlideInfo(
        width_lv0=96 * side,
        height_lv0=96 * side,
        downsamples=(1.0,),
        bounds_lv0=(0, 0, 96 * side, 96 * side),
        mpp=Mpp(x=1.0, y=1.0, source="openslide"),
        objective_power=None,
        vendor="generic-tiff",
        fingerprint="0" * 64,
    )
    return SlidePlan(
        record=SlideRecord(slide_id="large", path=Path("large.tif")),
        info=info,
        grid=grid,
        level=0,
        decoder="direct",
        coords_lv0=coords,
        tissue_fraction=np.ones(len(coords), np.float32),
        tissue={"method": "none"},
        qc_jpeg=b"",
        slide_sha256="",
    )


def rows_from(first: int, n_rows: int, width: int) -> np.ndarray:
    """Rows that tell where they belong."""
    values = (np.arange(first, first + n_rows)[:, None] * 31 + np.arange(width)) % 2048
    return values.astype(np.float32)


def peak_bytes() -> int:
    """Of this process; what getrusage says begins with the peak of the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def main() -> None:
    out, n_tiles, width = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    tiling = Tiling(tile_px=96, tile_mpp=1.0, step_px=96)
    extraction = Extraction(tiling=tiling, tissue=TissueRule(method="none"), mpp=MppRule(), spaces=("joint",))
    lane = Lane.of(cast("Encoder", NoTower(width)), extraction, out)
    plan = plan_of(int(n_tiles**0.5))
    before = peak_bytes()
    work = SlideWork(plan, lane)
    for first in range(0, n_tiles, BATCH):
        if first == BATCH * (n_tiles // BATCH // 2):  # stopped half-way: the journal is read again
            work.close()
            work = SlideWork(plan, lane)
        n_rows = min(BATCH, n_tiles - first)
        work.accept(rows_from(first, n_rows, width), np.ones(n_rows, dtype=bool), None)
    work.seal()
    features = FeatureFile(work.path).features()
    is_equal = all(
        np.array_equal(features[first : first + BATCH], rows_from(first, min(BATCH, n_tiles - first), width))
        for first in range(0, n_tiles, BATCH)
    )
    report = {"n_rows": len(features), "is_equal": is_equal, "before_bytes": before, "peak_bytes": peak_bytes()}
    print(json.dumps(report))
