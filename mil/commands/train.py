"""`promptmil train`: features + bank + split -> one run folder."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from feature_extraction.commands.licence import check_licence
from feature_extraction.errors import InputError
from feature_extraction.files import publish_json
from mil.aggregator import n_scales, part_types
from mil.commands import settings
from mil.commands.train_request import request_of
from mil.commands.unused import say_unused
from mil.feature_folder import FeatureFolder
from mil.fit import Course
from mil.freed_memory import keep_freed_memory
from mil.jobs import complain, guarded
from mil.stacked import MOST_TOGETHER, apart_because
from mil.trackers import mirror, require_tracker
from mil.train import TrainResult, train_cell
from mil.train_together import train_together


def run(config: DictConfig) -> int:
    """Train one cell; returns the exit code."""
    keep_freed_memory()
    require_tracker(config.tracker.name)
    request = request_of(config)
    console = Console(stderr=True)
    check_licence(config.licence_profile, FeatureFolder(request.features[0]).header, console)
    with Progress(console=console, transient=True) as progress:
        name, n_epochs = _name(config), request.training.max_epochs
        epochs = progress.add_task(name, total=n_epochs)

        def on_resume(done: int) -> None:
            progress.update(epochs, completed=done)
            console.print(f"{name}: goes on after epoch {done} of {n_epochs}", soft_wrap=True, markup=False)

        result = train_cell(request, Course(on_epoch=lambda: progress.advance(epochs), on_resume=on_resume))
    return _say(config, result, console)


def run_group(configs: Sequence[DictConfig]) -> list[int]:
    """Train cells that `groups` put together as one; returns the exit code of each."""
    outcomes: list[TrainResult | Exception] = []
    code = guarded(lambda _: outcomes.extend(_trained(configs)) or 0, configs[0])
    if code:
        return [code] * len(configs)

    def say(config: DictConfig, outcome: TrainResult | Exception) -> int:
        if isinstance(outcome, Exception):
            raise outcome
        return _say(config, outcome, Console(stderr=True))

    return [guarded(partial(say, outcome=outcome), one) for one, outcome in zip(configs, outcomes, strict=True)]


def _trained(configs: Sequence[DictConfig]) -> list[TrainResult | Exception]:
    keep_freed_memory()
    require_tracker(configs[0].tracker.name)
    requests = [request_of(config) for config in configs]
    console = Console(stderr=True)
    check_licence(configs[0].licence_profile, FeatureFolder(requests[0].features[0]).header, console)
    with Progress(console=console, transient=True) as progress:
        name = f"{configs[0].aggregator.name}, {len(configs)} cells as one"
        epochs = progress.add_task(name, total=requests[0].training.max_epochs)
        return train_together(requests, on_epoch=lambda: progress.advance(epochs))


def _name(config: DictConfig) -> str:
    control = f" permuted labels {config.permute_labels}" if config.permute_labels else ""
    return f"{config.aggregator.name} fold {config.fold} seed {config.seed}{control}"


def _say(config: DictConfig, result: TrainResult, console: Console) -> int:
    """Write the summary of a cell, and say how it went; returns the exit code."""
    summary: dict[str, object] = {
        "command": "train",
        "run": result.folder.name,
        "is_new": result.is_new,
        "metrics": dict(result.metrics),
        "unused_slides": dict(result.unused),
    }
    publish_json(Path(config.out) / "summary.json", summary)
    if result.is_new and config.tracker.name is not None:
        fault = mirror(result.folder, config.tracker.name)
        if fault:
            complain(f"warning: tracker={config.tracker.name}: {result.folder.name} is not mirrored: {fault}")
    state = "trained" if result.is_new else "was done"
    test = result.metrics.get("test")
    figures = f"test {_figures(test)}" if isinstance(test, dict) else ""
    readings = result.metrics.get("test_readings")
    again = f"; its test part was read {readings} times" if isinstance(readings, int) and readings > 1 else ""
    console.print(f"{result.folder.name} {_name(config)}: {state}; {figures}{again}", soft_wrap=True, markup=False)
    return say_unused(console, result.unused)


def at_once(config: DictConfig) -> int:
    """How many processes may run cells of a sweep at the same time.

    Raises:
        InputError: ``parallel`` is no number and neither ``auto`` nor ``stacked``.
    """
    asked = config.parallel
    if _is_stacked(config):  # cells on a GPU would only take turns
        return 1
    if asked == "auto":
        n_cores = len(os.sched_getaffinity(0))  # where Slurm does not bind a task to its cores, these are all there are
        return min(n_cores, int(os.environ.get("SLURM_CPUS_PER_TASK", n_cores)))
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise InputError(f"parallel={asked}: expected auto, stacked or a whole number of at least 1")
    return asked


def groups(configs: Sequence[DictConfig]) -> list[list[int]]:
    """Numbers of the cells that are trained as one: they differ in fold and seed only and have parts that stack."""
    alike: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        plain = settings.plain(config)
        rest = {key: value for key, value in plain.items() if key not in ("fold", "seed")}
        is_one_of_many = _is_stacked(config) and not _alone_because(config)
        key = json.dumps(rest if is_one_of_many else number, sort_keys=True, default=str)
        alike.setdefault(key, []).append(number)
    for reason in dict.fromkeys(_alone_because(config) for config in configs if config.parallel == "stacked"):
        if reason:
            complain(f"one by one: {reason}")
    return [some[at : at + MOST_TOGETHER] for some in alike.values() for at in range(0, len(some), MOST_TOGETHER)]


def _is_stacked(config: DictConfig) -> bool:
    on_gpu = config.trainer.accelerator != "cpu" and torch.accelerator.is_available()
    return config.parallel == "stacked" or (config.parallel == "auto" and on_gpu)


def _alone_because(config: DictConfig) -> str:
    if config.filter_nontask:
        return "filter_nontask=true makes each cell a copy of its tiles, too much memory for all at once"
    try:
        aggregator = settings.plain(config.aggregator)
        reason = apart_because(part_types(aggregator), n_scales=n_scales(aggregator))
    except InputError as error:
        return str(error)
    return reason and f"aggregator={config.aggregator.name}: {reason}"


def _figures(metrics: dict[str, object]) -> str:
    shown = ("balanced_accuracy", "macro_auc", "qwk", "mae", "spearman", "c_index", "nll")
    return ", ".join(f"{name} {value:.3f}" for name in shown if isinstance(value := metrics.get(name), float))
