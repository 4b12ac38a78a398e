"""A disk that is full, limited or failing, at any moment: a clear message, nothing half published, and it goes on."""

import errno
import gc
import json
import os
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from bounded import until
from forked import Ended, Forker, check_files
from one_extraction import OneExtraction
from pyramids import tissue_pixels, write_slide

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("disk_faults")]
POINTS = 60
N_SLIDES = 3
PAGE = 4096
DISK_BYTES = 4 << 20
FULL = ("No space left on device", "bytes are needed", "File too large")


def namespace() -> list[str]:
    """Words that let the forker mount: none for root, else a namespace of its own."""
    return [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for index in range(N_SLIDES):
        write_slide(folder / f"S{index}.svs", tissue_pixels(500, 500, seed=index), levels=(1,))
    return folder


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    prefix = namespace()
    if prefix and shutil.which(prefix[0]) is None:
        pytest.skip("neither root nor unshare: no small file system can be mounted")
    with Forker(tmp_path_factory.mktemp("said"), prefix) as forker:
        yield forker


@contextmanager
def small_disk(forker: Forker, at: Path, options: str) -> Iterator[Path]:
    """A real file system of a few MiB; the path is as the test sees it, the forker's own view."""
    at.mkdir()
    if forker.ask(do="mount", at=str(at), options=options) != 0:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        yield at if os.geteuid() == 0 else Path(f"/proc/{forker.pid}/root{at}")
    finally:
        forker.ask(do="unmount", at=str(at))


@pytest.fixture
def disk(forker: Forker, tmp_path: Path) -> Iterator[Path]:
    with small_disk(forker, tmp_path / "disk", f"size={DISK_BYTES},mode=1777") as disk:
        yield disk


def free_bytes(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


def fill(disk: Path, free: int) -> Path:
    """Take all but ``free`` bytes."""
    filler = disk / "filler"
    with filler.open("wb") as stream:
        stream.write(b"x" * (free_bytes(disk) - free))
    return filler


def options_of(slides: Path, disk: Path) -> dict[str, object]:
    return {"slides": slides, "out": disk / "out", "batch_size": 4, "threads": 1}


def check_message(ended: Ended, folder: Path, *causes: str) -> None:
    """A refusal says that it is the disk, where, and what to do; there is no trace of a stack."""
    assert ended.code == 3, ended.said
    assert "Traceback" not in ended.said
    lines = [line for line in ended.said.splitlines() if "code=E-disk" in line or line.startswith("error: ")]
    assert lines, ended.said
    for line in lines:
        assert "demo-" in line or str(folder) in line, line
        assert any(cause in line for cause in causes or FULL), line
        assert "space" in line.split("remedy=")[-1], line


def check_done(out: Path) -> None:
    check_files(out, N_SLIDES)
    assert json.loads((out / "summary.json").read_text())["done"] == N_SLIDES
    assert pd.read_csv(out / "status.csv")["status"].tolist() == ["done"] * N_SLIDES
    assert list(out.glob("*/.work/journal/*")) == []


def need_of(forker: Forker, slides: Path, disk: Path) -> int:
    """Bytes that a whole run takes when nothing is in its way, and the most that it had beside them."""
    before = free_bytes(disk)
    assert forker.run(options_of(slides, disk)).code == 0
    check_done(disk / "out")
    need = before - free_bytes(disk)
    largest = max(path.stat().st_size for path in disk.rglob("*.h5"))
    shutil.rmtree(disk / "out")
    return need + 2 * largest


def outcome_at(forker: Forker, slides: Path, disk: Path, free: int, *, goes_on: bool) -> int:
    """Run on ``free`` bytes, then perhaps with all the space; returns the code of the first run."""
    filler = fill(disk, free)
    assert free_bytes(disk) == free
    ended = forker.run(options_of(slides, disk))
    out = disk / "out"
    n_files = check_files(out)
    if ended.code == 0:
        check_done(out)
    else:
        check_message(ended, out)
    filler.unlink()
    if goes_on:
        check_going_on(forker, slides, disk, n_files)
    shutil.rmtree(out, ignore_errors=True)
    return ended.code


def check_going_on(forker: Forker, slides: Path, disk: Path, n_files: int) -> None:
    """The same line completes; what was published is not made again."""
    out = disk / "out"
    kept = {path: path.stat().st_ino for path in out.glob("*/*.h5")}
    again = forker.run(options_of(slides, disk))
    assert again.code == 0, again.said
    check_done(out)
    assert {path: path.stat().st_ino for path in kept} == kept
    assert json.loads((out / "summary.json").read_text())["new"] == N_SLIDES - n_files


@pytest.mark.parametrize(
    "continued",
    [
        pytest.param(POINTS // 4, id="every fourth goes on"),
        pytest.param(POINTS, id="all go on", marks=pytest.mark.long),
    ],
)
def test_a_disk_that_is_full_at_any_of_sixty_points(forker: Forker, slides: Path, disk: Path, continued: int):
    need = need_of(forker, slides, disk)
    assert need < DISK_BYTES / 2
    frees = [round(point * need / (POINTS - 1) / PAGE) * PAGE for point in range(POINTS)]
    codes = {
        free: outcome_at(forker, slides, disk, free, goes_on=point % (POINTS // continued) == 0)
        for point, free in enumerate(frees)
    }
    counted = Counter(codes.values())
    assert set(counted) == {0, 3}
    assert counted[3] > POINTS / 3  # the points lie where it matters
    assert codes[frees[-1]] == 0
    until(lambda: forker.left_behind() == [], 60)  # a killed reader takes a moment to go


@pytest.mark.parametrize("n_inodes", [3, 9, 12, 16])
def test_a_disk_that_takes_no_more_files(forker: Forker, slides: Path, tmp_path: Path, n_inodes: int):
    """Many small files exhaust a disk that has bytes enough."""
    with small_disk(forker, tmp_path / "disk", f"size=8m,nr_inodes={n_inodes},mode=1777") as disk:
        ended = forker.run(options_of(slides, disk))
        check_files(disk / "out")
        check_message(ended, disk / "out")


def limit_files(n_bytes: int, *, also_the_ring: bool) -> None:
    """Let no file grow larger: what ``ulimit -f`` and quotas do."""
    from feature_extraction.readers import Readers

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    begin = Readers.__enter__

    def limited(readers: Readers) -> Readers:
        limit()
        return begin(readers)

    if also_the_ring:
        limit()
    else:
        Readers.__enter__ = limited  # the ring of tiles is a file as well, made before


@pytest.mark.parametrize("n_bytes", [1000, 5000, 13000, 40000])
def test_files_that_may_not_grow_beyond_a_limit(forker: Forker, slides: Path, tmp_path: Path, n_bytes: int):
    options = options_of(slides, tmp_path)
    ended = forker.run(options, prepare=f"{__name__}:limit_files", n_bytes=n_bytes, also_the_ring=False)
    check_files(tmp_path / "out")
    check_message_or(ended, tmp_path / "out", lambda: n_bytes > 20000)
    assert forker.run(options).code == 0
    check_done(tmp_path / "out")


def test_a_log_that_cannot_be_written_is_no_bug(forker: Forker, slides: Path, tmp_path: Path):
    """Standard error is a file on the same disk: of a Slurm task, or of one device of several."""
    options = options_of(slides, tmp_path)
    ended = forker.run(options, prepare=f"{__name__}:limit_files", n_bytes=100, also_the_ring=False)
    assert ended.code == 3


def check_message_or(ended: Ended, out: Path, may_succeed: Callable[[], bool]) -> None:
    if ended.code == 0 and may_succeed():
        check_done(out)
    else:
        check_message(ended, out)


def test_no_room_for_the_ring_of_tiles_ends_with_a_message(forker: Forker, slides: Path, tmp_path: Path):
    options = options_of(slides, tmp_path)
    ended = forker.run(options, prepare=f"{__name__}:limit_files", n_bytes=10000, also_the_ring=True)
    assert ended.code == 3
    assert "error: " in ended.said
    assert "Traceback" not in ended.said


def test_a_folder_that_vanishes_during_the_run_is_said_aloud(forker: Forker, slides: Path, tmp_path: Path):
    options = options_of(slides, tmp_path)
    run = forker.start(options)
    while not list((tmp_path / "out").glob("*/.work/journal/*.rows")):
        time.sleep(0.002)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    ended = run.wait()
    assert ended.code in (0, 3), ended.said
    assert "Traceback" not in ended.said
    assert forker.run(options).code == 0
    check_done(tmp_path / "out")


def test_a_disk_that_may_not_be_written_to_is_refused(forker: Forker, slides: Path, tmp_path: Path):
    with small_disk(forker, tmp_path / "disk", "size=1m,ro") as disk:
        ended = forker.run(options_of(slides, disk))
        assert ended.code == 2
        assert "Traceback" not in ended.said
        assert f"error: out={disk / 'out'}: cannot be written ({disk}: Read-only file system)" in ended.said
        assert "code=E-perm" in ended.said
        assert list(disk.iterdir()) == []


def test_a_slide_whose_disk_cannot_be_asked_for_room_leaves_nothing_open(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An open journal would keep its bytes on the disk, and be a warning here."""

    def fails(_path: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(shutil, "disk_usage", fails)
    outcomes = OneExtraction(tmp_path).run([slides / "S0.svs"])
    assert outcomes["S0"].code == "E-disk"
    assert "Stale file handle" in outcomes["S0"].cause
    gc.collect()
