"""`promptmil sweep status`: how far the cells of a sweep are; reads files, trains nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from feature_extraction.errors import InputError
from feature_extraction.files import publish_json
from mil.commands.train_request import request_of
from mil.jobs import PARTLY_FAILED, guarded
from mil.sweep import STATES, Standing, standings


def run_sweep(configs: Sequence[DictConfig]) -> int:
    """Print counts and the cells that are not done, and write ``<out>/summary.json``; returns the exit code.

    The code is 0 when every cell is done and 3 when one is not.

    Args:
        configs: Of the cells, as `promptmil train` would be given them.
    """
    return guarded(lambda _: _status(configs), configs[0])


def asked(configs: Sequence[DictConfig]) -> tuple[Path, list[Standing]]:
    """Where a sweep goes, and where each of its cells stands.

    Raises:
        InputError: The cells go into different folders.
    """
    requests = [request_of(config) for config in configs]
    outs = {request.out for request in requests}
    if len(outs) > 1:
        listed = ", ".join(sorted(str(out) for out in outs))
        raise InputError(f"out: the cells go into {listed}; expected one folder for a sweep")
    return outs.pop(), standings(requests)


def _status(configs: Sequence[DictConfig]) -> int:
    out, cells = asked(configs)
    counts = Counter(cell.state for cell in cells)
    console = Console()
    listed = ", ".join(f"{counts[state]} {state}" for state in STATES)
    console.print(f"{len(cells)} cells: {listed}", soft_wrap=True, markup=False, highlight=False)
    table = Table("cell", "", "state", "epoch", box=None)
    for cell in cells:
        if cell.state != "done":
            table.add_row(cell.cell or "-", cell.name, cell.state, f"{cell.epoch} of {cell.epochs}")
    if table.row_count:
        console.print(table)
    for message, names in _messages(cells).items():
        console.print(f"{', '.join(names)}: {message}", soft_wrap=True, markup=False, highlight=False)
    summary = {"command": "sweep status", "asked": len(cells), **{state: counts[state] for state in STATES}}
    publish_json(out / "summary.json", {**summary, "cells": [asdict(cell) for cell in cells]})
    return 0 if counts["done"] == len(cells) else PARTLY_FAILED


def _messages(cells: Sequence[Standing]) -> dict[str, list[str]]:
    """Each message with the cells that say it: what is wrong with a sweep is often wrong with all of it."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        if cell.message:
            found.setdefault(cell.message, []).append(cell.cell or cell.name)
    return found
