"""Many workers on one slide table: each slide is done once, none is lost, and the dead leave theirs to the living."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import bounded
import pandas as pd
import pytest
from forked import Ended, Forker, Run, check_files, rows_of
from pyramids import tissue_pixels, write_slide

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("many_workers")]
FEW, MANY = (4, 100), (8, 300)
SIZES = [pytest.param(*FEW, id="4 x 100"), pytest.param(*MANY, id="8 x 300", marks=pytest.mark.long)]


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    with Forker(tmp_path_factory.mktemp("said")) as forker:
        yield forker


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of so many slides of one or a few tiles, each with its own pixels."""
    made = tmp_path_factory.mktemp("slides")
    for index in range(MANY[1]):
        write_slide(made / "all" / f"S{index:03}.svs", tissue_pixels(300, 300, seed=index), levels=(1,))
    (made / "few").mkdir()
    for path in sorted((made / "all").iterdir())[: FEW[1]]:
        (made / "few" / path.name).hardlink_to(path)
    return {FEW[1]: made / "few", MANY[1]: made / "all"}


def start_workers(forker: Forker, slides: Path, out: Path, n_workers: int, **options: object) -> list[Run]:
    """Workers that all begin their command at the same moment."""
    gate = out.with_name("gate")
    options = {"slides": slides, "out": out, "threads": 1, "batch_size": 8, "qc": "false", **options}
    prepare = {"prepare": "forked:wait_for_file", "path": str(gate)}
    runs = [forker.start({**options, "workers": n_workers, "worker": k}, **prepare) for k in range(n_workers)]
    time.sleep(0.2)
    gate.touch()
    return runs


def n_new(ended: Ended) -> int:
    found = re.search(r"\((\d+) new, ", ended.said)
    assert found, ended.said
    return int(found[1])


def check_tables(out: Path, n_slides: int) -> None:
    status = pd.read_csv(out / "status.csv")
    assert status["slide_id"].is_unique
    assert len(status) == n_slides
    assert set(status["status"]) == {"done"}
    assert pd.read_csv(out / "failures.csv").empty


@pytest.mark.parametrize(("n_workers", "n_slides"), SIZES)
def test_every_slide_is_done_by_exactly_one_worker(
    forker: Forker, folders: dict[int, Path], tmp_path: Path, n_workers: int, n_slides: int
):
    out = tmp_path / "out"
    runs = start_workers(forker, folders[n_slides], out, n_workers)
    ended = [run.wait() for run in runs]
    assert [one.code for one in ended] == [0] * n_workers, [one.said for one in ended if one.code]
    shares = [n_new(one) for one in ended]
    assert sum(shares) == n_slides  # none twice, none not at all
    assert min(shares) > 0  # nobody stood aside
    check_files(out, n_slides)
    check_tables(out, n_slides)
    assert len(list(out.glob("*/.work/records/*.json"))) == n_slides
    assert list(out.glob("*/.work/journal/*")) == []


@pytest.mark.parametrize(("n_workers", "n_slides"), SIZES)
def test_the_slides_of_a_killed_worker_are_done_by_the_others(
    forker: Forker, folders: dict[int, Path], tmp_path: Path, n_workers: int, n_slides: int
):
    """One stands still with slides in its hands; the others do all the rest and wait; then it dies."""
    out = tmp_path / "out"
    victim, *others = start_workers(forker, folders[n_slides], out, n_workers, batch_size=2)
    until_files(out, n_slides // 5)
    os.killpg(victim.pid, signal.SIGSTOP)
    n_files = until_files_stay(out)
    assert n_slides // 2 < n_files < n_slides
    assert all(run.is_running() for run in others)  # nobody has left without the rest
    victim.kill()
    assert victim.wait().code == -signal.SIGKILL
    ended = [run.wait() for run in others]
    assert [one.code for one in ended] == [0] * len(others), [one.said for one in ended if one.code]
    assert sum(n_new(one) for one in ended) < n_slides  # the victim had done some
    check_tables(out, n_slides)
    assert len(rows_of(out)) == n_slides
    assert forker.left_behind() == []


def until_files(out: Path, n_files: int) -> None:
    bounded.until(lambda: len(list(out.glob("*/*.h5"))) >= n_files, 180, 0.01)


def until_files_stay(out: Path, seconds: float = 2.0) -> int:
    """Wait until no file has come for so long; returns how many there are."""
    n_files, since = -1, time.monotonic()
    while time.monotonic() - since < seconds:
        now = len(list(out.glob("*/*.h5")))
        if now != n_files:
            n_files, since = now, time.monotonic()
        time.sleep(0.05)
    return n_files


def test_workers_that_do_not_wait_leave_slides_to_those_who_have_them(
    forker: Forker, folders: dict[int, Path], tmp_path: Path
):
    n_workers, n_slides = FEW
    out = tmp_path / "out"
    ended = [run.wait() for run in start_workers(forker, folders[n_slides], out, n_workers, wait="false")]
    assert [one.code for one in ended] == [0] * n_workers  # another worker's slide is no failure
    assert sum(n_new(one) for one in ended) == n_slides
    check_files(out, n_slides)


def test_workers_begin_at_different_slides(forker: Forker, folders: dict[int, Path], tmp_path: Path):
    """The first slide that each of them does is its own share's first: they do not queue for the same one."""
    out = tmp_path / "out"
    n_workers, n_slides = FEW
    runs = start_workers(forker, folders[n_slides], out, n_workers)
    firsts = [f"S{n_slides * k // n_workers:03}" for k in range(n_workers)]
    for run in runs:
        run.wait()
    files = sorted(out.glob("*/*.h5"), key=lambda path: path.stat().st_mtime_ns)
    order = [path.stem for path in files]
    assert max(order.index(first) for first in firsts) < n_slides // 2
