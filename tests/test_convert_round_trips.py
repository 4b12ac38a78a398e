"""`promptmil convert`: what goes out comes back, read by code written from the tools' documented rules."""

import json
from pathlib import Path

import numpy as np
import peer_folders as peers
import pytest
import torch

from feature_extraction.encoders.demo import DemoSource
from feature_extraction.header import FeatureHeader
from feature_extraction.store import FeatureFile, FeatureRows, write_features
from feature_extraction.verify import verify_folder

DEMO = DemoSource().load(torch.device("cpu"))
WIDTH = DEMO.spec.widths["joint"]
IMPORT = ("encoder=demo", "space=joint", "default_mpp=0.5")
FINGERPRINT = "0123456789abcdef" * 4


def grid(n: int, step: int = 192) -> np.ndarray:
    """Corners of n tiles, ordered by y and then x."""
    return np.array([(step * (i % 5) + 7, step * (i // 5)) for i in range(n)], np.int64)


def rows(n: int, dtype: type = np.float32) -> np.ndarray:
    """Embeddings without unit length."""
    return (np.random.default_rng(n).standard_normal((n, WIDTH)) * 3).astype(dtype)


def ours(folder: Path, slide_id: str, features: np.ndarray, coords: np.ndarray, *, mpp: float = 0.5) -> FeatureFile:
    """A feature file of tiles with 96 px at 1 µm per pixel."""
    side = 96 / mpp
    header = FeatureHeader(
        slide_id=slide_id,
        slide_fingerprint="f" * 64,
        encoder="demo",
        encoder_fingerprint=DEMO.fingerprint,
        extraction_fingerprint=FINGERPRINT,
        space="joint",
        normalized=False,
        logit_scale=1.0,
        logit_bias=0.0,
        licence="Apache-2.0",
        licence_ancestry="[]",
        slide_mpp_x=mpp,
        slide_mpp_y=mpp,
        mpp_source="openslide",
        tile_mpp=1.0,
        tile_size_px=96,
        tile_size_lv0=json.dumps([side, side]),
        step_lv0=json.dumps([side, side]),
        read_level=0,
        level0_width=4000,
        level0_height=4000,
        bounds_lv0="[0, 0, 4000, 4000]",
        objective_power=20.0,
        transform="{}",
        tissue="{}",
        precision="float32",
        reader="openslide",
        created_with="test",
    )
    content = FeatureRows(
        spaces={"joint": features},
        coords_lv0=coords,
        tissue_fraction=np.linspace(0.3, 1, len(coords), dtype=np.float32),
        failed_coords_lv0=np.empty((0, 2), np.int64),
    )
    path = folder / f"demo-{FINGERPRINT[:8]}" / f"{slide_id}.h5"
    write_features(path, header, content)
    return FeatureFile(path)


@pytest.mark.parametrize("tool", ["clam", "trident", "stamp"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_slide_that_goes_out_and_comes_back_is_the_same(tmp_path: Path, tool: str, dtype: type):
    before = ours(tmp_path / "ours", "A", rows(13, dtype), grid(13))
    assert peers.convert(f"to={tool}", f"source={tmp_path}/ours", f"out={tmp_path}/{tool}") == 0
    assert peers.convert(f"from={tool}", f"source={tmp_path}/{tool}", f"out={tmp_path}/back", *IMPORT) == 0
    after = FeatureFile(peers.only_folder(tmp_path / "back") / "A.h5")
    assert np.array_equal(after.coords_lv0, before.coords_lv0)
    kept = before.features().astype(np.float16) if tool == "stamp" else before.features()
    assert np.array_equal(after.features(), kept)
    assert after.header.size_lv0() == before.header.size_lv0() == (192.0, 192.0)
    assert after.header.tile_step_lv0() == (192.0, 192.0)
    assert (after.header.slide_mpp_x, after.header.mpp_source) == (0.5, "default")
    assert after.header.encoder_fingerprint == DEMO.fingerprint
    assert not after.header.normalized


@pytest.mark.parametrize(("tool", "side"), [("trident", 96), ("stamp", 96), ("clam", 192)])
def test_what_a_tile_is_survives_where_the_layout_has_a_place_for_it(tmp_path: Path, tool: str, side: int):
    ours(tmp_path / "ours", "A", rows(7), grid(7))
    peers.convert(f"to={tool}", f"source={tmp_path}/ours", f"out={tmp_path}/{tool}")
    peers.convert(f"from={tool}", f"source={tmp_path}/{tool}", f"out={tmp_path}/back", *IMPORT)
    header = FeatureFile(peers.only_folder(tmp_path / "back") / "A.h5").header
    assert (header.tile_size_px, header.tile_mpp) == (side, 96 / side)


def test_a_stamp_round_trip_keeps_every_corner_of_a_large_slide_with_an_awkward_mpp(tmp_path: Path):
    coords = np.stack([np.arange(3001) * 53 % 190_001, np.arange(3001) * 61], axis=1).astype(np.int64)
    before = ours(tmp_path / "ours", "A", rows(3001), coords, mpp=0.2527)
    peers.convert("to=stamp", f"source={tmp_path}/ours", f"out={tmp_path}/stamp")
    told = (*IMPORT[:2], "default_mpp=0.2527")
    peers.convert("from=stamp", f"source={tmp_path}/stamp", f"out={tmp_path}/back", *told)
    after = FeatureFile(peers.only_folder(tmp_path / "back") / "A.h5")
    assert np.array_equal(after.coords_lv0, before.coords_lv0)
    assert after.header.size_lv0() == pytest.approx(before.header.size_lv0())


def test_clam_reads_its_export(tmp_path: Path):
    file = ours(tmp_path / "ours", "A", rows(13, np.float16), grid(13))
    peers.convert("to=clam", f"source={tmp_path}/ours", f"out={tmp_path}/clam")
    tensor, features, coords = peers.clam_bag(tmp_path / "clam", "A")
    assert tensor.dtype == features.dtype == torch.float32
    assert torch.equal(tensor, features)
    assert np.array_equal(features.numpy(), file.features())
    assert np.array_equal(coords, file.coords_lv0)
    corners, level, side = peers.clam_tiles(tmp_path / "clam" / "patches" / "A.h5")
    assert np.array_equal(corners, file.coords_lv0)
    assert (level, side) == (0, 192)


def test_trident_reads_its_export(tmp_path: Path):
    file = ours(tmp_path / "ours", "A", rows(13, np.float16), grid(13))
    peers.convert("to=trident", f"source={tmp_path}/ours", f"out={tmp_path}/trident")
    job = tmp_path / "trident" / "10x_96px_0px_overlap"
    features, coords, told = peers.trident_bag(job / "features_demo" / "A.h5")
    assert np.array_equal(features, file.features())
    assert np.array_equal(coords, file.coords_lv0)
    nine = {"patch_size": 96, "patch_size_level0": 192, "level0_magnification": 20, "target_magnification": 10}
    nine |= {"overlap": 0, "name": "A", "savetodir": "", "level0_width": 4000, "level0_height": 4000}
    assert told == nine
    assert (job / "patches" / "A_patches.h5").is_file()


def test_stamp_reads_its_export(tmp_path: Path):
    file = ours(tmp_path / "ours", "A", rows(13), grid(13))
    peers.convert("to=stamp", f"source={tmp_path}/ours", f"out={tmp_path}/stamp")
    feats, coords_um, side_um, side_px = peers.stamp_bag(tmp_path / "stamp" / "demo-01234567" / "A.h5")
    assert np.array_equal(feats, file.features().astype(np.float16))
    assert coords_um.dtype == np.float32
    assert np.allclose(coords_um, file.coords_lv0 * 0.5)
    assert (side_um, side_px) == (96.0, 96)


def test_anndata_export_follows_the_documented_format(tmp_path: Path):
    file = ours(tmp_path / "ours", "A", rows(13, np.float16), grid(13))
    peers.convert("to=anndata", f"source={tmp_path}/ours", f"out={tmp_path}/anndata")
    found = peers.h5ad(tmp_path / "anndata" / "A.h5ad")
    assert np.array_equal(found["X"], file.features())
    obs = dict(found["obs"])  # type: ignore[arg-type]
    assert np.array_equal(np.stack([obs["x_lv0"], obs["y_lv0"]], axis=1), file.coords_lv0)
    assert np.array_equal(obs["tissue_fraction"], file.tissue_fraction)
    assert np.array_equal(found["spatial"], file.coords_lv0 + 96)
    assert found["encoder_fingerprint"] == DEMO.fingerprint


@pytest.mark.parametrize("kind", ["pt", "npz"])
def test_slide2vec_comes_in_with_its_own_mpp_and_tissue(tmp_path: Path, kind: str):
    coords, features = grid(9)[::-1], rows(9, np.float16)
    peers.write_slide2vec(tmp_path / "s2v", "A", features, coords, kind=kind)
    told = ("encoder=demo", "space=joint")
    assert peers.convert("from=slide2vec", f"source={tmp_path}/s2v", f"out={tmp_path}/back", *told) == 0
    file = FeatureFile(peers.only_folder(tmp_path / "back") / "A.h5")
    assert np.array_equal(file.coords_lv0, coords[::-1])
    assert np.array_equal(file.features(), features[::-1])
    assert file.tissue_fraction[0] == 1.0
    assert (file.header.slide_mpp_x, file.header.mpp_source, file.header.tile_size_px) == (0.5, "tool", 224)


def test_a_slide_of_slide2vec_without_tiles_is_empty_and_no_failure(tmp_path: Path):
    peers.write_slide2vec(tmp_path / "s2v", "A", rows(4), grid(4))
    peers.write_slide2vec(tmp_path / "s2v", "B", np.empty((0, WIDTH), np.float32), np.empty((0, 2)))
    told = ("encoder=demo", "space=joint")
    assert peers.convert("from=slide2vec", f"source={tmp_path}/s2v", f"out={tmp_path}/back", *told) == 0
    told = peers.summary(tmp_path / "back")
    assert (told["done"], told["empty"], told["failed"]) == (1, 1, 0)


def test_rows_of_another_order_come_in_by_y_and_then_x_with_their_own_vectors(tmp_path: Path):
    coords, features = grid(13), rows(13)
    shuffled = np.random.default_rng(0).permutation(13)
    peers.write_trident(tmp_path / "t", "A", features[shuffled], coords[shuffled], side=96, side_lv0=192, target=10)
    peers.convert("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/back", *IMPORT)
    file = FeatureFile(peers.only_folder(tmp_path / "back") / "A.h5")
    assert np.array_equal(file.coords_lv0, coords)
    assert np.array_equal(file.features(), features)


def test_a_clam_level_becomes_level_0_pixels_and_its_step_is_measured(tmp_path: Path):
    coords = np.array([[0, 0], [300, 0], [600, 0], [0, 300], [300, 300]])
    peers.write_clam(tmp_path / "c", "A", rows(5), coords, side=64, level=1, downsample=4.0)
    told = (*IMPORT[:2], "default_mpp=0.25")
    peers.convert("from=clam", f"source={tmp_path}/c", f"out={tmp_path}/back", *told)
    header = FeatureFile(peers.only_folder(tmp_path / "back") / "A.h5").header
    assert header.size_lv0() == (256.0, 256.0)
    assert header.tile_step_lv0() == (300.0, 300.0)
    assert (header.tile_mpp, header.read_level, header.level0_width) == (1.0, 1, 0)


def test_slides_of_several_scanners_share_a_folder_and_two_magnifications_do_not(tmp_path: Path):
    for slide_id in ("A", "B", "C"):
        peers.write_clam(tmp_path / "c", slide_id, rows(5), grid(5))
    table = tmp_path / "slides.csv"
    table.write_text("path,slide_id,mpp\na.svs,A,0.2461\nb.svs,B,0.2527\nc.svs,C,0.4990\n")
    told = ("encoder=demo", "space=joint", f"slides={table}")
    assert peers.convert("from=clam", f"source={tmp_path}/c", f"out={tmp_path}/back", *told) == 0
    found = {path.stem: path for path in (tmp_path / "back").glob("*/*.h5")}
    assert found["A"].parent == found["B"].parent != found["C"].parent
    headers = {slide_id: FeatureFile(path).header for slide_id, path in found.items()}
    assert [headers[slide_id].tile_mpp for slide_id in "ABC"] == [0.25, 0.25, 0.5]
    assert headers["A"].slide_mpp_x == 0.2461
    assert headers["A"].mpp_source == "table"


def test_verify_finds_nothing_wrong_with_what_was_converted(tmp_path: Path):
    peers.write_trident(tmp_path / "t", "A", rows(13), grid(13))
    peers.convert("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/back", *IMPORT)
    verification = verify_folder(peers.only_folder(tmp_path / "back"))
    assert (verification.n_valid, verification.findings) == (1, ())


def test_what_a_layout_does_not_keep_is_in_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ours(tmp_path / "ours", "A", rows(3), grid(3))
    peers.convert("to=stamp", f"source={tmp_path}/ours", f"out={tmp_path}/stamp")
    losses = peers.summary(tmp_path / "stamp")["losses"]
    assert any("half precision" in loss for loss in losses)  # type: ignore[union-attr]
    assert "not kept: STAMP keeps features in half precision" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["clam", "trident", "stamp", "anndata"])
def test_an_export_again_writes_only_what_is_not_right(tmp_path: Path, tool: str):
    for slide_id in ("A", "B"):
        ours(tmp_path / "ours", slide_id, rows(3), grid(3))
    words = (f"to={tool}", f"source={tmp_path}/ours", f"out={tmp_path}/there")
    peers.convert(*words)
    assert peers.summary(tmp_path / "there")["new"] == 2
    peers.convert(*words)
    assert peers.summary(tmp_path / "there")["new"] == 0
    damaged = next(path for path in (tmp_path / "there").rglob("B*") if path.is_file())
    damaged.write_bytes(damaged.read_bytes()[:-5])
    peers.convert(*words)
    assert peers.summary(tmp_path / "there")["new"] == 1
