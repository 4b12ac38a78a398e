"""Extraction on real files: kills, bad slides and changed configurations cost what they must and no more."""

import json
import sys
from pathlib import Path

import bounded
import h5py
import numpy as np
import pandas as pd
import pytest
from pyramids import tissue_pixels, write_slide

from feature_extraction.store import FeatureFile
from mil.cli import main

pytestmark = pytest.mark.pipeline


def make_slides(folder: Path, n_slides: int, side: int = 2600) -> Path:
    for index in range(n_slides):
        write_slide(folder / f"S{index}.svs", tissue_pixels(side, side, seed=index), levels=(1, 4))
    return folder


def features_of(out: Path) -> Path:
    (folder,) = {path.parent for path in out.glob("*/*.h5")}
    return folder


def summary_of(out: Path) -> dict[str, object]:
    return json.loads((out / "summary.json").read_text())


def attributes(path: Path) -> dict[str, object]:
    with h5py.File(path) as file:
        return {name: value for name, value in file.attrs.items() if name != "content_sha256"}


@pytest.mark.parametrize("n_kills", [25, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("mix_slides", ["false", "true"])
def test_kills_at_any_moment_change_nothing(tmp_path: Path, mix_slides: str, n_kills: int):
    slides = make_slides(tmp_path / "slides", 8)
    options = [f"slides={slides}", "batch_size=16", f"mix_slides={mix_slides}", "threads=2"]
    assert main(["extract", *options, f"out={tmp_path / 'calm'}"]) == 0
    script = Path(__file__).parent / "kill_loop.py"
    arguments = [str(tmp_path / "killed"), str(n_kills), "7", *options]
    done = bounded.run([sys.executable, str(script), *arguments], check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["killed"] == n_kills
    assert set(report["exit_codes"]) == {0}
    assert report["unreadable"] == []
    assert report["changed"] == []  # what was sealed was never done again
    calm = features_of(tmp_path / "calm")
    for one in report["rounds"]:
        compare_folders(calm, features_of(Path(one["folder"])), is_exact=mix_slides == "false")


def compare_folders(calm: Path, killed: Path, *, is_exact: bool) -> None:
    assert sorted(p.name for p in killed.glob("*.h5")) == sorted(p.name for p in calm.glob("*.h5"))
    assert list((killed / ".work" / "journal").iterdir()) == []
    for path in calm.glob("*.h5"):
        expected, found = FeatureFile(path), FeatureFile(killed / path.name)
        assert np.array_equal(found.coords_lv0, expected.coords_lv0)
        assert attributes(killed / path.name) == attributes(path)
        if is_exact:
            assert np.array_equal(found.features(), expected.features())
        else:
            step = np.spacing(np.abs(expected.features()).astype(np.float16)).astype(np.float32)
            gap = np.abs(found.features().astype(np.float32) - expected.features().astype(np.float32))
            assert (gap <= np.maximum(step, np.float32(2**-14))).all()


def test_a_second_run_does_nothing_again(tmp_path: Path):
    slides = make_slides(tmp_path / "slides", 2, side=900)
    options = [f"slides={slides}", f"out={tmp_path / 'out'}"]
    assert main(["extract", *options]) == 0
    before = {path: path.stat().st_mtime_ns for path in features_of(tmp_path / "out").glob("*.h5")}
    assert main(["extract", *options]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert summary_of(tmp_path / "out")["new"] == 0
    assert summary_of(tmp_path / "out")["done"] == 2


def test_only_what_is_damaged_or_changed_is_done_again(tmp_path: Path):
    slides = make_slides(tmp_path / "slides", 3, side=900)
    options = [f"slides={slides}", f"out={tmp_path / 'out'}"]
    assert main(["extract", *options]) == 0
    folder = features_of(tmp_path / "out")
    good = FeatureFile(folder / "S1.h5").content_sha256
    content = bytearray((folder / "S1.h5").read_bytes())
    with h5py.File(folder / "S1.h5") as file:
        content[file["features"].id.get_offset() + 100] ^= 16
    (folder / "S1.h5").write_bytes(content)
    write_slide(slides / "S2.svs", tissue_pixels(900, 900, seed=77))
    assert main(["extract", *options]) == 0
    assert summary_of(tmp_path / "out")["new"] == 2
    assert FeatureFile(folder / "S1.h5").content_sha256 == good


def test_another_configuration_has_another_folder(tmp_path: Path):
    slides = make_slides(tmp_path / "slides", 1, side=900)
    for change in ([], ["tiling.tile_mpp=0.9"], ["tissue=none"], ["also=[backbone]"], ["precision=bf16"]):
        assert main(["extract", f"slides={slides}", f"out={tmp_path / 'out'}", *change]) == 0
    assert len({path.parent for path in (tmp_path / "out").glob("*/*.h5")}) == 5


def test_bad_slides_cost_themselves_only(tmp_path: Path):
    """One folder with everything that can be wrong with a slide; the good ones are done, the code is 3."""
    slides = tmp_path / "slides"
    write_slide(slides / "good.svs", tissue_pixels(900, 900))
    write_slide(slides / "Präparat Nr 7 – Müller øst.svs", tissue_pixels(900, 900, seed=1))
    write_slide(slides / "no mpp.svs", tissue_pixels(900, 900), mpp=None, power=None)
    write_slide(slides / "glass.svs", np.full((900, 900, 3), 243, np.uint8))
    write_slide(slides / "coarse.svs", tissue_pixels(900, 900), mpp="3.0")
    (slides / "empty.svs").write_bytes(b"")
    (slides / "text.svs").write_text("this is no slide\n" * 100)
    cut = write_slide(slides / "cut.svs", tissue_pixels(900, 900))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    assert main(["extract", f"slides={slides}", f"out={tmp_path / 'out'}"]) == 3
    status = pd.read_csv(tmp_path / "out" / "status.csv", index_col="slide_id", keep_default_na=False)
    assert status["status"].to_dict() == {
        "Präparat Nr 7 – Müller øst": "done",
        "good": "done",
        "glass": "empty",
        "no mpp": "failed",
        "coarse": "failed",
        "empty": "failed",
        "text": "failed",
        "cut": "failed",
    }
    codes = status["code"].to_dict()
    expected = {"no mpp": "E-mpp", "coarse": "E-coarse", "empty": "E-empty", "text": "E-open", "cut": "E-truncated"}
    assert {name: codes[name] for name in expected} == expected
    for line in summary_of(tmp_path / "out")["failures"]:
        assert all(word in line for word in ("slide=", "stage=", "cause=", "remedy=", "code="))
    assert len(pd.read_csv(tmp_path / "out" / "failures.csv")) == 5
    assert FeatureFile(features_of(tmp_path / "out") / "glass.h5").shape[0] == 0


def test_following_a_remedy_does_not_do_the_good_slides_again(tmp_path: Path):
    slides = tmp_path / "slides"
    write_slide(slides / "good.svs", tissue_pixels(900, 900))
    write_slide(slides / "no_mpp.svs", tissue_pixels(900, 900), mpp=None, power="20")
    options = [f"slides={slides}", f"out={tmp_path / 'out'}"]
    assert main(["extract", *options]) == 3
    assert main(["extract", *options, "mpp_from_objective=true"]) == 0
    assert summary_of(tmp_path / "out")["new"] == 1
    assert main(["extract", *options, "default_mpp=0.4"]) == 0  # the objective is not asked now: another mpp
    assert summary_of(tmp_path / "out")["new"] == 1
    assert len(list((tmp_path / "out").glob("*/good.h5"))) == 1


def test_a_table_repairs_the_mpp_and_refuses_unsafe_ids(tmp_path: Path):
    write_slide(tmp_path / "slides" / "a.svs", tissue_pixels(900, 900), mpp=None, power=None)
    write_slide(tmp_path / "slides" / "b.svs", tissue_pixels(900, 900))
    table = tmp_path / "slides.csv"
    table.write_text("path,slide_id,mpp\nslides/a.svs,A,0.5\nslides/b.svs,../B,\nslides/b.svs,C,\nslides/a.svs,C,0.5\n")
    assert main(["extract", f"slides={table}", f"out={tmp_path / 'out'}"]) == 3
    assert summary_of(tmp_path / "out")["done"] == 1
    assert summary_of(tmp_path / "out")["failed"] == 3
    assert FeatureFile(features_of(tmp_path / "out") / "A.h5").header.mpp_source == "table"
    assert not list(tmp_path.rglob("B.h5"))
    table.write_text("path,slide_id,mpp\nslides/a.svs,A,0.25\n")
    assert main(["extract", f"slides={table}", f"out={tmp_path / 'out'}"]) == 0
    assert summary_of(tmp_path / "out")["new"] == 1  # another mpp is another file, not the old one


def damage_a_tile(path: Path) -> None:
    """Overwrite the bytes of one compressed tile in the middle of the first level."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        index = len(page.dataoffsets) // 2
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    content = bytearray(path.read_bytes())
    content[offset : offset + count] = b"\xff" * count
    path.write_bytes(content)


def test_an_unreadable_tile_fails_the_slide_or_is_left_out_and_listed(tmp_path: Path):
    slides = tmp_path / "slides"
    damage_a_tile(write_slide(slides / "a.svs", tissue_pixels(1500, 1500), levels=(1, 4)))
    write_slide(slides / "b.svs", tissue_pixels(900, 900))
    assert main(["extract", f"slides={slides}", f"out={tmp_path / 'strict'}"]) == 3
    assert sorted(p.stem for p in features_of(tmp_path / "strict").glob("*.h5")) == ["b"]
    assert "code=E-tile" in summary_of(tmp_path / "strict")["failures"][0]
    assert main(["extract", f"slides={slides}", f"out={tmp_path / 'lenient'}", "tolerate_bad_tiles=0.5"]) == 0
    file = FeatureFile(features_of(tmp_path / "lenient") / "a.h5")
    assert 0 < len(file.failed_coords_lv0) < 20
    planned = {tuple(c) for c in file.coords_lv0.tolist()} | {tuple(c) for c in file.failed_coords_lv0.tolist()}
    assert len(planned) == file.shape[0] + len(file.failed_coords_lv0)
    assert np.isfinite(file.features()).all()


def test_features_are_what_the_encoder_says_of_each_tile(tmp_path: Path):
    """An independent loop: OpenSlide, no grid of ours, no batch, the same rows."""
    import openslide
    import torch
    from PIL import Image

    from feature_extraction.encoders.demo import DemoSource

    slide_path = write_slide(tmp_path / "slides" / "a.svs", tissue_pixels(1500, 1100))
    assert main(["extract", f"slides={slide_path.parent}", f"out={tmp_path / 'out'}", "batch_size=7"]) == 0
    file = FeatureFile(features_of(tmp_path / "out") / "a.h5")
    encoder = DemoSource().load(torch.device("cpu"))
    slide = openslide.OpenSlide(slide_path)
    for row in range(0, file.shape[0], 5):
        x, y = file.coords_lv0[row].tolist()
        region = slide.read_region((x, y), 0, (192, 192)).convert("RGB").resize((96, 96), Image.Resampling.BICUBIC)
        tile = torch.from_numpy(np.asarray(region).copy()).permute(2, 0, 1)[None]
        expected = encoder.embed_tiles(tile, ["joint"])["joint"][0].numpy()
        np.testing.assert_allclose(file.features()[row].astype(np.float32), expected, atol=2e-3)


def test_real_awkward_slides(tmp_path: Path, shared_data: Path):
    out = tmp_path / "out"
    assert main(["extract", f"slides={shared_data / 'cohort' / 'awkward'}", f"out={out}"]) == 3
    status = pd.read_csv(out / "status.csv", index_col="slide_id")["status"].to_dict()
    assert status == {
        "D-AWK Präparat Nr 7 – Müller øst": "done",
        "D-AWK-glass": "empty",
        "D-AWK-nompp": "failed",
        "D-AWK-truncated": "failed",
    }
    assert main(["extract", f"slides={shared_data / 'cohort' / 'awkward'}", f"out={out}", "default_mpp=0.5"]) == 3
    assert summary_of(out)["done"] == 2


def test_every_real_slide_is_done_or_says_why_not(tmp_path: Path, shared_data: Path):
    out = tmp_path / "out"
    assert main(["extract", f"slides={shared_data / 'slides'}", f"out={out}"]) == 3
    status = pd.read_csv(out / "status.csv", index_col="slide_id", keep_default_na=False)
    assert status.loc["CMU-1-Small-Region", "status"] == "done"
    assert status.loc["hamamatsu_test3-DAPI-2-387", "status"] == "done"
    codes = status[status["status"] == "failed"]["code"].to_dict()
    assert codes.pop("TCGA-CR-7395-01A-01-TS1") == "E-mpp"
    assert (
        codes.pop("camelyon_dicom_jp2k")
        == codes.pop("camelyon_dicom_jpeg")
        == codes.pop("openslide-python_boxes")
        == "E-mpp"
    )
    assert set(codes.values()) <= {"E-open", "E-tile"}
    assert {"broken", "openslide-python_unopenable", "openslide-python_unreadable"} <= set(codes)
    labels = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"ScanScope" not in labels  # nothing of the scanner's own text goes into any output
