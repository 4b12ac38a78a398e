"""Several encoders, several workers, several devices: every tile is read once, every slide is done once."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import bounded
import numpy as np
import pandas as pd
import pytest
import torch
from pyramids import tissue_pixels, write_slide
from tiny_clip import save

from feature_extraction.claims import claim
from feature_extraction.embedding import Embedder
from feature_extraction.encoder import Space
from feature_extraction.encoders.demo import DemoEncoder, DemoSource
from feature_extraction.grid import Tiling
from feature_extraction.mpp import MppRule
from feature_extraction.store import FeatureFile
from feature_extraction.tissue import TissueRule
from feature_extraction.work import Extraction, Lane
from mil.cli import main

pytestmark = pytest.mark.pipeline
GEOMETRY = ["tiling.tile_px=192", "tiling.tile_mpp=0.5", "tiling.allow_off_spec=true"]


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    for index in range(3):
        write_slide(tmp_path / "slides" / f"S{index}.svs", tissue_pixels(1300, 900 + 100 * index, seed=index))
    return tmp_path / "slides"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A folder of the user's own with one more encoder."""
    save(tmp_path / "weights", "clip")
    folder = tmp_path / "conf" / "encoder"
    folder.mkdir(parents=True)
    target = "_target_: feature_extraction.encoders.hf_clip.HfClipSource"
    (folder / "small.yaml").write_text(f"{target}\npath: {tmp_path / 'weights'}\nname: small\ntile_mpp: 0.5\n")
    return tmp_path / "conf"


def files_of(out: Path) -> dict[tuple[str, str], FeatureFile]:
    return {(path.parent.name.split("-")[0], path.stem): FeatureFile(path) for path in out.glob("*/*.h5")}


def test_encoders_of_one_geometry_share_the_reading_and_give_what_each_gives_alone(
    tmp_path: Path, slides: Path, conf: Path
):
    common = [f"slides={slides}", *GEOMETRY, "batch_size=16"]
    both = ["extract", "--config-dir", str(conf), "encoder=[demo,small]", *common, f"out={tmp_path / 'both'}"]
    assert main(both) == 0
    for name in ("demo", "small"):
        words = ["extract", "--config-dir", str(conf), f"encoder={name}", *common, f"out={tmp_path / name}"]
        assert main(words) == 0
    together, alone = files_of(tmp_path / "both"), files_of(tmp_path / "demo") | files_of(tmp_path / "small")
    assert set(together) == set(alone)
    assert len(together) == 6
    for key, file in together.items():
        assert np.array_equal(file.coords_lv0, alone[key].coords_lv0)
        np.testing.assert_allclose(
            file.features().astype(float), alone[key].features().astype(float), atol=2e-3, err_msg=str(key)
        )
    status = pd.read_csv(tmp_path / "both" / "status.csv")
    assert len(status) == 6
    assert set(status["status"]) == {"done"}
    tiles_read = json.loads((tmp_path / "both" / "summary.json").read_text())["counters"]["n_tiles"]
    assert tiles_read == sum(file.shape[0] for key, file in together.items() if key[0] == "demo")


