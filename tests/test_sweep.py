"""Sweeps: how far they are, what is claimed elsewhere, what a full disk leaves, and that kills change nothing."""

import errno
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import bounded
import pytest
from omegaconf import DictConfig, OmegaConf
from study_files import write_study

import mil.commands.sweep_run
import mil.run_writer
from feature_extraction.claims import claim
from mil.cli import main
from mil.runs import find_runs, lock_of
from mil.sweep_words import composed_cells

CELLS = ("aggregator=mean_linear,gated_abmil", "fold=0,1")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    words = write_study(tmp_path_factory.mktemp("study"), n_folds=2)
    return [*words, "trainer.max_epochs=2", "trainer.accelerator=cpu", "parallel=1"]


def status(words: list[str], out: Path) -> tuple[int, dict[str, object]]:
    code = main(["sweep", "status", *words, f"out={out}"])
    return code, json.loads((out / "summary.json").read_text())


def states(summary: dict[str, object]) -> dict[str, str]:
    return {cell["name"]: cell["state"] for cell in summary["cells"]}


def cell_of(summary: dict[str, object], name: str) -> str:
    return next(cell["cell"] for cell in summary["cells"] if cell["name"] == name)


def test_status_tells_done_running_failed_stopped_and_missing(
    study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    words = [*study, "fold=0,1", "seed=0,1", "aggregator=gated_abmil"]
    one = [*study, "aggregator=gated_abmil", "checkpoint_s=0", f"out={tmp_path}"]
    assert status(words, tmp_path)[0] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert main(["train", *one]) == 0

    def end(error: BaseException) -> None:
        def ends(*_: object) -> None:
            raise error

        monkeypatch.setattr(mil.run_writer, "write_model", ends)

    end(OSError(errno.ENOSPC, "No space left on device", "model.safetensors"))
    assert main(["train", *one, "fold=1"]) == 3
    end(KeyboardInterrupt())
    assert main(["train", *one, "seed=1"]) == 4
    monkeypatch.undo()
    running = cell_of(status(words, tmp_path)[1], "gated_abmil fold 1 seed 1")
    capsys.readouterr()
    with claim(lock_of(tmp_path, running)) as is_ours:
        assert is_ours
        code, summary = status(words, tmp_path)
    said = capsys.readouterr().out
    assert code == 3
    assert states(summary) == {
        "gated_abmil fold 0 seed 0": "done",
        "gated_abmil fold 0 seed 1": "stopped",
        "gated_abmil fold 1 seed 0": "failed",
        "gated_abmil fold 1 seed 1": "running",
    }
    assert "4 cells: 1 done, 1 running, 1 failed, 1 stopped, 0 missing" in said
    assert {key: summary[key] for key in ("asked", "done", "running", "failed", "stopped", "missing")} == {
        "asked": 4,
        **dict.fromkeys(("done", "running", "failed", "stopped"), 1),
        "missing": 0,
    }
    assert "OSError: [Errno 28] No space left on device" in said
    assert "2 of 2" in said
    assert states(status(words, tmp_path)[1])["gated_abmil fold 1 seed 1"] == "missing"
    assert main(["train", "-m", *words, f"out={tmp_path}"]) == 0
    assert status(words, tmp_path)[0] == 0
    assert list((tmp_path / ".failed").iterdir()) == []
    assert len(find_runs(tmp_path)) == 4


def test_an_attempt_that_starts_forgets_how_the_last_one_failed(
    study: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def ends(*_: object) -> None:
        raise error

    monkeypatch.setattr(mil.run_writer, "write_model", ends)
    words = [*study, "aggregator=mean_linear", f"out={tmp_path}"]
    error: BaseException = RuntimeError("a fault of ours")
    assert main(["train", *words]) == 1
    (record,) = (tmp_path / ".failed").iterdir()
    assert json.loads(record.read_text()) == {
        "cell": record.stem,
        "error": "RuntimeError",
        "message": "a fault of ours",
    }
    error = KeyboardInterrupt()
    assert main(["train", *words]) == 4
    assert not record.exists()


def test_status_says_what_is_wrong_with_inputs_that_do_not_belong_together(
    study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code, summary = status([*study, "fold=0,7"], tmp_path)
    assert (code, summary["missing"], summary["failed"]) == (3, 1, 1)
    assert "fold=7: this split has folds 0 to 1" in capsys.readouterr().out


def test_a_line_that_does_not_compose_and_two_folders_are_refused(
    study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for words, message in (
        (["no_such_key=1,2", f"out={tmp_path}"], "no_such_key"),
        (["aggregator=none,prompt", f"out={tmp_path}"], "aggregator/none"),
        ([f"out={tmp_path}/a,{tmp_path}/b"], "expected one folder for a sweep"),
        ([], "needs out=…"),
    ):
        assert main(["sweep", "status", *study, *words]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["fold=range(3)", "aggregator=prompt,abmil", "trainer.max_epochs=3", "~filter_nontask"],
        ["features=[a,b],c", "+aggregator.scales=1,2", "fold=1", "fold=0", "bank=null,'x y'"],
        ["+experiment=few_shot_curve", "splits=s", "shots=1,2", "fold=0"],
    ],
)
def test_cells_are_those_that_hydra_composes_in_its_order(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    found: list[DictConfig] = []
    monkeypatch.setattr(mil.commands.sweep_run, "run_sweep", lambda _, configs: found.extend(configs) or [0])
    line = ["-m", "features=f", "split=s", "out=o", *words]
    assert main(["train", *line, "hydra.job.name=hydras"]) == 0  # with a word for Hydra itself, Hydra composes
    expected = [OmegaConf.to_container(config) for config in found]
    assert len(expected) > 4
    assert [OmegaConf.to_container(cell) for cell in composed_cells("train", line)] == expected


@pytest.fixture
def elsewhere(study: list[str], tmp_path: Path) -> Iterator[ExitStack]:
    """A sweep with the claim of one of its cells held by somebody else."""
    cell = cell_of(status([*study, *CELLS], tmp_path)[1], "mean_linear fold 1 seed 0")
    with ExitStack() as owner:
        assert owner.enter_context(claim(lock_of(tmp_path, cell)))
        yield owner


def test_a_cell_of_another_process_does_not_stop_the_others(
    study: list[str], tmp_path: Path, elsewhere: ExitStack, capsys: pytest.CaptureFixture[str]
):
    words = [*study, *CELLS, f"out={tmp_path}"]
    assert main(["train", "-m", *words, "wait=false"]) == 0
    assert "mean_linear fold 1 seed 0: being trained elsewhere\n" in capsys.readouterr().err
    code, summary = status(words, tmp_path)
    assert (code, summary["done"], summary["running"]) == (3, 3, 1)
    alone = [*study, "aggregator=mean_linear", "fold=1", f"out={tmp_path}"]
    assert main(["train", *alone]) == 2  # asked for alone, there is nothing else to do
    assert "is being trained by another process" in capsys.readouterr().err


def test_a_sweep_waits_for_the_cells_of_others_and_takes_over_those_of_the_dead(
    study: list[str], tmp_path: Path, elsewhere: ExitStack, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mil.commands.sweep_run, "PAUSE_S", 0.05)
    others_are_done = threading.Event()

    def release() -> None:
        bounded.until(lambda: len(list(tmp_path.glob("*/done.json"))) == 3)
        others_are_done.set()
        elsewhere.close()

    owner = threading.Thread(target=release)
    owner.start()
    assert main(["train", "-m", *study, *CELLS, f"out={tmp_path}"]) == 0
    bounded.join(owner)
    assert others_are_done.is_set()
    assert len(find_runs(tmp_path)) == 4


def test_a_cell_that_fails_elsewhere_while_it_is_waited_for_is_a_failure(
    study: list[str],
    tmp_path: Path,
    elsewhere: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from feature_extraction.files import publish_json

    monkeypatch.setattr(mil.commands.sweep_run, "PAUSE_S", 0.05)
    cell = cell_of(json.loads((tmp_path / "summary.json").read_text()), "mean_linear fold 1 seed 0")

    def fail() -> None:
        bounded.until(lambda: len(list(tmp_path.glob("*/done.json"))) == 3)
        publish_json(tmp_path / ".failed" / f"{cell}.json", {"cell": cell, "error": "OSError", "message": "full"})
        elsewhere.close()

    owner = threading.Thread(target=fail)
    owner.start()
    assert main(["train", "-m", *study, *CELLS, f"out={tmp_path}"]) == 3
    bounded.join(owner)
    assert "failed elsewhere: OSError: full" in capsys.readouterr().err


def test_workers_begin_at_different_cells(study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["train", "-m", *study, *CELLS, f"out={tmp_path}"]
    assert main([*words, "worker=1", "workers=2"]) == 0
    order = [line.split(" ", 1)[1].split(":")[0] for line in capsys.readouterr().err.splitlines() if "trained" in line]
    assert order == [f"{name} fold {fold} seed 0" for name in ("gated_abmil", "mean_linear") for fold in (0, 1)]
    assert main([*words, "worker=2", "workers=2"]) == 2
    assert "worker=2 workers=2: expected" in capsys.readouterr().err


def test_a_submission_asks_for_the_missing_cells_only(
    study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [*study, *CELLS, f"out={tmp_path}"]
    submit = ["sweep", "submit", *words, "-m", "cluster=slurm", "cluster.tasks=3", "cluster.dry_run=true", "wait=true"]
    assert main(["train", "-m", *study, "aggregator=mean_linear", "fold=0,1", f"out={tmp_path}"]) == 0
    capsys.readouterr()
    assert main(submit) == 0
    shown = capsys.readouterr()
    path = tmp_path / "submit" / "sweep.sbatch"
    assert shown.out == path.read_text()
    assert "4 cells, 2 to do, 2 tasks" in shown.err
    assert "#SBATCH --array=0-1\n" in shown.out
    body = shlex.split(shown.out[shown.out.index(f"{sys.executable} -P -m mil train") :])
    assert [word for word in body if word.strip()][4:6] == ["train", "-m"]
    assert {*words, "wait=false"} <= set(body)
    assert not {"wait=true", "cluster=slurm", "cluster.tasks=3"} & set(body)
    # Plain bash: without Slurm it runs as well.
    done = bounded.run(["bash", path], env={**os.environ, "SLURM_ARRAY_TASK_ID": "1"})
    assert done.returncode == 0, done.stderr
    assert status(words, tmp_path)[0] == 0
    capsys.readouterr()
    path.unlink()
    assert main(submit) == 0
    assert "4 cells, none to do" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fold=0,1"], "cluster=local: nothing to submit to"),
        (["fold=0,1", "cluster=slurm", "cluster.tasks=0"], "cluster.tasks=0: expected"),
        (["fold=0,7", "cluster=slurm"], "prompt fold 7 seed 0: fold=7: this split has"),
    ],
)
def test_a_submission_of_what_cannot_be_done_is_refused(
    study: list[str], tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["sweep", "submit", *study, *words, f"out={tmp_path}"]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB, which is too small for a sweep."""
    (tmp_path / "disk").mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path / "disk"], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("only root can mount a small file system")
    try:
        yield tmp_path / "disk"
    finally:
        bounded.run(["umount", "-l", tmp_path / "disk"], check=True)


def test_a_disk_that_is_full_costs_the_cells_that_did_not_fit(
    study: list[str], small_disk: Path, capsys: pytest.CaptureFixture[str]
):
    words = [*study, *CELLS, "seed=0,1", f"out={small_disk / 'runs'}"]
    assert main(["train", "-m", *words]) == 3
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "Traceback" not in said
    done = len(find_runs(small_disk / "runs"))
    assert done < 8
    bounded.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert main(["train", "-m", *words]) == 0
    assert capsys.readouterr().err.count("was done") == done
    assert len(find_runs(small_disk / "runs")) == 8


@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins") is None
    or importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None,
    reason="hydra-joblib-launcher is not installed: promptmil does not need it",
)
def test_hydras_joblib_launcher_trains_the_cells_and_tells_of_a_failure(study: list[str], tmp_path: Path):
    words = [*study, *CELLS, f"out={tmp_path}", "hydra/launcher=joblib"]
    command = [sys.executable, "-P", "-m", "mil"]
    done = bounded.run([*command, "train", "-m", *words])
    assert done.returncode == 0, done.stderr
    assert status(words, tmp_path)[0] == 0
    assert bounded.run([*command, "train", "-m", *words, "fold=1,7"]).returncode == 3


def kill(folder: Path, *, n_sweeps: int, n_kills: int, n_epochs: int) -> None:
    script = Path(__file__).parent / "sweep_kill_loop.py"
    words = [sys.executable, script, folder, str(n_sweeps), str(n_kills), str(n_epochs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = bounded.run(words, check=True, seconds=120 + 5 * n_kills, env=environment)
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert (report["cells"], report["killed"]) == (8, n_kills)
    for one in report["rounds"]:
        assert [codes[-1] for codes in one["codes"]] == [0] * n_sweeps
        assert (one["twice"], one["again"], one["differences"]) == (0, 0, [])
        assert one["start"] >= one["end"] >= 1


@pytest.mark.pipeline
def test_sweeps_killed_at_any_moment_train_each_cell_once(tmp_path: Path):
    kill(tmp_path, n_sweeps=2, n_kills=4, n_epochs=8)


@pytest.mark.long
def test_sixty_kills_of_three_sweeps_change_nothing(tmp_path: Path):
    kill(tmp_path, n_sweeps=3, n_kills=60, n_epochs=40)
