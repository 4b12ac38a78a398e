"""Signals: the command stops, says so with exit code 4, and the same line goes on."""

import json
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import bounded
import pytest
from pyramids import tissue_pixels, write_slide
from study_files import write_study

pytestmark = pytest.mark.pipeline
COMMAND = [sys.executable, "-c", "import sys; from mil.cli import main; sys.exit(main(sys.argv[1:]))"]


def start(*words: str) -> AbstractContextManager["subprocess.Popen[str]"]:
    return bounded.started([*COMMAND, *words], stderr=subprocess.PIPE)


def wait_for(pattern: str, folder: Path, process: "subprocess.Popen[str]", seconds: float = 120) -> None:
    """Wait for a file of a command, and fail at once when the command ends before it wrote one."""
    bounded.until(lambda: process.poll() is not None or list(folder.rglob(pattern)), seconds, 0.01)
    assert process.stderr is not None
    assert process.poll() is None, process.stderr.read()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, pytest.param(signal.SIGUSR1, marks=pytest.mark.long)]
)
def test_extract_keeps_its_journal_and_goes_on(tmp_path: Path, number: int):
    for index in range(3):
        write_slide(tmp_path / "slides" / f"S{index}.svs", tissue_pixels(2200, 2200, seed=index))
    words = ["extract", f"slides={tmp_path / 'slides'}", f"out={tmp_path / 'out'}", "batch_size=8", "threads=1"]
    with start(*words) as process:
        wait_for("*.rows", tmp_path / "out", process)
        time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 4, errors
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    counted = ("done", "empty", "failed", "elsewhere", "stopped", "not_started")
    assert sum(summary[key] for key in counted) == summary["requested"] == 3
    assert summary["done"] < 3
    again = bounded.run([*COMMAND, *words])
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["done"] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_sweep_stops_as_a_whole_and_goes_on(tmp_path: Path, number: int):
    words = ["train", "-m", *write_study(tmp_path / "study", n_folds=3), "fold=0,1,2", "seed=0,1"]
    words += [f"out={tmp_path / 'runs'}", "aggregator=gated_abmil"]
    with start(*words) as process:
        wait_for("done.json", tmp_path / "runs", process)  # the first cell is done: the signal falls into a later one
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    done = list((tmp_path / "runs").glob("*/done.json"))
    assert process.returncode == 4, errors
    assert 1 <= len(done) < 6
    again = bounded.run([*COMMAND, *words])
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("was done") == len(done)
