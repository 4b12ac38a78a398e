"""Preflight: whatever is wrong with a slide file is named with its bytes, and a whole slide is never accused."""

import os
import random
import re
import signal
import socket
import tempfile
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from pyramids import tissue_pixels, write_slide
from tiff_slides import MORE_WRITERS, WRITERS, named, write_aperio

from feature_extraction.preflight import UNFINISHED_SUFFIXES, explain_refusal, find_defect

N_TRUNCATIONS = 75  # of each of the four kinds


@pytest.fixture(autouse=True)
def _ends_instead_of_hanging():
    def stop(number, frame):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("writer", [*WRITERS, *MORE_WRITERS])
def test_a_whole_slide_is_never_accused(tmp_path: Path, writer: str):
    path = (WRITERS | MORE_WRITERS)[writer](tmp_path / "s.svs")
    assert openslide.OpenSlide(path).read_region((300, 300), 0, (64, 64)).getpixel((9, 9))[3] == 255
    assert find_defect(path) is None


@pytest.mark.parametrize("writer", WRITERS)
def test_every_truncation_is_named_with_its_bytes(tmp_path: Path, writer: str):
    path = WRITERS[writer](tmp_path / "s.svs")
    content = path.read_bytes()
    generator = random.Random(writer)
    cuts = [1, 3, 7, 15, 16, 17, 60, len(content) - 1, len(content) - 2, len(content) - 9]
    cuts += [generator.randrange(1, len(content)) for _ in range(N_TRUNCATIONS - len(cuts))]
    for cut in cuts:
        path.write_bytes(content[:cut])
        defect = named(path)
        assert defect.code == "E-truncated", (cut, defect)
        assert f"{cut:,} bytes" in defect.cause
        if cut > 16:
            end, lost = (
                int(re.search(pattern, defect.cause)[1].replace(",", ""))
                for pattern in (r"ends at byte ([\d,]+)", r"\(([\d,]+) bytes")
            )
            assert cut < end <= len(content)
            assert lost == end - cut
            assert f"{100 * lost / end:.3g} % missing" in defect.cause
            if "or later" not in defect.cause:
                assert end == len(content)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_download_that_stopped_in_a_preallocated_file_is_named_with_its_first_zero(tmp_path: Path, writer: str):
    path = WRITERS[writer](tmp_path / "s.svs")
    content = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        last = max(offset for page in tiff.pages for offset in page.dataoffsets)
    generator = random.Random(writer)
    for start in [0, 4, 100, last, *(generator.randrange(1, last) for _ in range(40))]:
        path.write_bytes(content[:start] + bytes(len(content) - start))
        defect = named(path)
        assert defect.code == "E-download", (start, defect)
        if "from byte" in defect.cause:
            begin = int(re.search(r"from byte ([\d,]+)", defect.cause)[1].replace(",", ""))
            assert begin == len(content[:start].rstrip(b"\0"))


def test_a_download_that_stopped_behind_the_only_directory_is_named(tmp_path: Path):
    path = write_slide(tmp_path / "s.svs", tissue_pixels(900, 900), levels=(1,))
    content = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages[0].offset + 2 + 12 * len(tiff.pages[0].tags) + 4
    path.write_bytes(content[:start] + bytes(len(content) - start))
    assert "zeros where a list of tiles belongs" in named(path).cause


def test_a_hole_among_very_many_tiles_is_found_by_the_file_systems_own_word(tmp_path: Path):
    path = tmp_path / "s.tiff"
    tile = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write((tile for _ in range(400)), shape=(5120, 5120, 3), dtype="uint8", tile=(256, 256), photometric="rgb",
                   compression="jpeg", metadata=None)  # fmt: skip
    with tifffile.TiffFile(path) as tiff:
        first, second = tiff.pages[0].dataoffsets[45], tiff.pages[0].dataoffsets[47]  # between two of the 32 places
    content = path.read_bytes()
    start, end = (first + 4095) // 4096 * 4096, second // 4096 * 4096
    path.unlink()
    with path.open("wb") as stream:
        stream.write(content[:start])
        stream.seek(end)
        stream.write(content[end:])
    if path.stat().st_blocks * 512 >= len(content):
        pytest.skip("this file system keeps no holes")
    defect = named(path)
    assert f"from byte {start:,}" in defect.cause
    assert "on the disk" in defect.cause
    assert defect.code == "E-download"


