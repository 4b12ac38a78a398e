"""`promptmil convert`: nothing is guessed, and what cannot be is refused with what to do."""

from pathlib import Path

import h5py
import numpy as np
import peer_folders as peers
import pyramids
import pytest
import torch

from feature_extraction.encoders.demo import DemoSource
from feature_extraction.errors import InputError, MismatchError
from feature_extraction.store import FeatureFile
from mil.cli import main

DEMO = DemoSource().load(torch.device("cpu"))
JOINT, BACKBONE = DEMO.spec.widths["joint"], DEMO.spec.widths["backbone"]
DECLARED = ("encoder=demo", "space=joint", "default_mpp=1.0")
CORNERS = np.array([(192 * x, 192 * y) for y in range(4) for x in range(4)], np.int64)


def rows(width: int = JOINT, n: int = 16) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((n, width)).astype(np.float32)


def embedded(pixels: np.ndarray, space: str) -> np.ndarray:
    """What the encoder makes of the tiles at `CORNERS`, read with plain slices."""
    tiles = np.stack([pixels[y : y + 96, x : x + 96] for x, y in CORNERS])
    return DEMO.embed_tiles(torch.from_numpy(tiles).permute(0, 3, 1, 2), (space,))[space].numpy()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A folder with the slide A of 768 x 768 pixels at 1 µm, and its pixels."""
    folder = tmp_path_factory.mktemp("slides")
    pixels = pyramids.tissue_pixels(768, 768, seed=3)
    pyramids.write_slide(folder / "A.svs", pixels, mpp="1.0", power="10")
    return folder, pixels


def trident(root: Path, slide_id: str, features: np.ndarray, encoder: str = "some", **given: object) -> Path:
    told = {"side": 96, "side_lv0": 96, "target": 10, **given}
    return peers.write_trident(root, slide_id, features, CORNERS[: len(features)], encoder=encoder, **told)  # type: ignore[arg-type]


def failure(out: Path) -> str:
    (line,) = peers.summary(out)["failures"]  # type: ignore[misc]
    return str(line)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give either from="),
        (("from=clam", "to=stamp"), "give either from="),
        (("from=qupath",), "from=qupath: expected clam, trident, stamp, slide2vec"),
        (("to=slide2vec",), "to=slide2vec: expected clam, trident, stamp, anndata"),
        (("from=trident", "space=joint", "default_mpp=.5"), "needs encoder="),
        (("from=trident", "encoder=demo", "default_mpp=.5"), "needs space=joint"),
        (("from=trident", "encoder=demo", "space=text", "default_mpp=.5"), "space=text: expected joint or backbone"),
        (("from=trident", "encoder=demo", "space=joint"), "give slides=… (the folder of slides, or a CSV"),
        (("from=trident", "encoder=demo", "space=joint", "default_mpp=40"), "default_mpp=40: expected µm per pixel"),
        (("from=trident", *DECLARED, "tile_mpp=-1"), "tile_mpp=-1: expected"),
        (("from=trident", *DECLARED, "project=true"), "project=true: takes vectors of space=backbone"),
        (("from=clam", *DECLARED), "expected h5_files/<slide>.h5|coords need the attributes"),
        (("to=clam",), "no feature folder of promptmil"),
    ],
)
def test_what_is_missing_is_named_before_anything_starts(tmp_path: Path, words: tuple[str, ...], said: str):
    trident(tmp_path / "t", "A", rows())
    source = tmp_path / "t"
    with pytest.raises(InputError) as error:
        peers.convert(*words, f"source={source}", f"out={tmp_path}/out")
    assert any(part in str(error.value) for part in said.split("|"))
    assert not (tmp_path / "out").exists()


def test_the_embeddings_of_the_declared_encoder_are_verified_on_the_slide(
    tmp_path: Path, slide: tuple[Path, np.ndarray]
):
    folder, pixels = slide
    trident(tmp_path / "t", "A", embedded(pixels, "joint") * 5)
    words = ("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/out", "encoder=demo", "space=joint")
    assert peers.convert(*words, "default_mpp=1.0") == 0
    path = peers.only_folder(tmp_path / "out") / "A.h5"
    assert FeatureFile(path).header.fingerprint_source == "declared"
    assert peers.convert(*words, f"slides={folder}") == 0
    header = FeatureFile(path).header
    assert (header.fingerprint_source, header.mpp_source, header.normalized) == ("verified", "openslide", False)
    assert (header.level0_width, header.bounds_lv0) == (768, "[0, 0, 768, 768]")
    told = peers.summary(tmp_path / "out")
    assert (told["verified"], told["declared"], told["new"]) == (1, 0, 1)


def test_another_encoder_is_refused_with_the_worst_cosine_and_both_fingerprints(
    tmp_path: Path, slide: tuple[Path, np.ndarray]
):
    trident(tmp_path / "t", "A", rows())
    words = ("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/out", "encoder=demo", "space=joint")
    with pytest.raises(
        MismatchError, match=rf"\({DEMO.fingerprint[:8]}\).*the worst has cosine -?0\.\d+.*\([0-9a-f]{{8}}\)"
    ):
        peers.convert(*words, f"slides={slide[0]}")
    assert not list((tmp_path / "out").rglob("*.h5"))


def test_one_wrong_tile_among_the_verified_is_enough(tmp_path: Path, slide: tuple[Path, np.ndarray]):
    features = embedded(slide[1], "joint")
    features[[0, -1]] = features[[-1, 0]]
    trident(tmp_path / "t", "A", features)
    with pytest.raises(MismatchError, match="worst has cosine"):
        peers.convert("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/out", *DECLARED, f"slides={slide[0]}")


def test_one_slide_that_contradicts_costs_itself_when_another_agrees(tmp_path: Path, slide: tuple[Path, np.ndarray]):
    folder, pixels = slide
    trident(tmp_path / "t", "A", rows())
    trident(tmp_path / "t", "B", embedded(pixels, "joint"))
    table = tmp_path / "slides.csv"
    table.write_text(f"path,slide_id\n{folder}/A.svs,A\n{folder}/A.svs,B\n")
    words = ("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/out", "encoder=demo", "space=joint")
    assert peers.convert(*words, f"slides={table}") == 3
    assert "slide=A stage=match" in failure(tmp_path / "out")
    assert [path.stem for path in (tmp_path / "out").glob("*/*.h5")] == ["B"]


def test_a_width_that_is_not_the_space_s_is_refused_with_both(tmp_path: Path):
    trident(tmp_path / "t", "A", rows(width=BACKBONE + 1))
    with pytest.raises(MismatchError, match=f"have {BACKBONE + 1} values, the joint space of demo .* has {JOINT}"):
        peers.convert("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/out", *DECLARED)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoder", ["conch_v1", "musk"])
def test_an_unprojected_cache_is_refused_as_joint_and_taken_as_backbone(tmp_path: Path, encoder: str):
    trident(tmp_path / "t", "A", rows(), encoder=encoder)
    words = ("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/out", "encoder=demo", "default_mpp=1.0")
    with pytest.raises(MismatchError, match=r"before their projection unless told otherwise.*project=true"):
        peers.convert(*words, "space=joint")
    trident(tmp_path / "b", "A", rows(width=BACKBONE), encoder=encoder)
    words = ("from=trident", f"source={tmp_path}/b", *words[2:])
    assert peers.convert(*words, "space=backbone") == 0
    assert FeatureFile(peers.only_folder(tmp_path / "out") / "A.h5").header.space == "backbone"


def test_a_projected_cache_of_such_an_encoder_is_taken_as_joint_when_the_slide_proves_it(
    tmp_path: Path, slide: tuple[Path, np.ndarray]
):
    trident(tmp_path / "t", "A", embedded(slide[1], "joint"), encoder="conch_v1")
    words = ("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/out", "encoder=demo", "space=joint")
    assert peers.convert(*words, f"slides={slide[0]}") == 0


def test_text_is_refused_for_what_was_imported_as_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trident(tmp_path / "t", "A", rows(width=BACKBONE))
    peers.convert("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/out", *DECLARED, "space=backbone")
    assert main(["prompts", "prompts=demo", f"out={tmp_path}/bank"]) == 0
    words = (f"features={tmp_path}/out", f"bank={tmp_path}/bank", f"out={tmp_path}/zs")
    assert main(["zeroshot", *words]) == 2
    assert "backbone space" in capsys.readouterr().err


def test_project_takes_backbone_vectors_into_the_joint_space(tmp_path: Path, slide: tuple[Path, np.ndarray]):
    folder, pixels = slide
    trident(tmp_path / "t", "A", embedded(pixels, "backbone"), encoder="conch_v1")
    words = ("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/out", "encoder=demo", "space=backbone")
    assert peers.convert(*words, "project=true", f"slides={folder}") == 0
    file = FeatureFile(peers.only_folder(tmp_path / "out") / "A.h5")
    assert (file.header.space, file.header.normalized, file.header.fingerprint_source) == ("joint", True, "verified")
    assert np.allclose(file.features(), embedded(pixels, "joint"), atol=1e-5)


def test_a_newer_stamp_is_refused(tmp_path: Path):
    peers.write_stamp(tmp_path / "s", "A", rows(), CORNERS * 0.5, attributes={"stamp_version": "3.0.0"})
    assert peers.convert("from=stamp", f"source={tmp_path}/s", f"out={tmp_path}/out", *DECLARED) == 3
    assert "written by STAMP 3.0.0, newer than the 2.5 that is known here" in failure(tmp_path / "out")
    assert "code=E-version" in failure(tmp_path / "out")


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"tile_size_um": None, "unit": None}, "does not say that its coordinates are micrometres"),
        ({"unit": "px"}, "does not say that its coordinates are micrometres"),
        ({"tile_size_px": None}, "does not say how many pixels a tile has"),
        ({"feat_type": "slide"}, "holds slide features, expected tile features"),
        ({"stamp_version": "new"}, "written by STAMP new"),
    ],
)
def test_what_a_stamp_file_does_not_say_is_not_guessed(tmp_path: Path, attributes: dict[str, object], said: str):
    peers.write_stamp(tmp_path / "s", "A", rows(), CORNERS * 0.5, attributes=attributes)
    assert peers.convert("from=stamp", f"source={tmp_path}/s", f"out={tmp_path}/out", *DECLARED) == 3
    assert said in failure(tmp_path / "out")


def test_stamp_2_0_says_its_tile_by_another_name(tmp_path: Path):
    told = {"tile_size_um": None, "tile_size": 112.0, "stamp_version": "2.0.1"}
    peers.write_stamp(tmp_path / "s", "A", rows(), CORNERS * 0.5, attributes=told)
    assert peers.convert("from=stamp", f"source={tmp_path}/s", f"out={tmp_path}/out", *DECLARED) == 0
    assert FeatureFile(peers.only_folder(tmp_path / "out") / "A.h5").header.size_lv0() == (112.0, 112.0)


def test_a_bag_with_foreign_keys_says_what_it_holds_and_whose_it_may_be(tmp_path: Path):
    peers.write_stamp(tmp_path / "s", "A", rows(), CORNERS * 0.5)
    assert peers.convert("from=trident", f"source={tmp_path}/s/x-00000000", f"out={tmp_path}/out", *DECLARED) == 3
    assert "holds coords, feats; TRIDENT's files hold features and coords" in failure(tmp_path / "out")
    assert "from=stamp" in failure(tmp_path / "out")


@pytest.mark.parametrize("tool", ["clam", "trident", "stamp"])
def test_real_bags_with_foreign_keys_are_explained_one_by_one(tmp_path: Path, tool: str, shared_data: Path):
    words = (f"from={tool}", f"source={shared_data}/bags/mopadi", f"out={tmp_path}/out", *DECLARED)
    assert peers.convert(*words) == 3
    first, second = (str(line) for line in peers.summary(tmp_path / "out")["failures"])  # type: ignore[union-attr]
    assert "holds features, metadata" in first
    assert ("does not say that its coordinates are" if tool == "stamp" else "this looks like STAMP's layout") in second


def test_clam_without_its_patches_or_without_its_h5_files_says_which_are_needed(tmp_path: Path):
    peers.write_clam(tmp_path / "c", "A", rows(), CORNERS)
    (tmp_path / "c" / "patches" / "A.h5").unlink()
    assert peers.convert("from=clam", f"source={tmp_path}/c", f"out={tmp_path}/out", *DECLARED) == 3
    assert "CLAM keeps the size of a tile in patches/A.h5" in failure(tmp_path / "out")
    (tmp_path / "p" / "pt_files").mkdir(parents=True)
    with pytest.raises(InputError, match="pt_files hold no coordinates"):
        peers.convert("from=clam", f"source={tmp_path}/p", f"out={tmp_path}/out", *DECLARED)


def test_patches_of_another_run_are_refused(tmp_path: Path):
    peers.write_clam(tmp_path / "c", "A", rows(), CORNERS)
    peers.write_clam(tmp_path / "d", "A", rows(), CORNERS + 1)
    (tmp_path / "d" / "patches" / "A.h5").replace(tmp_path / "c" / "patches" / "A.h5")
    assert peers.convert("from=clam", f"source={tmp_path}/c", f"out={tmp_path}/out", *DECLARED) == 3
    assert "not the same" in failure(tmp_path / "out")


def test_features_of_two_encoders_in_one_folder_must_be_told_apart(tmp_path: Path):
    trident(tmp_path / "t", "A", rows(), encoder="uni")
    trident(tmp_path / "t", "A", rows(), encoder="plip")
    with pytest.raises(InputError, match=r"several encoders: .*features_plip.*features_uni.*name one"):
        peers.convert("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/out", *DECLARED)


def test_a_slide_without_an_mpp_fails_alone_and_says_where_to_give_it(tmp_path: Path):
    for slide_id in ("A", "B"):
        trident(tmp_path / "t", slide_id, rows())
    table = tmp_path / "slides.csv"
    table.write_text("path,slide_id,mpp\nnowhere.svs,A,1.0\n")
    words = ("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/out", "encoder=demo", "space=joint")
    assert peers.convert(*words, f"slides={table}") == 3
    assert "slide=B stage=mpp" in failure(tmp_path / "out")
    assert "default_mpp=" in failure(tmp_path / "out")


def test_a_wrong_row_of_the_slide_table_is_not_replaced_by_the_default(tmp_path: Path):
    trident(tmp_path / "t", "A", rows())
    table = tmp_path / "slides.csv"
    table.write_text("path,slide_id,mpp\nnowhere.svs,A,half\n")
    words = ("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/out", *DECLARED)
    assert peers.convert(*words, f"slides={table}") == 3
    assert "mpp must be a number" in failure(tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"default": "0.1"}, "its tiles are at 0.2 µm per pixel, 1 was expected"),
        ({"shift": 5000}, "the slide has 4000 x 4000 pixels"),
        ({"shift": -500}, "corner is negative"),
    ],
)
def test_tiles_that_cannot_be_where_they_are_said_to_be_are_refused(
    tmp_path: Path, given: dict[str, object], said: str
):
    coords = CORNERS + int(str(given.get("shift", 0)))
    peers.write_trident(tmp_path / "t", "A", rows(), coords, side=96, side_lv0=192, target=10)
    words = ("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/out", "encoder=demo", "space=joint")
    assert peers.convert(*words, f"default_mpp={given.get('default', '0.5')}") == 3
    assert said in failure(tmp_path / "out")


@pytest.mark.parametrize("damage", ["cut", "text", "nan", "rows"])
def test_one_bad_file_costs_that_slide_only(tmp_path: Path, damage: str):
    for slide_id in ("A", "B"):
        path = trident(tmp_path / "t", slide_id, rows())
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    elif damage == "text":
        path.write_text("no HDF5")
    else:
        with h5py.File(path, "a") as file:
            if damage == "nan":
                file["features"][3, 1] = np.nan
            else:
                del file["features"]
                file["features"] = rows(n=4)
    assert peers.convert("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/out", *DECLARED) == 3
    assert "slide=B stage=read" in failure(tmp_path / "out")
    assert [path.stem for path in (tmp_path / "out").glob("*/*.h5")] == ["A"]
    assert "B" in (tmp_path / "out" / "failures.csv").read_text()


def test_a_damaged_file_of_ours_costs_that_slide_of_the_export(tmp_path: Path):
    for slide_id in ("A", "B"):
        trident(tmp_path / "t", slide_id, rows())
    peers.convert("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/ours", *DECLARED)
    path = peers.only_folder(tmp_path / "ours") / "B.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert peers.convert("to=clam", f"source={tmp_path}/ours", f"out={tmp_path}/clam") == 3
    assert "slide=B" in failure(tmp_path / "clam")
    assert [path.stem for path in (tmp_path / "clam" / "h5_files").glob("*")] == ["A"]


def test_a_space_that_is_not_in_the_files_is_not_exported(tmp_path: Path):
    trident(tmp_path / "t", "A", rows())
    peers.convert("from=trident", f"source={tmp_path}/t", f"out={tmp_path}/ours", *DECLARED)
    with pytest.raises(MismatchError, match=r"space=backbone: A.h5 holds joint"):
        peers.convert("to=clam", f"source={tmp_path}/ours", f"out={tmp_path}/clam", "space=backbone")


def test_slides_of_one_name_in_two_folders_are_both_refused(tmp_path: Path):
    first = peers.write_stamp(tmp_path / "s", "A", rows(), CORNERS * 0.5)
    (first.parent / "deeper").mkdir()
    (first.parent / "deeper" / "A.h5").write_bytes(first.read_bytes())
    assert peers.convert("from=stamp", f"source={tmp_path}/s", f"out={tmp_path}/out", *DECLARED) == 3
    assert "the id is that of 2 files" in str(peers.summary(tmp_path / "out")["failures"])
