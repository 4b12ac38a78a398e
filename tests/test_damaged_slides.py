"""Slides damaged at random cost themselves: every one is done rightly or failed by name, and the run goes on."""

import functools
import random
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
from mutations import mutate
from PIL import Image
from pyramids import tissue_pixels

from feature_extraction.errors import SlideError
from feature_extraction.grid import Tiling
from feature_extraction.mpp import MppRule
from feature_extraction.plan import PlanRules, plan_slide
from feature_extraction.reader import TileReader, TileSource
from feature_extraction.slides import SlideRecord
from feature_extraction.store import FeatureFile
from feature_extraction.synthetic.tiff import write_pyramid
from feature_extraction.tissue import TissueRule
from mil.cli import main

pytestmark = pytest.mark.pipeline


def make_damaged(folder: Path, n_slides: int) -> None:
    """Copies of a small JPEG slide, each mutated in its own way, and one that is whole."""
    folder.mkdir()
    write_pyramid(folder / "whole.svs", tissue_pixels(1300, 1200), mpp=0.5, flavour="aperio")
    content = (folder / "whole.svs").read_bytes()
    generator = random.Random(11)
    for index in range(n_slides):
        (folder / f"M{index:04d}.svs").write_bytes(mutate(content, generator))


@pytest.mark.parametrize("n_slides", [200, pytest.param(1000, marks=pytest.mark.long)])
def test_every_damaged_slide_is_done_or_failed_by_name(tmp_path: Path, n_slides: int):
    make_damaged(tmp_path / "slides", n_slides)
    out = tmp_path / "out"
    assert main(["extract", f"slides={tmp_path / 'slides'}", f"out={out}", "stall_seconds=30", "qc=false"]) == 3
    status = pd.read_csv(out / "status.csv", index_col="slide_id", keep_default_na=False)
    assert len(status) == n_slides + 1
    assert set(status["status"]) <= {"done", "empty", "failed"}
    assert status.loc["whole", "status"] == "done"
    failed = status[status["status"] == "failed"]
    assert len(failed) > n_slides / 4  # the damage is real
    assert all(failed["code"].str.startswith("E-"))
    assert all(failed["cause"] != "")
    (folder,) = {path.parent for path in out.glob("*/*.h5")}
    for slide_id, row in status[status["status"] != "failed"].iterrows():
        assert FeatureFile(folder / f"{slide_id}.h5").shape[0] == row["n_tiles"] > 0 or row["status"] == "empty"
    assert {path.stem for path in folder.glob("*.h5")} == set(status.index) - set(failed.index)


def test_a_damaged_tile_is_never_other_pixels_than_openslides(tmp_path: Path):
    """Direct decode is as strict as OpenSlide: what one refuses the other does, what both read is the same."""
    make_damaged(tmp_path / "slides", 60)
    tiling = Tiling(tile_px=256, tile_mpp=0.5, step_px=256)
    compared = 0
    for path in sorted((tmp_path / "slides").iterdir()):
        rules = PlanRules(tiling=tiling, tissue=TissueRule(), mpp=MppRule(), draws=False)
        try:
            plan = plan_slide(SlideRecord(slide_id=path.stem, path=path), rules)
        except SlideError:
            continue
        if plan.decoder != "direct":
            continue
        source = TileSource(
            slide_id=path.stem, path=path, decoder="direct", level=0, size_lv0=plan.grid.size_lv0, side_px=256
        )
        reader = TileReader()
        for x, y in plan.coords_lv0.tolist():
            ours = outcome(functools.partial(reader.read, source, (x, y)))
            assert ours == outcome(functools.partial(by_openslide, path, (x, y)))
            compared += 1
    assert compared > 100


def outcome(read) -> bytes | None:
    try:
        return np.asarray(read()).tobytes()
    except (SlideError, openslide.OpenSlideError):
        return None


def by_openslide(path: Path, corner: tuple[int, int]) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:  # a handle of its own: an error is final to a handle
        region = slide.read_region(corner, 0, (256, 256))
        canvas = Image.new("RGB", region.size, "#ffffff")
        canvas.paste(region, mask=region.getchannel("A"))
        return np.asarray(canvas)