def test_tiles_that_the_scanner_left_out_are_no_defect(tmp_path: Path):
    path = write_aperio(tmp_path / "s.svs")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[0].tags[325]
        assert tag.dtype == 4
        for index in (0, 4, tag.count - 1):
            content[tag.valueoffset + 4 * index : tag.valueoffset + 4 * index + 4] = bytes(4)
        nowhere = tiff.pages[0].tags[324].valueoffset + 4 * 4
        content[nowhere : nowhere + 4] = b"\xff\xff\xff\xff"  # nobody goes there
    path.write_bytes(content)
    openslide.OpenSlide(path).read_region((0, 0), 0, (700, 600))
    assert find_defect(path) is None


def test_black_pixels_without_compression_are_no_defect(tmp_path: Path):
    path = tmp_path / "s.tiff"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(np.zeros((600, 700, 3), np.uint8), tile=(256, 256), photometric="rgb", metadata=None)
    assert openslide.OpenSlide(path).dimensions == (700, 600)
    assert find_defect(path) is None


def test_real_slides_are_never_accused(shared_data: Path):
    paths = [path for folder in ("slides", "cohort/slides", "cohort/awkward")
             for path in (shared_data / folder).rglob("*") if path.is_file()]  # fmt: skip
    n_opened = 0
    for path in paths:
        try:
            openslide.OpenSlide(path).close()
        except openslide.OpenSlideError:
            continue
        n_opened += 1
        assert find_defect(path) is None, path.name
    assert n_opened >= 70
    assert named(shared_data / "cohort" / "awkward" / "D-AWK-truncated.svs").code == "E-truncated"


def test_truncations_and_holes_of_real_slides_are_named(shared_data: Path, tmp_path: Path):
    for name in ("CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs", "hamamatsu_test3-DAPI-2-387.ndpi"):
        content = (shared_data / "slides" / name).read_bytes()
        path = tmp_path / name
        for share in (0.001, 0.03, 0.3, 0.5, 0.7, 0.95):
            cut = int(share * len(content))
            path.write_bytes(content[:cut])
            assert named(path).code == "E-truncated", (name, share)
            path.write_bytes(content[:cut] + bytes(len(content) - cut))
            assert named(path).code == "E-download", (name, share)
    half = len(content) // 2  # of the NDPI: a hole inside its first level, directories whole
    path.write_bytes(content[: half - 50_000] + bytes(100_000) + content[half + 50_000 :])
    defect = named(path)
    assert defect.code == "E-download"
    assert f"from byte {half - 50_000:,}" in defect.cause


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # the whole path may be longer than a socket's name
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda path: None, "E-missing", "no such file: s.svs"),
        (lambda path: path.write_bytes(b""), "E-empty", "s.svs is empty (0 bytes)"),
        (lambda path: path.mkdir(), "E-open", "s.svs is a folder"),
        (os.mkfifo, "E-open", "s.svs is a FIFO"),
        (make_socket, "E-open", "s.svs is a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "E-open", "s.svs is a device"),
        (lambda path: path.symlink_to("gone.svs"), "E-missing", "s.svs is a link to gone.svs, which is not there"),
        (lambda path: path.symlink_to(path), "E-missing", "no such file: s.svs (Too many levels"),
        (lambda path: path.write_bytes(bytes(99_999)), "E-download", "its first 65,536 bytes are zeros"),
        (lambda path: path.write_bytes(bytes(20)), "E-download", "its first 20 bytes are zeros"),
        (lambda path: path.write_bytes(b"II*"), "E-truncated", "it has 3 bytes"),
        (lambda path: path.write_bytes(b"II*\0" + bytes(9000)), "E-download", "zeros where a directory belongs"),
    ],
)
def test_what_is_no_slide_is_named(tmp_path: Path, make, code: str, words: str):
    make(tmp_path / "s.svs")
    defect = named(tmp_path / "s.svs")
    assert defect.code == code
    assert words in defect.cause


