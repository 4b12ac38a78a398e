"""Staging: bounded copies on a local disk, nothing deleted but them, and never a slide lost to it."""

import errno
import logging
import os
import queue
import resource
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import bounded
import pytest
from pyramids import tissue_pixels, write_slide

from feature_extraction import slide_files
from feature_extraction.claims import claim
from feature_extraction.errors import InputError, SlideError
from feature_extraction.slide import Slide, fingerprint_file
from feature_extraction.slides import SlideRecord
from feature_extraction.staging import Stager

HOLD = """
import sys, time
from pathlib import Path
from feature_extraction.slides import SlideRecord
from feature_extraction.staging import Stager
with Stager(Path(sys.argv[1]), 10**9) as stager:
    print(stager.fetch(SlideRecord(slide_id="S", path=Path(sys.argv[2]))).path, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "slow"
    folder.mkdir()
    return folder


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "fast"
    folder.mkdir()
    return folder


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB of our own."""
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(folder)]
    if mount is None or bounded.run(command).returncode:
        pytest.skip("a tmpfs cannot be mounted here (needs root)")
    yield folder
    bounded.run(["umount", folder], check=True)


def record_of(folder: Path, slide_id: str, n_bytes: int) -> SlideRecord:
    path = folder / f"{slide_id}.svs"
    path.write_bytes(os.urandom(n_bytes))
    return SlideRecord(slide_id=slide_id, path=path, mpp=(0.5, 0.5))


