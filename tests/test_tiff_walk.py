"""The walk over a TIFF's directories: 64-bit offsets, lies, circles and any damage; it ends, and never raises."""

import os
import signal
import struct
from collections import Counter
from pathlib import Path

import pytest
import tifffile
from mutations import read_each
from tiff_slides import WRITERS, named, write_aperio, write_behind, write_bigtiff, write_ndpi

from feature_extraction.preflight import find_defect


@pytest.fixture(autouse=True)
def _ends_instead_of_hanging():
    def stop(number, frame):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("start", [1 << 20, 5 << 30])
def test_the_64_bit_offsets_of_ndpi_raise_no_false_alarm(tmp_path: Path, start: int):
    path = tmp_path / "s.ndpi"
    size = write_ndpi(path, start)
    assert find_defect(path) is None
    os.truncate(path, start + 30_000)
    defect = named(path)
    assert defect.code == "E-truncated"
    assert f"ends at byte {start + 60_002:,} or later" in defect.cause
    os.truncate(path, size)
    assert "zeros where a directory belongs" in named(path).cause


def test_a_hole_in_an_ndpi_behind_4_gib_is_found(tmp_path: Path):
    path = tmp_path / "s.ndpi"
    write_ndpi(path, 5 << 30)
    with path.open("r+b") as stream:
        stream.seek((5 << 30) + 20_000)
        stream.write(bytes(12_000))
    assert f"from byte {(5 << 30) + 20_000:,}" in named(path).cause


def test_a_circle_of_directories_ends(tmp_path: Path):
    path = tmp_path / "s.svs"
    entry = struct.pack("<HHII", 330, 4, 1, 8)  # a directory inside itself
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + struct.pack("<I", 8) + bytes(99))
    assert find_defect(path) is None


def test_a_list_whose_sums_do_not_fit_into_64_bits_points_behind_the_end(tmp_path: Path):
    path = write_bigtiff(tmp_path / "s.tiff")
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].tags[324].valueoffset
    content = bytearray(path.read_bytes())
    content[at : at + 8] = struct.pack("<Q", (1 << 64) - 8)
    path.write_bytes(content)
    assert named(path).code == "E-truncated"


def test_what_looks_like_a_far_pointer_of_ndpi_is_one_in_an_ndpi_only(tmp_path: Path):
    entry = struct.pack("<HHII", 256, 4, 1, 700)
    content = b"II*\0" + struct.pack("<II", 16, 1) + bytes(4) + struct.pack("<H", 1) + entry + bytes(4)
    (tmp_path / "s.tiff").write_bytes(content)
    (tmp_path / "s.ndpi").write_bytes(content)
    assert find_defect(tmp_path / "s.tiff") is None
    assert f"ends at byte {(1 << 32) + 18:,} or later" in named(tmp_path / "s.ndpi").cause


def test_a_cut_through_the_pointer_to_the_next_directory_leaves_the_end_open(tmp_path: Path):
    path = tmp_path / "s.ndpi"
    size = write_ndpi(path, 1 << 20)
    os.truncate(path, size - 8 * 4 - 5)  # the upper halves of eight entries, and most of the pointer
    assert " or later" in named(path).cause


@pytest.mark.parametrize("value", [1 << 63, (1 << 64) - 1, (1 << 64) - 8, 1 << 40, 3])
def test_absurd_numbers_in_directories_are_survived(tmp_path: Path, value: int):
    path = write_bigtiff(tmp_path / "s.tiff")
    with tifffile.TiffFile(path) as tiff:
        entries = [tag.offset for tag in tiff.pages[0].tags]
    content = path.read_bytes()
    found = 0
    for entry in [*entries, 8, 4]:
        for shift in (4, 12):
            damaged = bytearray(content)
            damaged[entry + shift : entry + shift + 8] = struct.pack("<Q", value)
            path.write_bytes(damaged)
            found += find_defect(path) is not None
    assert found > 0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TileWidth", 0, "tiles of 0 x 256 pixels"),  # OpenSlide: SIGFPE
        ("TileLength", (1 << 31) - 1, "tiles of 256 x 2,147,483,647 pixels"),  # OpenSlide: SIGABRT
        ("ImageWidth", (1 << 31) - 1, "lists 9 tiles where its 2,147,483,647 x 600 pixels need 25,165,824"),
    ],
)
def test_a_directory_that_would_kill_openslide_is_named(tmp_path: Path, name: str, value: int, words: str):
    path = write_behind(tmp_path / "s.svs")
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].tags[name].valueoffset
    content = bytearray(path.read_bytes())
    content[at : at + 4] = struct.pack("<I", value)
    path.write_bytes(content)
    defect = named(path)
    assert defect.code == "E-open"
    assert words in defect.cause


@pytest.mark.parametrize(("tag", "is_accused"), [(65000, False), (34675, True), (305, True)])
def test_a_vendors_own_tag_may_point_anywhere(tmp_path: Path, tag: int, is_accused: bool):
    path = write_aperio(tmp_path / "s.svs")
    with tifffile.TiffFile(path) as tiff:
        entry = tiff.pages[0].tags[530].offset  # nobody needs it here
    content = bytearray(path.read_bytes())
    content[entry : entry + 12] = struct.pack("<HHII", tag, 7, 1000, 1 << 31)
    path.write_bytes(content)
    assert (find_defect(path) is not None) == is_accused


@pytest.mark.parametrize("writer", WRITERS)
def test_no_damage_makes_preflight_raise_or_hang(tmp_path: Path, writer: str):
    path = WRITERS[writer](tmp_path / "s.svs")
    codes = Counter(
        defect.code if defect else "none"
        for _, defect in read_each(path, tmp_path / "damaged", seed=1, n=120, read=find_defect)
    )
    assert codes.total() == 120
    assert codes["E-truncated"] > 5
    assert set(codes) <= {"none", "E-truncated", "E-download", "E-open"}
