"""Direct decode gives OpenSlide's very pixels, or is not used."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyramids import APERIO, tissue_pixels, write_slide

from feature_extraction.jpeg_tiff import jpeg_levels
from feature_extraction.reader import TileReader, TileSource, choose_decoder, open_direct
from feature_extraction.region import region_of
from feature_extraction.resample import resample
from feature_extraction.slide import Slide
from feature_extraction.synthetic.tiff import write_pyramid

TILE = (256.0, 256.0)


def differing_regions(path: Path, seed: int, n_regions: int) -> tuple[int, int]:
    """How many regions were compared at all levels that both read, and how many differ in any value."""
    generator = np.random.default_rng(seed)
    compared = differing = 0
    with Slide("S", path) as slide:
        for level, (width, height) in enumerate(slide.level_sizes):
            reader = open_direct(slide, level, 256.0)
            if reader is None:
                continue
            corners = [(0, 0), (width - 1, height - 1), (width // 2, 0), (-3, -5)]
            corners += [
                (int(generator.integers(0, width)), int(generator.integers(0, height))) for _ in range(n_regions)
            ]
            for corner in corners:
                size = (int(generator.integers(1, 600)), int(generator.integers(1, 600)))
                compared += 1
                same = np.array_equal(reader.read(corner, size), slide.read_region(corner, level, size))
                differing += not same
    return compared, differing


def test_every_real_slide_that_both_read_has_the_same_pixels_everywhere(shared_data: Path):
    paths = [*(shared_data / "slides").glob("CMU*.svs"), *sorted((shared_data / "cohort" / "slides").glob("*.svs"))]
    total = 0
    for path in paths:
        compared, differing = differing_regions(path, seed=len(path.name), n_regions=4)
        assert differing == 0, path.name
        assert compared > 0, path.name
        total += compared
    assert total >= 8 * len(paths)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("flavour", ["aperio", "generic"])
def test_synthetic_slides_have_the_same_pixels(tmp_path: Path, subsampling: tuple[int, int], flavour: str):
    description = APERIO.format(w=1300, h=900, power="20", mpp="0.5") if flavour == "aperio" else None
    path = tmp_path / ("s.svs" if flavour == "aperio" else "s.tiff")
    pixels = tissue_pixels(1300, 900)
    with tifffile.TiffWriter(path) as tiff:
        for factor in (1, 2, 4):
            tiff.write(
                pixels[::factor, ::factor],
                tile=(240, 240) if flavour == "aperio" else (128, 256),
                photometric="rgb",
                compression="jpeg",
                subsampling=subsampling,
                subfiletype=0 if factor == 1 else 1,
                description=description if factor == 1 else None,
                metadata=None,
            )
    compared, differing = differing_regions(path, seed=3, n_regions=20)
    assert compared >= 48
    assert differing == 0


def test_a_level_between_whole_pixels_is_left_to_openslide(tmp_path: Path):
    path = tmp_path / "s.svs"
    write_pyramid(path, tissue_pixels(2413, 2557), mpp=0.5, flavour="aperio")
    with Slide("S", path) as slide:
        assert slide.downsamples[1] != 4.0
        assert open_direct(slide, 0, 256.0) is not None
        assert open_direct(slide, 1, 256.0) is None
        assert choose_decoder(slide, 0, TILE) == "direct"
        assert choose_decoder(slide, 1, TILE) == "openslide"


@pytest.mark.parametrize("name", ["TCGA-CR-7395-01A-01-TS1.svs", "hamamatsu_test3-DAPI-2-387.ndpi"])
def test_other_compressions_are_left_to_openslide(shared_data: Path, name: str):
    with Slide("S", shared_data / "slides" / name) as slide:
        assert choose_decoder(slide, 0, TILE) == "openslide"


def test_lossless_slides_are_left_to_openslide(tmp_path: Path):
    with Slide("S", write_slide(tmp_path / "s.svs", tissue_pixels(900, 900))) as slide:
        assert choose_decoder(slide, 0, TILE) == "openslide"


def test_a_slide_whose_pixels_would_differ_is_left_to_openslide(tmp_path: Path):
    """A photometric tag that lies: the JPEG data is YCbCr, the tag says RGB; whatever OpenSlide makes of it counts."""
    path = tmp_path / "s.svs"
    write_pyramid(path, tissue_pixels(1200, 1200), mpp=0.5, flavour="aperio")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["PhotometricInterpretation"].overwrite(2)
    with Slide("S", path) as slide:
        decoder = choose_decoder(slide, 0, TILE)
        reader = open_direct(slide, 0, 256.0)
        assert reader is not None
        agrees = np.array_equal(reader.read((300, 300), (200, 200)), slide.read_region((300, 300), 0, (200, 200)))
    assert decoder == ("direct" if agrees else "openslide")


def test_a_missing_tile_leaves_the_level_to_openslide(tmp_path: Path):
    path = tmp_path / "s.svs"
    write_pyramid(path, tissue_pixels(1200, 1200), mpp=0.5, flavour="aperio")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages[0].tags["TileByteCounts"]
        tag.overwrite([0, *tag.value[1:]])
    with Slide("S", path) as slide:
        assert jpeg_levels(path, slide.level_sizes)[0] is None


def test_a_tile_that_cannot_be_decoded_directly_is_openslides_to_judge(tmp_path: Path):
    path = tmp_path / "s.svs"
    write_pyramid(path, tissue_pixels(1200, 1200), mpp=0.5, flavour="aperio")
    with Slide("S", path) as slide:
        level = jpeg_levels(path, slide.level_sizes)[0]
        assert level is not None
        content = bytearray(path.read_bytes())
        content[level.offsets[6] : level.offsets[6] + 40] = bytes(40)
    path.write_bytes(content)
    for corner, is_whole in (((0, 0), True), ((256, 256), False)):
        source = TileSource(slide_id="S", path=path, decoder="direct", level=0, size_lv0=TILE, side_px=256)
        plain = TileSource(slide_id="S", path=path, decoder="openslide", level=0, size_lv0=TILE, side_px=256)
        outcomes = []
        for one in (source, plain):
            try:
                outcomes.append(TileReader().read(one, corner).tobytes())
            except Exception as error:  # noqa: BLE001 - either may refuse, but both alike
                outcomes.append(type(error).__name__)
        assert outcomes[0] == outcomes[1]
        assert isinstance(outcomes[0], bytes) or not is_whole


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    size=st.floats(240.0, 1000.0),
    side=st.integers(160, 300),
    x=st.integers(0, 300),
    y=st.integers(0, 300),
    factor=st.sampled_from([1.0, 2.0, 4.0, 4.0016]),
)
def test_a_resampled_tile_is_pillows_within_two_steps(size: float, side: int, x: int, y: int, factor: float):
    pixels = tissue_pixels(1800, 1800, seed=1)
    region = region_of((x, y), (size * factor, size * factor), factor)
    (left, top), (columns, rows) = region.corner, region.size
    part = np.ascontiguousarray(pixels[top : top + rows, left : left + columns])
    made = resample(part, region, side)
    box = (*region.inset, region.inset[0] + region.extent[0], region.inset[1] + region.extent[1])
    expected = np.asarray(Image.fromarray(part).resize((side, side), Image.Resampling.BICUBIC, box=box))
    difference = np.abs(made.astype(int) - expected)
    assert made.shape == (side, side, 3)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.03


@settings(max_examples=30, deadline=None, derandomize=True)
@given(side=st.integers(96, 448))
def test_at_twice_the_resolution_a_tile_is_pillows_within_one_step(side: int):
    pixels = tissue_pixels(2 * side, 2 * side, seed=2)
    region = region_of((0, 0), (2.0 * side, 2.0 * side), 1.0)
    expected = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
    assert np.abs(resample(pixels, region, side).astype(int) - expected).max() <= 1
