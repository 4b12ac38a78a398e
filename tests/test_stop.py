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

pytestmark = pytest.mark.pipeline
COMMAND = [sys.executable, "-c", "import sys; from mil.cli import main; sys.exit(main(sys.argv[1:]))"]


def start(*words: str) -> AbstractContextManager["subprocess.Popen[str]"]:
    return bounded.started([*COMMAND, *words], stderr=subprocess.PIPE)


def wait_for(pattern: str, folder: Path, seconds: float = 60) -> None:
    bounded.until(lambda: list(folder.rglob(pattern)), seconds, 0.01)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, pytest.param(signal.SIGUSR1, marks=pytest.mark.long)]
)
def test_extract_keeps_its_journal_and_goes_on(tmp_path: Path, number: int):
    for index in range(3):
        write_slide(tmp_path / "slides" / f"S{index}.svs", tissue_pixels(3200, 3200, seed=index))
    words = ["extract", f"slides={tmp_path / 'slides'}", f"out={tmp_path / 'out'}", "batch_size=8", "threads=1"]
    with start(*words) as process:
        wait_for("*.rows", tmp_path / "out")
        time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
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
    from feature_extraction.synthetic.cohort import make_cohort
    from mil.cli import main

    cohort = make_cohort(tmp_path / "cohort", n_patients=9, seed=1)
    assert main(["extract", f"slides={cohort.slides}", f"out={tmp_path / 'features'}"]) == 0
    assert main(["split", f"labels={cohort.labels}", f"out={tmp_path}", "folds=3", "val_fraction=0.5"]) == 0
    words = ["train", "-m", f"features={tmp_path / 'features'}", f"split={tmp_path / 'kfold.csv'}", "fold=0,1,2"]
    words += ["seed=0,1", f"out={tmp_path / 'runs'}", "aggregator=gated_abmil", "trainer.max_epochs=3"]
    with start(*words) as process:
        wait_for("done.json", tmp_path / "runs")  # the first of many cells is done: the signal falls into a later one
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    done = list((tmp_path / "runs").glob("*/done.json"))
    assert process.returncode == 4, errors
    assert 1 <= len(done) < 6
    again = bounded.run([*COMMAND, *words])
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("was done") == len(done)