def bytes_below(folder: Path) -> int:
    """Sizes of all files, whatever vanishes meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(parent) / name).stat().st_size
    return total


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_copy_is_the_slide_and_the_source_is_not_touched(source: Path, stage: Path):
    path = write_slide(source / "a.svs", tissue_pixels(600, 500))
    path.chmod(0o755)
    before = snapshot(source)
    record = SlideRecord(slide_id="a", path=path, mpp=(0.5, 0.5))
    with Stager(stage, 10**9) as stager:
        copy = stager.fetch(record)
        assert copy.path != path
        assert copy.path.is_relative_to(stage)
        assert (copy.path.name, copy.slide_id, copy.mpp) == (path.name, "a", (0.5, 0.5))
        assert fingerprint_file(copy.path) == fingerprint_file(path)
        assert copy.path.read_bytes() == path.read_bytes()
        assert not stat.S_IMODE(copy.path.stat().st_mode) & 0o111
        assert stager.fetch(record) == copy
        assert stager.n_in_place == 0
        stager.release("a")
        assert not copy.path.parent.exists()
        stager.release("a")
        stager.release("never seen")
    assert snapshot(source) == before
    assert list(stage.iterdir()) == []


@contextmanager
def in_thread(work: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        bounded.join(thread, seconds=30)


def test_bytes_stay_within_the_bound_at_all_times(source: Path, stage: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slide_files, "CHUNK_BYTES", 1 << 14)
    records = [record_of(source, f"s{number}", 300_000) for number in range(8)]
    fetched: queue.Queue[SlideRecord] = queue.Queue()
    seen: list[int] = []
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.is_set():
            seen.append(bytes_below(stage))

    def plan() -> None:
        for record in records:
            fetched.put(stager.fetch(record))
        is_over.set()

    with Stager(stage, 700_000, should_stop=is_over.is_set) as stager, in_thread(sample), in_thread(plan):
        try:
            copies = [fetched.get(timeout=30) for _ in range(2)]
            with pytest.raises(queue.Empty):
                fetched.get(timeout=0.3)  # the third waits for room
            for record in records:
                copy = copies.pop(0)
                assert copy.path.is_relative_to(stage)
                assert copy.path.read_bytes() == record.path.read_bytes()
                stager.release(copy.slide_id)
                if record is not records[-1] and not copies:
                    copies.append(fetched.get(timeout=30))
        finally:
            is_over.set()
    assert stager.n_in_place == 0
    assert 300_000 <= max(seen) <= 700_000


def test_a_mrxs_slide_comes_with_its_folder_and_nothing_else(source: Path, stage: Path):
    path = source / "m.mrxs"
    path.write_bytes(b"key")
    for name in ("m/Slidedat.ini", "m/Data0000.dat", "m/Index.dat", "other/Slidedat.ini", "other.mrxs"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(name.encode())
    before = snapshot(source)
    with Stager(stage, 10**9) as stager:
        copy = stager.fetch(SlideRecord(slide_id="patient 1", path=path))
        beside = {str(file.relative_to(copy.path.parent)) for file in copy.path.parent.rglob("*") if file.is_file()}
        assert beside == {"m.mrxs", "m/Slidedat.ini", "m/Data0000.dat", "m/Index.dat"}
        assert (copy.path.parent / "m/Index.dat").read_bytes() == b"m/Index.dat"
        stager.release("patient 1")
        assert bytes_below(stage) == 0
    assert snapshot(source) == before


def test_a_vms_slide_comes_with_the_neighbours_it_names(source: Path, stage: Path):
    path = source / "v.vms"
    lines = ["[Virtual Microscope Specimen]", "ImageFile=v.jpg", "ImageFile(1,0)=v(1,0).jpg", "MapFile=../secret.jpg"]
    path.write_text("\r\n".join([*lines, "OptimisationFile=absent.opt", "MacroImage="]))
    for name in ("v.jpg", "v(1,0).jpg", "v2.jpg", "../secret.jpg"):
        (source / name).write_bytes(name.encode())
    with Stager(stage, 10**9) as stager:
        copy = stager.fetch(SlideRecord(slide_id="v", path=path))
        copied = [file for file in stage.rglob("[!.]*") if file.is_file()]
        assert {file.name for file in copied} == {"v.vms", "v.jpg", "v(1,0).jpg"}
        assert {file.parent for file in copied} == {copy.path.parent}


def test_a_real_dicom_folder_has_the_same_pixels_when_staged(shared_data: Path, stage: Path):
    path = shared_data / "slides" / "openslide-python_dicom" / "boxes_0.dcm"
    with Stager(stage, 10**9) as stager:
        copy = stager.fetch(SlideRecord(slide_id="d", path=path))
        assert {file.name for file in copy.path.parent.iterdir()} == {file.name for file in path.parent.iterdir()}
        with Slide("d", path) as there, Slide("d", copy.path) as here:
            assert here.bounds_lv0() == there.bounds_lv0()
            assert (here.read_region((0, 0), 0, (64, 64)) == there.read_region((0, 0), 0, (64, 64))).all()


def test_what_a_killed_run_left_is_removed_and_what_is_foreign_survives(source: Path, stage: Path):
    record = record_of(source, "S", 1000)
    (stage / "thesis.txt").write_text("mine")
    (stage / "promptmil-paper" / "figures").mkdir(parents=True)
    (stage / "promptmil-paper" / "draft.tex").write_text("mine too")
    (stage / "promptmil-link").symlink_to(source)
    foreign = set(stage.iterdir())
    command = [sys.executable, "-c", HOLD, str(stage), str(record.path)]
    with bounded.started(command, stdout=subprocess.PIPE) as run:  # killed at the end
        assert run.stdout is not None
        copy = Path(run.stdout.readline().strip())
        with Stager(stage, 10**9):
            assert copy.is_file()  # its owner lives
    assert copy.is_file()
    with Stager(stage, 10**9):
        assert not copy.parent.parent.exists()
    assert set(stage.iterdir()) == foreign
    assert {path.name for path in (stage / "promptmil-paper").iterdir()} == {"figures", "draft.tex"}
    assert record.path.is_file()


def test_a_leftover_half_removed_is_still_known_as_one(stage: Path):
    half = stage / "promptmil-half"
    (half / "S").mkdir(parents=True)
    with claim(half / ".owner"):
        pass
    (half / "S" / "S.svs").write_bytes(b"rest")
    with Stager(stage, 10**9):
        assert not half.exists()


def test_a_slide_larger_than_the_bound_is_read_in_place_and_logged_once(
    source: Path, stage: Path, caplog: pytest.LogCaptureFixture
):
    exact, large, larger = (record_of(source, f"s{n}", n) for n in (1000, 1001, 5000))
    with caplog.at_level(logging.WARNING), Stager(stage, 1000) as stager:
        assert stager.fetch(large) is large
        assert stager.fetch(larger) is larger
        assert stager.fetch(exact).path.is_relative_to(stage)
        assert stager.n_in_place == 2
        assert bytes_below(stage) == 1000
    assert [entry.getMessage().count("s1001") for entry in caplog.records] == [1]


def test_a_full_disk_means_reading_in_place(source: Path, small_tmpfs: Path, caplog: pytest.LogCaptureFixture):
    first, second = (record_of(source, name, 700_000) for name in "ab")
    with Stager(small_tmpfs, 10**9) as stager:
        assert stager.fetch(first).path.is_relative_to(small_tmpfs)
        assert stager.fetch(second) is second
        assert bytes_below(small_tmpfs) == 700_000
        assert "needs 700,000 bytes, stage.dir has" in caplog.text  # known before a byte is written
        stager.release("a")
        assert stager.fetch(second).path.read_bytes() == second.path.read_bytes()
        assert stager.n_in_place == 1
    assert list(small_tmpfs.iterdir()) == []


def test_a_write_that_fails_midway_leaves_no_part_and_costs_no_slide(source: Path, stage: Path):
    large, small = record_of(source, "large", 300_000), record_of(source, "small", 50_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Stager(stage, 320_000) as stager:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # writes beyond fail as on a full disk
        try:
            assert stager.fetch(large) is large
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert bytes_below(stage) == 0
        assert stager.n_in_place == 1
        assert stager.fetch(small).path.is_relative_to(stage)  # the bytes of the failed copy are free again


def test_without_a_slide_given_back_patience_ends_and_the_slide_is_read_in_place(source: Path, stage: Path):
    first, second = (record_of(source, name, 600) for name in "ab")
    with Stager(stage, 1000, patience_s=0.05) as stager:
        assert stager.fetch(first) is not first
        assert stager.fetch(second) is second
        assert stager.n_in_place == 1


def test_an_idle_device_ends_the_waiting_for_room_and_nothing_else(source: Path, stage: Path):
    first, second, third = (record_of(source, name, 600) for name in "abc")
    fetched: queue.Queue[SlideRecord] = queue.Queue()
    with Stager(stage, 1300, patience_s=3600.0) as stager:
        stager.hurry()
        assert stager.fetch(first) is not first  # there is room: nothing to hurry
        stager.fetch(second)
        with in_thread(lambda: fetched.put(stager.fetch(third))):
            with pytest.raises(queue.Empty):
                fetched.get(timeout=0.2)
            stager.hurry()
            assert fetched.get(timeout=30) is third
        assert stager.n_in_place == 1
        stager.release("a")
        assert stager.fetch(third) is not third


def test_a_stop_ends_waiting_and_copying_without_a_part(source: Path, stage: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slide_files, "CHUNK_BYTES", 1000)
    first, second, third = (record_of(source, name, 6000) for name in "abc")
    asked = 0
    stop_at = 1000

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked >= stop_at

    with Stager(stage, 13_000, should_stop=should_stop) as stager:
        assert stager.fetch(first) is not first
        stop_at = asked + 4  # in the middle of the next copy
        assert stager.fetch(second) is second
        assert bytes_below(stage) == 6000
        asked, stop_at = 0, 1000
        assert stager.fetch(second) is not second
        stop_at = asked + 3  # while the third waits for room
        assert stager.fetch(third) is third
        assert stager.n_in_place == 0


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_three_passing_errors_heal_and_a_fourth_costs_the_slide(
    source: Path, stage: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    record = record_of(source, "S", 1000)
    monkeypatch.setattr(slide_files, "PAUSES_S", (0.0, 0.0, 0.0))
    read, n_errors = slide_files._read_at, 3

    def failing(path: Path, start: int, n_bytes: int) -> bytes:
        nonlocal n_errors
        if n_errors:
            n_errors -= 1
            raise OSError(code, os.strerror(code))
        return read(path, start, n_bytes)

    monkeypatch.setattr(slide_files, "_read_at", failing)
    with Stager(stage, 10**9) as stager:
        assert stager.fetch(record).path.read_bytes() == record.path.read_bytes()
        stager.release("S")
        n_errors = 4
        with pytest.raises(SlideError) as caught:
            stager.fetch(record)
        assert (caught.value.slide_id, caught.value.stage, caught.value.code) == ("S", "open", "E-read")
        assert os.strerror(code) in caught.value.cause
        assert bytes_below(stage) == 0
        assert stager.fetch(record) is not record


def test_a_slide_that_changes_while_copied_fails_by_its_bytes(
    source: Path, stage: Path, monkeypatch: pytest.MonkeyPatch
):
    record = record_of(source, "S", 1000)
    read = slide_files._read_at

    def growing(path: Path, start: int, n_bytes: int) -> bytes:
        data = read(path, start, n_bytes)
        with path.open("ab") as stream:
            stream.write(b"more")
        return data

    monkeypatch.setattr(slide_files, "_read_at", growing)
    with Stager(stage, 10**9) as stager, pytest.raises(SlideError, match=r"1,000 bytes at first.*1,004 now"):
        stager.fetch(record)


def test_what_is_no_regular_file_is_left_to_opening(source: Path, stage: Path):
    os.mkfifo(source / "pipe.svs")  # opening it here would hang for ever
    (source / "folder.svs").mkdir()
    with Stager(stage, 10**9) as stager:
        for name in ("pipe.svs", "folder.svs", "missing.svs"):
            record = SlideRecord(slide_id="S", path=source / name)
            assert stager.fetch(record) is record
        assert stager.n_in_place == 0


def test_a_stage_folder_that_is_missing_or_no_folder_is_bad_input(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for name in ("typo", "file", "file/below"):
        with pytest.raises(InputError, match=r"stage\.dir="), Stager(tmp_path / name, 1000):
            pass
    with pytest.raises(InputError, match=r"stage\.dir=.*no private folder"), Stager(Path("/proc/self"), 1000):
        pass
