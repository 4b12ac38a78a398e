"""`promptmil train`: features + bank + split -> one run folder."""

import os

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from feature_extraction.commands.licence import check_licence
from feature_extraction.errors import InputError
from feature_extraction.files import publish_json
from mil.commands.train_request import request_of
from mil.commands.unused import say_unused
from mil.feature_folder import FeatureFolder
from mil.fit import Course
from mil.train import train_cell


def run(config: DictConfig) -> int:
    """Train one cell; returns the exit code."""
    request = request_of(config)
    console = Console(stderr=True)
    check_licence(config.licence_profile, FeatureFolder(request.features[0]).header, console)
    name = f"{config.aggregator.name} fold {request.fold} seed {request.seed}"
    with Progress(console=console, transient=True) as progress:
        n_epochs = request.training.max_epochs
        epochs = progress.add_task(name, total=n_epochs)

        def on_resume(done: int) -> None:
            progress.update(epochs, completed=done)
            console.print(f"{name}: goes on after epoch {done} of {n_epochs}", soft_wrap=True, markup=False)

        result = train_cell(request, Course(on_epoch=lambda: progress.advance(epochs), on_resume=on_resume))
    summary: dict[str, object] = {
        "command": "train",
        "run": result.folder.name,
        "is_new": result.is_new,
        "metrics": dict(result.metrics),
        "unused_slides": dict(result.unused),
    }
    publish_json(request.out / "summary.json", summary)
    state = "trained" if result.is_new else "was done"
    test = result.metrics.get("test")
    figures = f"test {_figures(test)}" if isinstance(test, dict) else ""
    console.print(f"{result.folder.name} {name}: {state}; {figures}", soft_wrap=True, markup=False)
    return say_unused(console, result.unused)


def at_once(config: DictConfig) -> int:
    """How many cells of a sweep may run at the same time.

    Raises:
        InputError: ``parallel`` is no number and not ``auto``.
    """
    asked = config.parallel
    if asked == "auto":  # cells on a GPU would only take turns
        on_gpu = config.trainer.accelerator != "cpu" and torch.accelerator.is_available()
        n_cores = len(os.sched_getaffinity(0))  # where Slurm does not bind a task to its cores, these are all there are
        return 1 if on_gpu else min(n_cores, int(os.environ.get("SLURM_CPUS_PER_TASK", n_cores)))
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise InputError(f"parallel={asked}: expected auto or a whole number of at least 1")
    return asked


def _figures(metrics: dict[str, object]) -> str:
    shown = ("balanced_accuracy", "macro_auc", "qwk", "mae", "spearman", "c_index", "nll")
    return ", ".join(f"{name} {value:.3f}" for name in shown if isinstance(value := metrics.get(name), float))
