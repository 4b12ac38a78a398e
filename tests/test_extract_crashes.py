"""Crashes, hangs and read errors in a whole extraction: they cost the slide that is at fault, or nothing."""

import errno
import itertools
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import bounded
import numpy as np
import pytest
from deadly import AbortingPath, DeadlyPath, StuckPath
from forked import Ended, Forker, check_files, rows_of
from late import LatePath, TilesDeadlyPath
from one_extraction import OneExtraction
from pyramids import tissue_pixels, write_slide

from feature_extraction.jpeg_tiff import JpegTileReader, jpeg_levels
from feature_extraction.reader import RETRY_SECONDS, TileReader, TileSource
from feature_extraction.slide import Slide

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("extract_crashes")]
N_KILLS = 30


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    return [write_slide(folder / f"S{k}.svs", tissue_pixels(1400, 1200, seed=k), lossless=k % 2 == 0) for k in range(6)]


@pytest.fixture(scope="module")
def calm(slides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("calm")
    outcomes = OneExtraction(out).run(slides)
    assert {outcome.status for outcome in outcomes.values()} == {"done"}
    return rows_of(out)


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    with Forker(tmp_path_factory.mktemp("said")) as forker:
        yield forker


def copy_of(slide: Path, name: str) -> Path:
    """Another file: handles are kept by path."""
    return Path(shutil.copy(slide, slide.with_stem(name)))


def test_slides_that_crash_or_hang_are_failed_and_the_good_ones_are_done(
    slides: list[Path], calm: dict[str, bytes], tmp_path: Path
):
    bad = [DeadlyPath(copy_of(slides[0], "segv")), AbortingPath(copy_of(slides[0], "abort"))]
    stuck = StuckPath(copy_of(slides[0], "stuck"))
    paths = [slides[0], bad[0], slides[1], stuck, slides[2], bad[1], slides[3]]
    outcomes = OneExtraction(tmp_path, stall_seconds=4.0).run(paths)
    assert {name: o.code for name, o in outcomes.items() if o.status != "done"} == {
        "segv": "E-crash",
        "abort": "E-crash",
        "stuck": "E-timeout",
    }
    assert "SIGSEGV" in outcomes["segv"].cause
    assert "SIGABRT" in outcomes["abort"].cause
    assert rows_of(tmp_path) == {f"S{k}": calm[f"S{k}"] for k in range(4)}
    assert list(tmp_path.glob("*/.work/journal/*")) == []


def test_one_crash_at_any_opening_of_a_slide_costs_nothing(slides: list[Path], calm: dict[str, bytes], tmp_path: Path):
    """Of the plan, of the comparison of decoders, of the reading of tiles."""
    paths = [LatePath(shutil.copy(slides[1], tmp_path / f"late{n}.svs")) for n in (1, 2, 4, 6, 8)]
    extraction = OneExtraction(tmp_path / "out")
    for path in paths:  # each alone: beside others it is their crash too
        extraction.run([path])
    assert {name: outcome.status for name, outcome in extraction.outcomes.items()} == {p.stem: "done" for p in paths}
    assert set(rows_of(tmp_path / "out").values()) == {calm["S1"]}
    assert all(Path(f"{path}.openings").stat().st_size > int(path.stem[4:]) for path in paths)  # each has crashed


def test_a_slide_that_crashes_while_its_tiles_are_read_is_failed_alone(
    slides: list[Path], calm: dict[str, bytes], tmp_path: Path
):
    path = TilesDeadlyPath(shutil.copy(slides[1], tmp_path / "late.svs"))
    outcomes = OneExtraction(tmp_path / "out").run([slides[0], path, slides[2]])
    assert outcomes["late"].code == "E-crash"
    assert "SIGBUS" in outcomes["late"].cause
    assert rows_of(tmp_path / "out") == {name: calm[name] for name in ("S0", "S2")}


def test_thirty_kills_of_the_reader_change_nothing(slides: list[Path], calm: dict[str, bytes], tmp_path: Path):
    """As a system short of memory kills: at random, again and again while the same slides are open."""
    generator = random.Random(11)
    n_kills = n_rounds = 0
    while n_kills < N_KILLS:
        out = tmp_path / f"round{n_rounds}"
        extraction = OneExtraction(out, batch_size=4)
        with killing(extraction, generator) as killed:
            outcomes = extraction.run(slides)
        assert [str(outcome) for outcome in outcomes.values() if outcome.status != "done"] == []
        assert rows_of(out) == calm
        assert len(killed) == extraction.extractor._readers.n_restarts
        n_kills, n_rounds = n_kills + len(killed), n_rounds + 1
    assert n_kills / n_rounds > 5  # many in each


@contextmanager
def killing(extraction: OneExtraction, generator: random.Random) -> Iterator[list[int]]:
    """Kill the reader again and again, each time after every slide that was open has had an answer."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        open_before: tuple[int, dict[str, set[int]]] = 0, {}
        while not over.wait(generator.uniform(0, 0.02)):
            readers = getattr(extraction.extractor, "_readers", None)
            if not hasattr(readers, "_process"):
                continue
            with readers._lock:
                pid = readers._process.pid
                slide_ids = {asked.request.slide_id for asked in readers._asked.values()}
                now = {slide_id: set(readers._open_of(slide_id)) for slide_id in slide_ids}
            if pid in killed or not now:
                continue
            if pid != open_before[0]:
                open_before = pid, now
            if killed and any(old <= now.get(slide_id, set()) for slide_id, old in open_before[1].items()):
                continue
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        over.set()
        bounded.join(killer)


def impatient(**arguments: object) -> Callable[[], object]:
    """Prepare a run whose calls fail, and which waits hardly between one try and the next."""
    from nth_call import fail_calls

    import feature_extraction.reader

    feature_extraction.reader.RETRY_SECONDS = tuple(0.001 for _ in RETRY_SECONDS)
    return fail_calls(**arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["direct", "openslide"])
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small slide that is read in this way."""
    folder = tmp_path_factory.mktemp(request.param)
    write_slide(folder / "S.svs", tissue_pixels(700, 700), levels=(1,), lossless=request.param == "openslide")
    return folder


STRIDES = [pytest.param(9, id="every ninth"), pytest.param(1, id="every", marks=pytest.mark.long)]


def read_errors(
    forker: Forker, folder: Path, out: Path, stride: int, n_errors: int
) -> Iterator[tuple[Ended, Callable[[], Ended]]]:
    """Runs whose n-th read of the slide fails, for growing n until there is none, each with how to run again."""
    options = {"slides": folder, "out": out, "batch_size": 4, "threads": 1, "qc": "false"}
    for n in itertools.count(1, stride):
        calls = {"folder": str(folder), "n": n, "last": n + n_errors - 1, "code": errno.EIO, "spared": ["scandir"]}
        ended = forker.run(options, prepare="test_extract_crashes:impatient", **calls)
        assert isinstance(ended.report, dict)
        check_files(out)
        yield ended, lambda: forker.run(options)
        shutil.rmtree(out)
        if ended.report["n_calls"] < n:
            assert n > 2 * stride
            return


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("n_errors", [1, len(RETRY_SECONDS)])
def test_an_error_of_the_slides_disk_that_passes_costs_nothing(
    forker: Forker, one: Path, tmp_path: Path, n_errors: int, stride: int
):
    """A network file system that fails over says EIO for a moment."""
    for ended, _ in read_errors(forker, one, tmp_path / "out", stride, n_errors):
        assert ended.code == 0, ended.said


@pytest.mark.parametrize("stride", STRIDES)
def test_an_error_of_the_slides_disk_that_stays_fails_the_slide_until_it_is_gone(
    forker: Forker, one: Path, tmp_path: Path, stride: int
):
    seen: set[int] = set()
    for ended, again in read_errors(forker, one, tmp_path / "out", stride, 10**9):
        seen.add(ended.code)
        assert ended.code == 0 or "stage=open cause=S.svs cannot be read: Input/output error" in ended.said
        assert ended.code == 0 or "code=E-read" in ended.said
        assert again().code == 0
    assert seen == {0, 3}


def test_threads_that_want_one_jpeg_tile_all_retry_what_one_of_them_could_not_read(tmp_path: Path):
    """Four threads, tiles that share JPEG tiles, and one error that passes."""
    path = write_slide(tmp_path / "S.svs", tissue_pixels(700, 700), levels=(1,), lossless=False)
    source = TileSource(slide_id="S", path=path, decoder="direct", level=0, size_lv0=(64.0, 64.0), side_px=64)
    (level,) = jpeg_levels(path, [(700, 700)])
    assert level is not None
    reader, begun, second = TileReader(), threading.Event(), threading.Event()
    plain = JpegTileReader._decode

    def fails_once(self: JpegTileReader, index: int) -> np.ndarray:
        if begun.is_set():
            return plain(self, index)
        begun.set()
        assert second.wait(120)  # the other thread waits for this very tile by now
        time.sleep(0.05)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as threads:
        patch.setattr(JpegTileReader, "_decode", fails_once)
        first = threads.submit(reader.read, source, (0, 0))
        assert begun.wait(120)
        other = threads.submit(reader.read, source, (64, 0))
        second.set()
        assert np.array_equal(first.result(60), tissue_of(path, 0))
        assert np.array_equal(other.result(60), tissue_of(path, 64))


def tissue_of(path: Path, x: int) -> np.ndarray:
    with Slide("S", path) as slide:
        return slide.read_region((x, 0), 0, (64, 64))
