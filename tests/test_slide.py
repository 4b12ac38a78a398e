"""A slide: true mpp with its source, exact pixels, clear errors."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyramids import tissue_pixels, write_slide

from feature_extraction.errors import SlideError
from feature_extraction.mpp import MppRule, find_mpp
from feature_extraction.reader import TileReader, TileSource
from feature_extraction.slide import Slide, fingerprint_file

RULE = MppRule()


def read_tile(path: Path, corner: tuple[int, int], size: float, level: int, side: int) -> np.ndarray:
    source = TileSource(slide_id="S", path=path, decoder="openslide", level=level, size_lv0=(size, size), side_px=side)
    return TileReader().read(source, corner)


@pytest.mark.parametrize(
    ("properties", "rule", "expected"),
    [
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.26"}, RULE, (0.25, 0.26, "openslide")),
        ({"openslide.mpp-x": "0,25", "openslide.mpp-y": "0,25"}, RULE, (0.25, 0.25, "openslide")),
        ({"openslide.mpp-x": "352.8", "openslide.mpp-y": "352.8", "openslide.objective-power": "20"},
         MppRule(from_objective=True), (0.5, 0.5, "objective")),
        ({"tiff.XResolution": "20000", "tiff.YResolution": "20000", "tiff.ResolutionUnit": "centimeter"}, RULE,
         (0.5, 0.5, "tiff")),
        ({"openslide.objective-power": "40"}, MppRule(from_objective=True), (0.25, 0.25, "objective")),
        ({}, MppRule(default_mpp=0.3), (0.3, 0.3, "default")),
    ],
)  # fmt: skip
def test_mpp_comes_from_the_first_plausible_source(properties, rule, expected):
    found = find_mpp("S", properties, None, rule)
    assert (found.x, found.y, found.source) == expected


def test_the_tables_mpp_wins():
    assert find_mpp("S", {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}, (0.4, 0.5), RULE).source == "table"


@pytest.mark.parametrize("value", ["0", "-0.5", "nan", "inf", "20x", "", "0.049", "4.01"])
def test_an_implausible_mpp_is_never_used(value: str):
    with pytest.raises(SlideError, match=r"slide=S stage=mpp .*remedy=give it in a slides.csv.*code=E-mpp"):
        find_mpp("S", {"openslide.mpp-x": value, "openslide.mpp-y": value}, None, RULE)


@pytest.mark.parametrize("value", ["0.05", "4"])
def test_the_bounds_of_a_plausible_mpp_are_inside(value: str):
    assert find_mpp("S", {"openslide.mpp-x": value, "openslide.mpp-y": value}, None, RULE).x == float(value)


def test_objective_power_alone_is_named_but_not_used():
    with pytest.raises(SlideError, match=r"seen: objective 0.5 x 0.5"):
        find_mpp("S", {"openslide.objective-power": "20"}, None, RULE)


def test_a_tile_without_change_of_size_is_the_slides_own_pixels(tmp_path: Path):
    pixels = tissue_pixels(1000, 700)
    tile = read_tile(write_slide(tmp_path / "s.svs", pixels), (300, 200), 224.0, 0, 224)
    assert np.array_equal(tile, pixels[200:424, 300:524])


def test_a_resampled_tile_equals_pillow_on_the_same_region(tmp_path: Path):
    pixels = tissue_pixels(1000, 700)
    tile = read_tile(write_slide(tmp_path / "s.svs", pixels), (300, 200), 224.45, 0, 224)
    box = (300, 200, 524.45, 424.45)
    expected = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC, box=box)
    # The region that is read ends one pixel behind the box, so only the last columns can differ from the whole picture.
    difference = np.abs(tile[:220, :220].astype(int) - np.asarray(expected)[:220, :220])
    assert difference.max() <= 2  # torch rounds between its two passes as well
    assert (difference > 0).mean() < 0.01


def test_a_coarser_level_gives_the_same_place(tmp_path: Path):
    pixels = np.zeros((1024, 1024, 3), np.uint8)
    pixels[256:512, 512:768] = 200
    with Slide("S", write_slide(tmp_path / "s.svs", pixels)) as slide:
        assert slide.level_for(4.0) == 1
    tile = read_tile(tmp_path / "s.svs", (512, 256), 256.0, 1, 64)
    assert (tile == 200).all()


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda path: None, "E-missing", "no such file"),
        (lambda path: path.write_bytes(b""), "E-empty", "0 bytes"),
        (lambda path: path.mkdir(), "E-open", "is a folder"),
        (lambda path: path.write_bytes(b"not a slide at all" * 50), "E-open", "OpenSlide does not read it"),
    ],
)
def test_what_cannot_be_opened_says_why(tmp_path: Path, make, code: str, words: str):
    path = tmp_path / "s.svs"
    make(path)
    with pytest.raises(SlideError, match=words) as raised:
        Slide("S", path)
    assert raised.value.code == code


def test_a_truncated_slide_is_named_with_its_bytes(tmp_path: Path):
    path = write_slide(tmp_path / "s.svs", tissue_pixels(1500, 1500))
    content = path.read_bytes()
    refused = 0
    for share in np.linspace(0.05, 0.95, 19):
        path.write_bytes(content[: int(len(content) * share)])
        try:
            read_tile(path, (1200, 1200), 224.0, 0, 224)
        except SlideError as error:
            refused += 1
            if error.stage == "open":
                assert error.code == "E-truncated"
                assert "bytes" in error.cause
    assert refused == 19


def test_fingerprint_changes_with_a_byte_at_the_ends_and_the_size(tmp_path: Path):
    path = tmp_path / "f"
    path.write_bytes(bytes(300_000))
    first = fingerprint_file(path)
    for position in (0, 150_000, 299_999):
        content = bytearray(300_000)
        content[position] = 1
        path.write_bytes(content)
        assert fingerprint_file(path) != first
    path.write_bytes(bytes(300_001))
    assert fingerprint_file(path) != first


def test_real_slides_say_what_they_are(shared_data: Path):
    with Slide("S", shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        info = slide.info(None, RULE)
    assert (info.width_lv0, info.height_lv0, info.mpp.x, info.mpp.source) == (2220, 2967, 0.499, "openslide")
    for name, code in (("TCGA-CR-7395-01A-01-TS1.svs", "E-mpp"), ("openslide-python_boxes.tiff", "E-mpp")):
        with Slide("S", shared_data / "slides" / name) as slide, pytest.raises(SlideError) as raised:
            slide.info(None, RULE)
        assert raised.value.code == code
