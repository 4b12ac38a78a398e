"""Polite signals at any moment: the run stops within seconds, says so with 4, leaves no process, and goes on later."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bounded
import pytest
from bounded import session_of, until
from forked import Forker, Run, check_files, rows_of
from pyramids import tissue_pixels, write_slide

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("extract_signals")]
POLITE = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
N_SLIDES = 3
STOPPED = 4


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    with Forker(tmp_path_factory.mktemp("said")) as forker:
        yield forker


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for index in range(N_SLIDES):
        write_slide(folder / f"S{index}.svs", tissue_pixels(1700, 1700, seed=index))
    return folder


def options_of(slides: Path, out: Path) -> dict[str, object]:
    return {"slides": slides, "out": out, "batch_size": 4, "threads": 1, "mix_slides": "false"}


def listens(run: Run) -> bool:
    """Whether the command has begun to listen to signals: before, each does what it does to any process."""
    (line,) = (line for line in Path(f"/proc/{run.pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)


@pytest.mark.parametrize("n_signals", [pytest.param(20, id="20"), pytest.param(200, id="200", marks=pytest.mark.long)])
def test_a_signal_at_any_moment_stops_the_run_and_the_next_goes_on(
    forker: Forker, slides: Path, tmp_path: Path, n_signals: int
):
    generator = random.Random(5)
    begin = time.monotonic()
    assert forker.run(options_of(slides, tmp_path / "calm")).code == 0
    longest = (time.monotonic() - begin) / 3
    calm = rows_of(tmp_path / "calm")
    sent = n_rounds = n_stopped = 0
    while sent < n_signals:
        out = tmp_path / f"round{n_rounds}"
        n_rounds += 1
        code = STOPPED
        while code == STOPPED:  # each run goes on where the last one was stopped
            run = forker.start(options_of(slides, out), whole=True)
            until(lambda run=run: listens(run))
            time.sleep(generator.uniform(0, longest))
            if sent < n_signals and len(list(out.glob("*/*.h5"))) < N_SLIDES:
                os.kill(run.pid, POLITE[sent % len(POLITE)])
                sent += 1
            ended = run.wait()
            code = ended.code
            n_stopped += code == STOPPED
            assert code in (0, STOPPED), ended.said
            assert "Traceback" not in ended.said
            check_files(out)
            assert forker.left_behind() == []
        assert rows_of(out) == calm
    assert n_stopped > n_signals / 2


def signal_while_writing(number: int) -> None:
    """Prepare a run that gets a signal when its slides are done and its tables are to be written."""
    from feature_extraction.commands import extract

    write = extract.write_outcomes

    def interrupted(*arguments: object) -> None:
        os.kill(os.getpid(), number)
        write(*arguments)  # type: ignore[arg-type]

    extract.write_outcomes = interrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_while_the_tables_are_written_is_no_crash(forker: Forker, slides: Path, tmp_path: Path, number: int):
    options = options_of(slides, tmp_path / "out")
    run = forker.start(options, whole=True, prepare="test_extract_signals:signal_while_writing", number=number)
    assert run.wait().code in (0, STOPPED)
    check_files(tmp_path / "out", N_SLIDES)
    assert forker.run(options).code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_run_at_once(forker: Forker, slides: Path, tmp_path: Path, number: int):
    """Also where the first would wait: for a slide that another worker has."""
    options = options_of(slides, tmp_path / "out")
    run = forker.start(options, whole=True)
    until(lambda: len(list((tmp_path / "out").glob("*/.work/journal/*.rows"))) > 0)
    for _ in range(2):
        os.kill(run.pid, number)
    ended = run.wait()
    assert ended.code == STOPPED, ended.said
    assert "Traceback" not in ended.said
    assert forker.left_behind() == []
    assert forker.run(options).code == 0
    check_files(tmp_path / "out", N_SLIDES)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_reader_ends_with_its_run(slides: Path, tmp_path: Path, number: int):
    """As users start it: the reader is forked from a server that has imported everything."""
    words = ["extract", *(f"{key}={value}" for key, value in options_of(slides, tmp_path / "out").items())]
    command = [sys.executable, "-c", "import sys; from mil.cli import main; sys.exit(main(sys.argv[1:]))", *words]
    with bounded.started(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        until(lambda: len(list((tmp_path / "out").glob("*/.work/journal/*.rows"))) > 0, 120)
        assert len(session_of(process.pid)) >= 3  # the run, the server, the reader
        process.send_signal(number)
        process.wait(120)
        until(lambda: session_of(process.pid) == [], 120)
