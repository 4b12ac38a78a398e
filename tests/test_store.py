"""The feature file: whole or refused, contiguous, checked, readable by others' rules."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from feature_extraction.errors import DamagedFileError
from feature_extraction.files import is_valid
from feature_extraction.header import FeatureHeader
from feature_extraction.store import FeatureFile, FeatureRows, check_features, write_features

HEADER = FeatureHeader(
    slide_id="S",
    slide_fingerprint="s" * 64,
    encoder="demo",
    encoder_fingerprint="e" * 64,
    extraction_fingerprint="x" * 64,
    space="joint",
    normalized=True,
    logit_scale=3.0,
    logit_bias=0.0,
    licence="Apache-2.0",
    licence_ancestry="[]",
    slide_mpp_x=0.5,
    slide_mpp_y=0.5,
    mpp_source="openslide",
    tile_mpp=1.0,
    tile_size_px=96,
    tile_size_lv0="[192.0, 192.0]",
    step_lv0="[192.0, 192.0]",
    read_level=0,
    level0_width=2000,
    level0_height=1000,
    bounds_lv0="[0, 0, 2000, 1000]",
    objective_power=20.0,
    transform="{}",
    tissue="{}",
    precision="float32",
    reader="openslide",
    created_with="promptmil",
)


def make_rows(n: int, dim: int = 8) -> FeatureRows:
    generator = np.random.default_rng(n)
    return FeatureRows(
        spaces={
            "joint": generator.standard_normal((n, dim)).astype(np.float16),
            "backbone": generator.standard_normal((n, dim + 4)).astype(np.float16),
        },
        coords_lv0=np.stack([np.arange(n) * 192, np.zeros(n)], axis=1).astype(np.int64),
        tissue_fraction=np.ones(n, np.float32),
        failed_coords_lv0=np.array([[5, 5]], np.int64) if n else np.empty((0, 2), np.int64),
    )


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 70_000])
def test_rows_and_header_come_back(tmp_path: Path, n: int):
    rows = make_rows(n)
    write_features(tmp_path / "S.h5", HEADER, rows)
    file = FeatureFile(tmp_path / "S.h5")
    assert file.header == HEADER
    assert np.array_equal(file.features(), rows.spaces["joint"])
    assert np.array_equal(file.features_of("backbone"), rows.spaces["backbone"])
    assert np.array_equal(file.coords_lv0, rows.coords_lv0)
    assert np.array_equal(file.failed_coords_lv0, rows.failed_coords_lv0)


def test_features_are_contiguous_and_carry_the_names_other_readers_look_for(tmp_path: Path):
    write_features(tmp_path / "S.h5", HEADER, make_rows(10))
    with h5py.File(tmp_path / "S.h5") as file:
        assert file["features"].chunks is None
        assert {"name", "savetodir", "encoder"} <= set(file["features"].attrs)
        coords = dict(file["coords"].attrs)
    assert coords["patch_size"] == 96
    assert coords["patch_size_level0"] == 192
    assert coords["level0_magnification"] == 20
    assert coords["target_magnification"] == 10
    assert coords["overlap"] == 0
    assert (coords["level0_width"], coords["level0_height"]) == (2000, 1000)


def test_no_flipped_bit_of_the_features_goes_unseen(tmp_path: Path):
    path = tmp_path / "S.h5"
    write_features(path, HEADER, make_rows(200))
    content = path.read_bytes()
    with h5py.File(path) as file:
        start = file["features"].id.get_offset()
    generator = np.random.default_rng(0)
    for position in generator.integers(start, start + 200 * 16, 100):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"S.h5: its bytes differ from its checksums; delete the file"):
            FeatureFile(path).features()


def read_everything(path: Path) -> None:
    file = FeatureFile(path)
    file.features()
    file.features_of("backbone")


def test_no_change_of_any_byte_goes_unseen_or_hangs(tmp_path: Path):
    """Flipped bits and zeroed blocks anywhere, HDF5's own structure included: refused, each within moments."""
    path = tmp_path / "S.h5"
    write_features(path, HEADER, make_rows(40))
    content = path.read_bytes()
    generator = np.random.default_rng(1)
    for _ in range(400):
        damaged = bytearray(content)
        position = int(generator.integers(len(content)))
        if generator.random() < 0.5:
            damaged[position] ^= 1 << int(generator.integers(8))
        else:
            damaged[position : position + 64] = bytes(len(damaged[position : position + 64]))
        if bytes(damaged) == content:
            continue
        path.write_bytes(damaged)
        assert not is_valid(path, read_everything)


def test_a_cut_file_is_refused_whatever_the_cut(tmp_path: Path):
    path = tmp_path / "S.h5"
    write_features(path, HEADER, make_rows(300))
    content = path.read_bytes()
    for size in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:size])
        assert not is_valid(path, lambda p: check_features(p, extraction_fingerprint="x" * 64))


def test_a_whole_file_is_valid_only_as_what_it_is(tmp_path: Path):
    path = tmp_path / "S.h5"
    write_features(path, HEADER, make_rows(10))
    assert is_valid(path, lambda p: check_features(p, extraction_fingerprint="x" * 64, slide_fingerprint="s" * 64))
    assert not is_valid(path, lambda p: check_features(p, extraction_fingerprint="y" * 64))
    assert not is_valid(path, lambda p: check_features(p, extraction_fingerprint="x" * 64, slide_fingerprint="t" * 64))
    assert not is_valid(tmp_path / "none.h5", lambda p: check_features(p, extraction_fingerprint="x" * 64))


def test_values_that_are_not_finite_are_refused(tmp_path: Path):
    rows = make_rows(10)
    rows.spaces["joint"][3, 2] = np.inf
    write_features(tmp_path / "S.h5", HEADER, rows)
    with pytest.raises(DamagedFileError, match="not finite"):
        check_features(tmp_path / "S.h5", extraction_fingerprint="x" * 64)


def test_a_foreign_hdf5_file_is_named_as_such(tmp_path: Path):
    with h5py.File(tmp_path / "S.h5", "w") as file:
        file["features"] = np.zeros((3, 4))
    with pytest.raises(DamagedFileError, match="not a sealed feature file of promptmil"):
        FeatureFile(tmp_path / "S.h5")


def test_peers_files_are_named_as_such(shared_data: Path):
    found = sorted((shared_data / "peer_caches").rglob("*.h5"))
    assert found
    for path in found:
        with pytest.raises(DamagedFileError, match="promptmil convert"):
            FeatureFile(path)


def test_transform_and_tissue_are_json(tmp_path: Path):
    write_features(tmp_path / "S.h5", HEADER, make_rows(3))
    assert json.loads(FeatureFile(tmp_path / "S.h5").header.transform) == {}
