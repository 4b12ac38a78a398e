"""The reader process may crash, stall or be killed: only the slide that does it twice is lost."""

import itertools
import os
import shutil
import signal
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from deadly import AbortingPath, DeadlyPath, OnceDeadlyPath, StuckPath
from pyramids import tissue_pixels, write_slide

from feature_extraction.errors import SlideError
from feature_extraction.reader import TileSource
from feature_extraction.reader_process import Answer, Identify, ReadTiles, TilesRead
from feature_extraction.readers import Readers, ReaderSettings
from feature_extraction.slide import fingerprint_file

SIDE = 64
SETTINGS = ReaderSettings(n_threads=2, n_tiles=32, side_px=SIDE, stall_seconds=60.0)
IMPATIENT = ReaderSettings(n_threads=2, n_tiles=32, side_px=SIDE, stall_seconds=2.5)
WAIT = 60


def tiles_of(path: Path, slide_id: str, first: int = 0, n_tiles: int = 8) -> ReadTiles:
    size = (float(SIDE), float(SIDE))
    source = TileSource(slide_id=slide_id, path=path, decoder="openslide", level=0, size_lv0=size, side_px=SIDE)
    coords = np.array([(SIDE * index, 100) for index in range(n_tiles)], dtype=np.int64)
    return ReadTiles(source=source, coords_lv0=coords, first=first)


def good(answer: "Future[Answer]") -> bool:
    read = answer.result(WAIT)
    assert isinstance(read, TilesRead), read
    assert read.error is None, read.error
    return bool(read.is_read.all())


def code(answer: "Future[Answer]") -> str:
    read = answer.result(WAIT)
    assert isinstance(read, SlideError), read
    return read.code


def copy_of(slide: Path) -> Path:
    """Another file: handles are kept by path."""
    return Path(shutil.copy(slide, slide.with_stem("bad")))


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "good.svs", tissue_pixels(900, 600))


def test_tiles_come_into_the_shared_memory(slide: Path):
    with Readers(SETTINGS) as readers:
        assert good(readers.ask(tiles_of(slide, "good", first=4)))
        expected = tissue_pixels(900, 600)[100:164, 64:128]
        assert np.array_equal(readers.tiles[5], expected)
        assert readers.ask(Identify(slide_id="good", path=slide)).result(WAIT) == fingerprint_file(slide)
        assert readers.n_restarts == 0


@pytest.mark.parametrize(("kind", "name"), [(DeadlyPath, "SIGSEGV"), (AbortingPath, "SIGABRT")])
def test_a_slide_that_crashes_the_reader_twice_is_failed_and_the_others_are_read(slide: Path, kind, name: str):
    with Readers(SETTINGS) as readers:
        before = readers.ask(tiles_of(slide, "before"))
        bad = readers.ask(tiles_of(kind(copy_of(slide)), "bad", first=8))
        after = readers.ask(tiles_of(slide, "after", first=16))
        assert code(bad) == "E-crash"
        assert name in bad.result().cause
        assert good(before)
        assert good(after)
        assert good(readers.ask(tiles_of(slide, "later")))
        assert readers.n_restarts == 2


def test_a_crash_that_does_not_come_again_costs_nothing(slide: Path):
    with Readers(SETTINGS) as readers:
        answers = [readers.ask(tiles_of(OnceDeadlyPath(slide), f"S{index}", first=8 * index)) for index in range(3)]
        assert all(good(answer) for answer in answers)
        assert readers.n_restarts == 1


def test_a_slide_that_never_answers_is_failed_within_its_time(slide: Path):
    with Readers(IMPATIENT) as readers:
        good(readers.ask(tiles_of(slide, "warm")))
        begin = time.monotonic()
        stuck = readers.ask(tiles_of(StuckPath(copy_of(slide)), "stuck"))
        other = readers.ask(tiles_of(slide, "other", first=8))
        assert code(stuck) == "E-timeout"
        assert time.monotonic() - begin > 2 * IMPATIENT.stall_seconds  # tried again, alone
        assert good(other)


