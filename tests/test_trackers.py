"""Trackers mirror what the files of a run say; what goes wrong in them costs a warning, never the run."""

import contextlib
import csv
import importlib.util
import json
import sqlite3
from pathlib import Path

import pytest
from study_files import write_study

import mil.trackers
from feature_extraction.configuration import conf_folder
from feature_extraction.errors import InputError
from mil.cli import main
from mil.runs import find_runs, unfinished_runs
from mil.trackers import FOLDER, TRACKERS, mirror, require_tracker

WORDS = ["aggregator=mean_linear", "trainer.max_epochs=2", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, for the trackers to copy."""
    folder = tmp_path_factory.mktemp("study")
    assert main(["train", *write_study(folder), *WORDS, f"out={folder / 'runs'}"]) == 0
    return find_runs(folder / "runs")[0].folder


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'promptmil[{package}]' to hold it against the real one")


def expected(run: Path) -> tuple[list[float], float]:
    """Training losses, and a figure of the test part."""
    lines = list(csv.DictReader((run / "log.csv").read_text().splitlines()))
    test = json.loads((run / "metrics.json").read_text())["test"]["nll"]
    return [float(line["train_loss"]) for line in lines if line["train_loss"]], test


def require_still_a_sweep(run: Path) -> None:
    runs = find_runs(run.parent)
    assert [one.folder for one in runs] == [run]
    assert unfinished_runs(run.parent, runs) == []


def test_tensorboard_reads_what_the_files_say(run: Path):
    needs("tensorboard")
    assert mirror(run, "tensorboard") == ""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (run.parent / FOLDER / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    losses, nll = expected(run)
    assert [one.value for one in events.Scalars("train_loss")] == pytest.approx(losses)
    assert [one.step for one in events.Scalars("val_loss")] == [0, 1, 2]
    assert [one.value for one in events.Scalars("test/nll")] == pytest.approx([nll])
    require_still_a_sweep(run)


def test_mlflow_reads_what_the_files_say(run: Path):
    needs("mlflow")
    assert mirror(run, "mlflow") == ""
    with contextlib.closing(sqlite3.connect(run.parent / FOLDER / "mlflow.db")) as store:
        rows = store.execute("select key, value from metrics order by key, step").fetchall()
        settings = dict(store.execute("select key, value from params").fetchall())
    losses, nll = expected(run)
    assert [value for name, value in rows if name == "train_loss"] == pytest.approx(losses)
    assert [value for name, value in rows if name == "test/nll"] == pytest.approx([nll])
    assert float(settings["determined_by.optimizer.lr"]) > 0
    require_still_a_sweep(run)


def test_wandb_keeps_the_run_for_a_later_sync(run: Path):
    needs("wandb")
    assert mirror(run, "wandb") == ""
    (file,) = (run.parent / FOLDER / "wandb").glob(f"offline-run-*-{run.name}/*.wandb")
    content = file.read_bytes()
    assert all(word in content for word in (b"train_loss", b"test/nll", b"determined_by.optimizer.lr"))
    require_still_a_sweep(run)


def test_every_tracker_has_a_yaml_and_an_extra():
    names = {path.stem for path in (conf_folder() / "tracker").iterdir()}
    assert names == {"none", *TRACKERS}


def test_a_tracker_that_fails_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """A package that is there and cannot be imported."""
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").write_text("raise RuntimeError('out of order')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(mil.trackers.__file__).parents[1]}")
    monkeypatch.syspath_prepend(tmp_path)
    words = [*write_study(tmp_path / "study"), *WORDS, "tracker=tensorboard", f"out={tmp_path / 'runs'}"]
    assert main(["train", *words]) == 0
    said = capfd.readouterr().err
    assert "warning: tracker=tensorboard: " in said
    assert "is not mirrored: exit code 1" in said
    assert len(find_runs(tmp_path / "runs")) == 1


def test_a_tracker_that_hangs_is_given_up(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mil.trackers, "LONGEST_S", 0.01)
    assert "timed out" in mirror(run, "tensorboard")


def test_a_tracker_that_cannot_work_is_refused_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"tracker=wandb: wandb is not installed; pip install 'promptmil\[wandb\]'"):
        require_tracker("wandb")
    with pytest.raises(InputError, match="tracker=paper: expected none, tensorboard"):
        require_tracker("paper")
    require_tracker(None)
