"""The mpp of real slide files that state it well, badly or not at all: never a guess, always the ways out."""

from pathlib import Path

import openslide
import pytest
import tifffile
from pyramids import tissue_pixels, write_slide

from feature_extraction.errors import SlideError
from feature_extraction.mpp import Mpp, MppRule, find_mpp, number
from feature_extraction.slide import Slide

WAYS_OUT = "give it in a slides.csv (columns path, mpp), or set default_mpp=…, or mpp_from_objective=true"
NOTHING = "no resolution tag and no objective power in it"


def write_aperio(path: Path, mpp: str | None, power: str | None = None) -> Path:
    return write_slide(path, tissue_pixels(300, 300), mpp=mpp, power=power, levels=(1,))


def write_tiff(path: Path, x: float, y: float, unit: str) -> Path:
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(tissue_pixels(300, 300), tile=(256, 256), photometric="rgb", compression="deflate", metadata=None,
                   resolution=(x, y), resolutionunit=unit)  # fmt: skip
    return path


def without_y(path: Path) -> Path:
    """The tag of the resolution along y becomes another one."""
    with tifffile.TiffFile(path) as tiff:
        entry = tiff.pages[0].tags["YResolution"].offset
    content = bytearray(path.read_bytes())
    content[entry : entry + 2] = (285).to_bytes(2, "little")
    path.write_bytes(content)
    return path


REFUSED = {
    "none": (lambda path: write_aperio(path, None), NOTHING),
    "zero": (lambda path: write_aperio(path, "0"), "seen: openslide 0 x 0 (outside .05-4)"),
    "negative": (lambda path: write_aperio(path, "-0.5"), "seen: openslide -0.5 x -0.5 (outside .05-4)"),
    "nan": (lambda path: write_aperio(path, "nan"), "seen: aperio.MPP is no number"),
    "inf": (lambda path: write_aperio(path, "inf"), "openslide.mpp-x is no number"),
    "text": (lambda path: write_aperio(path, "20x Ann Example"), "seen: aperio.MPP is no number"),
    "empty": (lambda path: write_aperio(path, ""), "seen: aperio.MPP is no number"),
    "absurdly small": (lambda path: write_aperio(path, "1e-9"), "seen: openslide 1e-09 x 1e-09 (outside .05-4)"),
    "72 dots per inch": (lambda path: write_tiff(path, 72, 72, "INCH"), "openslide 352.778 x 352.778 (outside .05-4)"),
    "x only": (
        lambda path: without_y(write_tiff(path, 20_000, 20_000, "CENTIMETER")),
        "seen: tiff 0.5 for one axis only",
    ),
    "one axis absurd": (
        lambda path: write_tiff(path, 20_000, 20, "CENTIMETER"),
        "openslide 0.5 x 500 (outside .05-4), tiff 0.5 x 500 (outside .05-4)",
    ),
    "zero resolution": (lambda path: write_tiff(path, 0, 0, "CENTIMETER"), NOTHING),
    "no unit": (lambda path: write_tiff(path, 20_000, 20_000, "NONE"), NOTHING),
    "objective only": (lambda path: write_aperio(path, None, "20"), "seen: objective 0.5 x 0.5 (not asked for)"),
    "objective of zero": (lambda path: write_aperio(path, None, "0"), NOTHING),
    "objective as text": (lambda path: write_aperio(path, None, "Ann"), "seen: aperio.AppMag is no number"),
}
ACCEPTED = {
    "dot": (lambda path: write_aperio(path, "0.25"), Mpp(x=0.25, y=0.25, source="openslide")),
    "comma": (lambda path: write_aperio(path, "0,25"), Mpp(x=0.25, y=0.25, source="openslide")),
    "x and y differ": (
        lambda path: write_tiff(path, 20_000, 40_000, "CENTIMETER"),
        Mpp(x=0.5, y=0.25, source="openslide"),
    ),
    "per inch": (lambda path: write_tiff(path, 50_800, 50_800, "INCH"), Mpp(x=0.5, y=0.5, source="openslide")),
}


def mpp_of(path: Path, rule: MppRule, table: tuple[float, float] | None = None) -> Mpp:
    with Slide("S1", path) as slide:
        return slide.info(table, rule).mpp


@pytest.mark.parametrize("case", REFUSED)
def test_a_slide_without_a_plausible_mpp_is_refused_with_the_ways_out(tmp_path: Path, case: str):
    write, seen = REFUSED[case]
    with pytest.raises(SlideError) as raised:
        mpp_of(write(tmp_path / "s.svs"), MppRule())
    error = raised.value
    assert (error.slide_id, error.stage, error.code, error.remedy) == ("S1", "mpp", "E-mpp", WAYS_OUT)
    assert error.cause.startswith("no plausible micrometres per pixel in its metadata; ")
    assert seen in error.cause
    assert "Ann" not in error.cause  # what else stands in the metadata may be a person's name


@pytest.mark.parametrize("case", REFUSED)
def test_each_way_out_leads_out(tmp_path: Path, case: str):
    path = REFUSED[case][0](tmp_path / "s.svs")
    assert mpp_of(path, MppRule(default_mpp=0.4)) == Mpp(x=0.4, y=0.4, source="default")
    assert mpp_of(path, MppRule(), table=(0.3, 0.2)) == Mpp(x=0.3, y=0.2, source="table")
    rule = MppRule(from_objective=True)
    if case == "objective only":
        assert mpp_of(path, rule) == Mpp(x=0.5, y=0.5, source="objective")
    else:
        with pytest.raises(SlideError, match="code=E-mpp"):
            mpp_of(path, rule)


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_a_slide_says_plausibly_is_taken_exactly(tmp_path: Path, case: str):
    write, expected = ACCEPTED[case]
    assert mpp_of(write(tmp_path / "s.svs"), MppRule(default_mpp=3.0, from_objective=True)) == expected


def test_a_wrong_mpp_beside_an_objective_is_passed_over_only_when_allowed(tmp_path: Path):
    path = write_aperio(tmp_path / "s.svs", "352.8", "40")
    assert mpp_of(path, MppRule(from_objective=True)) == Mpp(x=0.25, y=0.25, source="objective")
    with pytest.raises(SlideError, match=r"openslide 352.8 x 352.8 \(outside .05-4\), objective 0.25 x 0.25"):
        mpp_of(path, MppRule())


def test_a_power_near_zero_is_no_mpp():
    with pytest.raises(SlideError, match=r"objective inf x inf \(outside"):
        find_mpp("S1", {openslide.PROPERTY_NAME_OBJECTIVE_POWER: "1e-320"}, None, MppRule(from_objective=True))


@pytest.mark.parametrize(
    ("text", "value"),
    [("0,5", 0.5), (" .5 ", 0.5), ("5.", 5.0), ("-1e-3", -0.001), ("1e999", None), ("nan", None), ("inf", None),
     ("0x10", None), ("1,000.5", None), ("1_0", None), ("", None), (None, None)],
)  # fmt: skip
def test_a_number_is_finite_or_none(text: str | None, value: float | None):
    assert number(text) == value