def test_a_fifo_in_the_place_of_a_slide_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.svs")
    with Readers(SETTINGS) as readers:
        read = readers.ask(tiles_of(tmp_path / "pipe.svs", "pipe")).result(WAIT)
        assert isinstance(read, TilesRead)
        assert isinstance(read.error, SlideError)
        assert read.error.code == "E-open"
        assert readers.n_restarts == 0


def test_a_stopped_reader_is_replaced_even_when_its_pipe_is_full(slide: Path):
    with Readers(IMPATIENT) as readers:
        good(readers.ask(tiles_of(slide, "warm")))
        os.kill(readers._process.pid, signal.SIGSTOP)
        answers = [readers.ask(tiles_of(slide, "S")) for _ in range(400)]  # far more than the pipe holds
        assert all(good(answer) for answer in answers)
        assert readers.n_restarts == 1


def test_a_new_reader_that_does_not_read_its_pipe_either_is_replaced(slide: Path, monkeypatch: pytest.MonkeyPatch):
    """What is asked again must not hold up the thread that notices it."""
    with Readers(IMPATIENT) as readers:
        good(readers.ask(tiles_of(slide, "warm")))
        start, n_starts = readers._start, itertools.count()

        def start_and_stop() -> None:
            start()
            if next(n_starts) == 0:
                os.kill(readers._process.pid, signal.SIGSTOP)

        monkeypatch.setattr(readers, "_start", start_and_stop)
        os.kill(readers._process.pid, signal.SIGSTOP)
        answers = [readers.ask(tiles_of(slide, "S")) for _ in range(400)]
        assert {code(answer) for answer in answers} == {"E-timeout"}
        assert good(readers.ask(tiles_of(slide, "later")))
        assert readers.n_restarts == 2


@pytest.mark.parametrize("pause_ms", [0, 1, 2, 3, 5, 8])
def test_leaving_while_a_dead_reader_is_replaced_ends(slide: Path, pause_ms: int):
    for _ in range(5):
        with Readers(SETTINGS) as readers:
            readers.ask(tiles_of(slide, "S"))
            os.kill(readers._process.pid, signal.SIGKILL)
            time.sleep(pause_ms / 1000)
        assert not readers._process.is_alive()


def test_leaving_between_a_death_and_a_new_reader_waits_for_none(slide: Path, monkeypatch: pytest.MonkeyPatch):
    with Readers(SETTINGS) as readers:
        begun, may_start, start = threading.Event(), threading.Event(), readers._start

        def start_late() -> None:
            begun.set()
            assert may_start.wait(WAIT)
            start()

        monkeypatch.setattr(readers, "_start", start_late)
        os.kill(readers._process.pid, signal.SIGKILL)
        assert begun.wait(WAIT)
        threading.Timer(0.1, may_start.set).start()  # the block is being left by then
    assert not readers._process.is_alive()


def test_a_reader_that_somebody_kills_is_replaced(slide: Path):
    with Readers(SETTINGS) as readers:
        for _ in range(5):
            answers = [readers.ask(tiles_of(slide, f"S{index}", first=8 * index)) for index in range(4)]
            os.kill(readers._process.pid, signal.SIGKILL)
            assert all(good(answer) for answer in answers)


def test_polite_signals_to_the_whole_group_do_not_end_the_reader(slide: Path):
    with Readers(SETTINGS) as readers:
        good(readers.ask(tiles_of(slide, "warm")))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(readers._process.pid, number)
        assert good(readers.ask(tiles_of(slide, "S")))
        assert readers.n_restarts == 0


def test_no_process_stays_behind(slide: Path):
    with Readers(SETTINGS) as readers:
        good(readers.ask(tiles_of(slide, "S")))
        pid = readers._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_damaged_tile_is_an_error_of_that_tile(tmp_path: Path):
    path = write_slide(tmp_path / "cut.svs", tissue_pixels(900, 600))
    content = bytearray(path.read_bytes())
    content[1000:3000] = bytes(2000)
    path.write_bytes(content)
    with Readers(SETTINGS) as readers:
        read = readers.ask(tiles_of(path, "cut")).result(WAIT)
        assert isinstance(read, TilesRead)
        assert not read.is_read.all()
        assert isinstance(read.error, SlideError)
        assert read.error.code == "E-tile"