@pytest.mark.parametrize(("name", "code"), [("a" * 300, "E-missing"), ("a\0b", "E-missing"), ("s.svs/x", "E-missing")])
def test_a_name_that_can_be_no_file_is_named(tmp_path: Path, name: str, code: str):
    (tmp_path / "s.svs").touch()
    assert named(tmp_path / name).code == code


def test_a_link_to_a_whole_slide_is_a_slide(tmp_path: Path):
    (tmp_path / "link.svs").symlink_to(write_aperio(tmp_path / "s.svs"))
    assert find_defect(tmp_path / "link.svs") is None


@pytest.mark.parametrize("suffix", [*sorted(UNFINISHED_SUFFIXES), ".CRDOWNLOAD"])
def test_an_unfinished_download_is_known_by_its_name(tmp_path: Path, suffix: str):
    path = write_aperio(tmp_path / "s.svs").rename(tmp_path / f"s.svs{suffix}")
    defect = named(path)
    assert defect.code == "E-download"
    assert suffix in defect.cause


def test_an_unfinished_download_is_known_by_its_sidecar(tmp_path: Path):
    path = write_aperio(tmp_path / "s.svs")
    (tmp_path / "s.svs.part").touch()  # of another try, perhaps: proves nothing
    assert find_defect(path) is None
    (tmp_path / "s.svs.aria2").touch()
    assert named(path).code == "E-download"


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_file_that_may_not_be_read_is_named(is_folder: bool):
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, which lies in folders closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        path = write_aperio(folder / "inner" / "s.svs")
        (path.parent if is_folder else path).chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            defect = named(path)
        finally:
            os.seteuid(user)
            path.parent.chmod(0o755)
    assert defect.code == "E-perm"
    assert "s.svs may not be read" in defect.cause


def test_mirax_without_its_folder_is_named(tmp_path: Path):
    path = tmp_path / "s.mrxs"
    path.touch()  # its content is of no use to anybody
    assert (named(path).code, "s/Slidedat.ini is missing" in named(path).cause) == ("E-companion", True)
    (tmp_path / "s").mkdir()
    text = "\ufeff[GENERAL]\r\nSLIDE_ID = 1\r\n[DATAFILE]\r\nFILE_COUNT = 2\r\nFILE_0 = Data0000.dat\r\n"
    text += "FILE_1 = Data0001.dat\r\n"
    (tmp_path / "s" / "Slidedat.ini").write_text(text + "[OTHER]\r\nFILE_9 = never.dat\r\n", encoding="utf-8")
    (tmp_path / "s" / "Data0000.dat").touch()
    assert "s/Data0001.dat is missing" in named(path).cause
    (tmp_path / "s" / "Data0001.dat").touch()
    assert find_defect(path) is None


def test_vms_without_one_of_its_files_is_named(tmp_path: Path):
    path = tmp_path / "s.vms"
    path.write_text("[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=a.jpg\nImageFile(1,0)=\nMapFile=map.jpg\n")
    (tmp_path / "a.jpg").touch()
    assert "map.jpg is missing" in named(path).cause
    (tmp_path / "map.jpg").touch()
    assert find_defect(path) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"  <!DOCTYPE html><html>Please log in</html>", "a web page"),
        (b'{"error": "not authorised"}', "JSON text"),
        (b"PK\x03\x04" + bytes(60), "a zip archive: unpack it"),
        (b"\xff\xd8\xff\xe0" + bytes(60), "a JPEG picture"),
        (b"not a slide at all, " * 9, "plain text"),
        (random.Random(0).randbytes(5000), "OpenSlide does not read it (Unsupported)"),
    ],
)
def test_what_openslide_refuses_is_described(tmp_path: Path, content: bytes, words: str):
    path = tmp_path / "s.svs"
    path.write_bytes(content)
    assert find_defect(path) is None
    with pytest.raises(openslide.OpenSlideError):
        openslide.OpenSlide(path)
    defect = explain_refusal(path, "Unsupported")
    assert words in defect.cause
    assert defect.code == "E-open"