def test_an_encoder_that_lacks_some_slides_gets_those_only(tmp_path: Path, slides: Path, conf: Path):
    words = ["extract", "--config-dir", str(conf), f"slides={slides}", *GEOMETRY, f"out={tmp_path / 'out'}"]
    assert main([*words, "encoder=demo"]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("demo-*/*.h5")}
    assert main([*words, "encoder=[demo,small]"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["done"], summary["new"]) == (6, 3)


def test_encoders_of_different_geometry_are_read_apart(tmp_path: Path, slides: Path, conf: Path):
    words = [
        "extract",
        "--config-dir",
        str(conf),
        "encoder=[demo,small]",
        f"slides={slides}",
        f"out={tmp_path / 'out'}",
    ]
    assert main(words) == 0
    sizes = {key[0]: file.header.tile_size_px for key, file in files_of(tmp_path / "out").items()}
    assert len(set(sizes.values())) == 2


def test_two_encoders_of_one_name_are_refused(tmp_path: Path, slides: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["extract", "encoder=[demo,demo]", f"slides={slides}", f"out={tmp_path / 'out'}"]) == 2
    assert "not all different" in capsys.readouterr().err


def test_a_list_of_devices_is_one_process_each(tmp_path: Path, slides: Path):
    """Through the real command line: each process runs the very words that were typed."""
    words = ["extract", f"slides={slides}", f"out={tmp_path / 'out'}", "device=[cpu,cpu]", "batch_size=8"]
    done = bounded.run([sys.executable, "-P", "-m", "mil", *words])
    assert done.returncode == 0, done.stderr
    assert len(files_of(tmp_path / "out")) == 3
    assert set(pd.read_csv(tmp_path / "out" / "status.csv")["status"]) == {"done"}
    assert len(list((tmp_path / "out" / ".workers").glob("*.log"))) == 2


def test_a_claimed_slide_is_left_to_its_owner_or_waited_for(tmp_path: Path, slides: Path):
    words = ["extract", f"slides={slides}", f"out={tmp_path / 'out'}"]
    assert main(words) == 0
    (folder,) = {path.parent for path in (tmp_path / "out").glob("*/*.h5")}
    (folder / "S1.h5").unlink()
    with contextlib.ExitStack() as until_then, contextlib.ExitStack() as owner:
        assert owner.enter_context(claim(folder / ".work" / "locks" / "S1.lock"))
        assert main([*words, "wait=false"]) == 0
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert (summary["done"], summary["elsewhere"], summary["failed"]) == (2, 1, 0)
        command = [sys.executable, "-P", "-m", "mil", *words]
        waiting = until_then.enter_context(bounded.started(command, stderr=subprocess.PIPE))
        with contextlib.suppress(subprocess.TimeoutExpired):
            waiting.wait(timeout=8)  # it does not end while the owner lives
        assert waiting.poll() is None
        owner.close()
        _, errors = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, errors
    assert (folder / "S1.h5").is_file()


class Narrow(DemoEncoder):
    """The demo encoder on a device whose memory holds three tiles."""

    def embed_tiles(self, tiles: torch.Tensor, spaces: list[Space]) -> dict[str, torch.Tensor]:
        if len(tiles) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().embed_tiles(tiles, spaces)


def test_a_batch_that_does_not_fit_is_embedded_in_parts(tmp_path: Path):
    encoder = DemoSource().load(torch.device("cpu"))
    narrow = DemoSource().load(torch.device("cpu"))
    narrow.__class__ = Narrow
    tiling = Tiling(tile_px=96, tile_mpp=1.0, step_px=96)
    extraction = Extraction(tiling=tiling, tissue=TissueRule(), mpp=MppRule(), spaces=("joint", "backbone"))
    tiles = torch.randint(0, 255, (16, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = [
        Embedder(Lane.of(one, extraction, tmp_path), torch.device("cpu"), batch_size=16).embed(tiles)
        for one in (encoder, narrow)
    ]
    np.testing.assert_allclose(rows[0], rows[1], atol=2e-4)


def test_slides_staged_on_a_nearer_disk_give_the_same_files_and_leave_nothing(tmp_path: Path, slides: Path):
    near = tmp_path / "near"
    near.mkdir()
    (near / "of somebody else").write_text("stays")
    words = ["extract", f"slides={slides}", "batch_size=16", "mix_slides=false"]
    assert main([*words, f"out={tmp_path / 'plain'}"]) == 0
    assert main([*words, f"out={tmp_path / 'staged'}", f"stage.dir={near}", "stage.max_gb=0.02"]) == 0
    plain, staged = files_of(tmp_path / "plain"), files_of(tmp_path / "staged")
    assert set(plain) == set(staged)
    for key, file in plain.items():
        assert np.array_equal(file.features(), staged[key].features())
        assert file.header.slide_fingerprint == staged[key].header.slide_fingerprint
    assert [path.name for path in near.iterdir()] == ["of somebody else"]


def test_the_summary_says_where_the_time_went(tmp_path: Path, slides: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["extract", f"slides={slides}", f"out={tmp_path / 'out'}", "batch_size=8"]) == 0
    counters = json.loads((tmp_path / "out" / "summary.json").read_text())["counters"]
    assert counters["n_tiles"] == sum(file.shape[0] for file in files_of(tmp_path / "out").values())
    assert counters["n_slides"] == 3
    assert 0 < counters["reading_cpu_s"] <= counters["reading_s"] * 1.5
    assert 0 < counters["device_share"] < 1
    said = capsys.readouterr().err
    assert any(word in said for word in ("short run", "-bound", "balanced"))


def test_every_slide_has_a_picture_and_the_page_shows_it(tmp_path: Path, slides: Path):
    assert main(["extract", f"slides={slides}", f"out={tmp_path / 'out'}"]) == 0
    (folder,) = {path.parent for path in (tmp_path / "out").glob("*/*.h5")}
    page = (folder / "qc.html").read_text()
    for name in ("S0", "S1", "S2"):
        assert (folder / "qc" / f"{name}.jpg").read_bytes().startswith(b"\xff\xd8")
        assert f"qc/{name}.jpg" in page
    assert list(pd.read_csv(folder / "slides.csv")["slide_id"]) == ["S0", "S1", "S2"]
    assert main(["extract", f"slides={slides}", f"out={tmp_path / 'plain'}", "qc=false"]) == 0
    assert not list((tmp_path / "plain").glob("*/qc/*.jpg"))
