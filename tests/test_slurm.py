"""On a real Slurm: an array of tasks shares the slides, whatever is killed, requeued or cancelled meanwhile."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyramids import tissue_pixels, write_slide
from slurm_node import SlurmNode, slurm_fixture  # noqa: F401 - found by pytest under the name slurm
from study_files import write_study

from feature_extraction.claims import is_claimed
from feature_extraction.store import FeatureFile
from mil.cli import main
from mil.resume import CHECKPOINT

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("slurm")]
N_SLIDES = 12
TASKS = 4


def wait_for(is_true: Callable[[], object], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)


class Watch:
    """Each feature file as it was when it was first there, to see that none was made twice."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.seen: dict[str, tuple[int, int]] = {}

    def look(self) -> int:
        for path in self.out.glob("*/*.h5"):
            status = path.stat()
            identity = (status.st_ino, status.st_mtime_ns)
            assert self.seen.setdefault(path.name, identity) == identity, f"{path.name} was made twice"
        return len(self.seen)

    def n_claimed(self) -> int:
        return sum(is_claimed(path) for path in self.out.glob("*/.work/locks/*.lock"))


def task_process(out: Path, task: int) -> int | None:
    """The Python process of an array task, found by its environment; None when it does not run."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # gone, or another user's
        if b"mil" in words and f"out={out}".encode() in words and f"SLURM_ARRAY_TASK_ID={task}".encode() in environment:
            return int(folder.name)
    return None


def log_of(out: Path, job: str, task: int) -> str:
    path = out / "submit" / f"{job}_{task}.log"
    return path.read_text() if path.is_file() else ""


def is_at_work(out: Path, task: int) -> bool:
    """Whether a task has a slide: a lock file is open in its process."""
    process = task_process(out, task)
    with contextlib.suppress(OSError):  # it ends at this moment
        return process is not None and any(".lock" in str(d.readlink()) for d in Path(f"/proc/{process}/fd").iterdir())
    return False


def begins(slurm: SlurmNode, name: str) -> None:
    """A requeued task waits for two minutes by Slurm's own rule; here until the credential of the old one is gone."""
    wait_for(lambda: slurm.states().get(name) == "PENDING")
    slurm.run("scontrol", "update", f"JobId={name}", "StartTime=now+2")


def submit(
    slurm: SlurmNode,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str = "extract",
):
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    assert main([command, "submit", "cluster=slurm", "cluster.cpus=1", "cluster.mem=1G", *words]) == 0
    shown = capsys.readouterr().err
    return shown.rsplit("job ", 1)[1].strip()


def test_tasks_share_the_slides_through_a_kill_a_requeue_and_a_time_limit(
    slurm: SlurmNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    for index in range(N_SLIDES):
        write_slide(tmp_path / "slides" / f"S{index:02}.svs", tissue_pixels(2600, 2600, seed=index))
    out = tmp_path / "out"
    words = [f"slides={tmp_path / 'slides'}", f"out={out}", "batch_size=8", "qc=false", "tiling.step_px=48"]
    job = submit(slurm, [*words, f"cluster.tasks={TASKS}"], monkeypatch, capsys)
    watch = Watch(out)
    wait_for(lambda: all(is_at_work(out, task) for task in range(TASKS)))
    killed = task_process(out, 1)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    slurm.run("scontrol", "requeue", f"{job}_2")
    slurm.run("scancel", "--batch", "--signal=USR1", f"{job}_3")  # what Slurm does two minutes before a time limit
    begins(slurm, f"{job}_2")
    begins(slurm, f"{job}_3")
    wait_for(lambda: watch.look() is not None and not slurm.states())
    assert "ended with code 137" in log_of(out, job, 1)
    for task in (2, 3):
        codes = [line[-1] for line in log_of(out, job, task).splitlines() if " ended with code " in line]
        assert codes == ["4", "0"], log_of(out, job, task)  # stopped and kept its rows, then went on to the end
    assert main(["extract", *words]) == 0  # what the killed task had, if the others were past it
    assert watch.look() == N_SLIDES
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["done"], summary["failed"]) == (N_SLIDES, 0)
    assert summary["new"] <= 1 + 3  # the one in work and those planned ahead when its worker was killed
    for path in out.glob("*/*.h5"):
        assert len(FeatureFile(path).features()) > 0
    assert main(["extract", *words]) == 0
    assert json.loads((out / "summary.json").read_text())["new"] == 0
    assert watch.look() == N_SLIDES
    capsys.readouterr()
    assert main(["extract", "status", f"out={out}", words[0]]) == 0
    assert f"done         {N_SLIDES}" in capsys.readouterr().out


def test_a_cancelled_task_stops_in_time_and_is_not_requeued(
    slurm: SlurmNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    for index in range(3):
        write_slide(tmp_path / "slides" / f"S{index}.svs", tissue_pixels(3200, 3200, seed=index))
    out = tmp_path / "it's here"
    words = [f"slides={tmp_path / 'slides'}", f'out="{out}"', "batch_size=8", "qc=false", "cluster.tasks=1"]
    job = submit(slurm, words, monkeypatch, capsys)
    wait_for(lambda: list(out.glob("*/.work/journal/*.rows")))
    slurm.run("scancel", f"{job}_0")
    slurm.wait_until_empty(120)
    assert "task 0 ended with code 4" in log_of(out, job, 0)  # so before Slurm killed it (KillWait, 30 s)
    assert Watch(out).n_claimed() == 0
    assert len(list(out.glob("*/*.h5"))) < 3


def test_tasks_share_the_cells_of_a_sweep_through_a_kill_a_requeue_and_a_second_submission(
    slurm: SlurmNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    words = [*write_study(tmp_path / "study", n_folds=2), "aggregator=prompt,gated_abmil", "fold=0,1", "checkpoint_s=0"]
    words += ["trainer.accelerator=cpu", "trainer.max_epochs=60"]
    assert main(["train", "-m", *words, "parallel=1", f"out={tmp_path / 'calm'}"]) == 0
    capsys.readouterr()
    out = tmp_path / "out"
    words += [f"out={out}"]
    job = submit(slurm, [*words, "cluster.tasks=2"], monkeypatch, capsys, "sweep")
    wait_for(lambda: len(list(out.glob(f"*/{CHECKPOINT}"))) == 2)
    assert [len(list(out.glob(".locks/*"))), len(list(out.glob("*/done.json")))] == [2, 0]
    killed = task_process(out, 1)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    slurm.run("scancel", "--batch", "--signal=USR1", f"{job}_0")  # what Slurm does two minutes before a time limit
    again = submit(slurm, [*words, "cluster.tasks=1"], monkeypatch, capsys, "sweep")
    begins(slurm, f"{job}_0")
    wait_for(lambda: not slurm.states())
    assert "ended with code 137" in log_of(out, job, 1)
    codes = [line[-1] for line in log_of(out, job, 0).splitlines() if " ended with code " in line]
    assert codes == ["4", "0"], log_of(out, job, 0)
    assert "ended with code 0" in log_of(out, again, 0)
    assert "goes on after epoch" in log_of(out, job, 0) + log_of(out, again, 0)
    capsys.readouterr()
    assert main(["sweep", "status", *words]) == 0, capsys.readouterr().out
    attempts = "".join(path.read_text() for path in (out / "submit").glob("*.log"))
    assert attempts.count(": trained; ") == 4  # each cell was finished once
    for run in (tmp_path / "calm").glob("*/done.json"):
        name = run.parent.name
        assert (out / name / "predictions.csv").read_bytes() == (run.parent / "predictions.csv").read_bytes()
