"""Mirror a finished run into TensorBoard, Weights & Biases or MLflow; the run's own files stay what counts.

A tracker is another program: it may hang, ask the network or fall over. So it runs in a process of its own, after the
run is sealed, and what goes wrong there is a sentence for the log.
"""

import csv
import importlib.util
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from feature_extraction.errors import InputError
from feature_extraction.files import read_json

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Names of trackers; also of the packages and of our extras."""
FOLDER = "trackers"
PROJECT = "promptmil"
LONGEST_S = 300
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
"""A mirror on this disk has nothing to tell anybody else."""


def require_tracker(name: str | None) -> None:
    """Refuse a tracker that cannot work here, before anything is trained.

    Raises:
        InputError: There is no such tracker, or its package is not installed.
    """
    if name is None:
        return
    if name not in TRACKERS:
        raise InputError(f"tracker={name}: expected none, {', '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        raise InputError(f"tracker={name}: {name} is not installed; pip install 'promptmil[{name}]', or tracker=none")


def mirror(run: Path, tracker: str) -> str:
    """Copy a finished run's settings, losses and figures to a tracker beside it, in a process of its own.

    Args:
        run: Its folder, in the folder of runs.
        tracker: One of `TRACKERS`.

    Returns:
        Why it failed; empty when it did not.
    """
    command = [sys.executable, "-P", "-m", "mil.trackers", tracker, str(run)]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=LONGEST_S,
            env={**os.environ, **_QUIET},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return "" if done.returncode == 0 else f"exit code {done.returncode}, {lines[-1] if lines else 'no message'}"


def record(run: Path, tracker: str) -> None:
    """Do it in this process.

    Raises:
        InputError: There is no such tracker.
        DamagedFileError: A file of the run is not whole.
    """
    from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

    cell = read_json(run / "cell.json")
    # Not the cell alone: a folder of twelve hex digits below the runs would pass for an unfinished one.
    title = f"{cell['aggregator']}-fold{cell['fold']}-seed{cell['seed']}-{cell['cell']}"
    place = run.parent / FOLDER
    place.mkdir(exist_ok=True)
    logger: Logger
    if tracker == "tensorboard":
        logger = TensorBoardLogger(place / tracker, name="", version=title, default_hp_metric=False)
    elif tracker == "wandb":
        logger = WandbLogger(name=title, save_dir=place, version=str(cell["cell"]), offline=True, project=PROJECT)
    elif tracker == "mlflow":
        store = f"sqlite:///{place.resolve()}/mlflow.db"
        artifacts = (place / "mlflow").resolve().as_uri()
        logger = MLFlowLogger(PROJECT, run_name=title, tracking_uri=store, artifact_location=artifacts)
    else:
        raise InputError(f"tracker={tracker}: expected {', '.join(TRACKERS)}")
    logger.log_hyperparams(dict(_flat(cell)))
    metrics = read_json(run / "metrics.json")
    with (run / "log.csv").open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            logger.log_metrics({k: float(v) for k, v in line.items() if k != "epoch" and v}, step=int(line["epoch"]))
    logger.log_metrics(dict(_figures(metrics)), step=int(str(metrics["epochs"])))
    logger.finalize("success")


def _flat(content: Mapping[str, object], lead: str = "") -> Iterator[tuple[str, str]]:
    """``determined_by.optimizer.lr`` and the like, as text."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{lead}{name}.")
        else:
            yield f"{lead}{name}", str(value)


def _figures(metrics: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """``val/macro_auc`` and the like, what is defined; names of characters that every tracker takes."""
    for part in ("val", "test"):
        figures = metrics.get(part)
        for name, value in figures.items() if isinstance(figures, Mapping) else ():
            if isinstance(value, int | float) and math.isfinite(value):
                yield f"{part}/{re.sub(r'[^A-Za-z0-9_. -]', '_', str(name))}", float(value)


if __name__ == "__main__":
    record(Path(sys.argv[2]), sys.argv[1])
