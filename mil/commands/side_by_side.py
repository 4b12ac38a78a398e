"""The cells of a sweep, several at once: a process a core over bags that all of them map, or one process for groups."""

import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from types import FrameType

from omegaconf import DictConfig, OmegaConf

from mil.commands import settings
from mil.jobs import PARTLY_FAILED, STOPPED, complain, guarded

START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""A fork of a small server that has imported everything. A fork of this process could hang in what its threads held."""


def run_cells(module: str, configs: Sequence[DictConfig]) -> list[int]:
    """Run the cells of a command that says how many of them may run at once; returns the exit code of each, in order.

    There are fewer codes than cells when the sweep ended early: stopped, a worker killed, nothing started.

    Args:
        module: Of the command. Its ``at_once(config)`` is asked with the first cell; where one process is to run all,
            ``groups(configs)`` gives the numbers of cells that are one piece of work, and ``run_group(group)`` does
            one of several.
        configs: Composed configurations.
    """
    command = importlib.import_module(module)
    asked: list[int] = []
    code = guarded(lambda config: asked.append(command.at_once(config)) or 0, configs[0])
    if code:
        return [code]
    n_processes = min(asked[0], len(configs))
    return _one_by_one(module, configs) if n_processes == 1 else _at_once(module, configs, n_processes)


def _one_by_one(module: str, configs: Sequence[DictConfig]) -> list[int]:
    command = importlib.import_module(module)
    code_of: dict[int, int] = {}
    for numbers in command.groups(configs):
        group = [configs[number] for number in numbers]
        codes = command.run_group(group) if len(group) > 1 else [guarded(command.run, group[0])]
        code_of |= zip(numbers, codes, strict=True)
        if STOPPED in codes:  # a signal stops the sweep, not only the cell it fell into
            return list(code_of.values())
    return [code_of[number] for number in range(len(configs))]


def _at_once(module: str, configs: Sequence[DictConfig], n_processes: int) -> list[int]:
    context = multiprocessing.get_context(START_METHOD)
    if START_METHOD == "forkserver":
        context.set_forkserver_preload([module])
    codes: list[int] = []
    pool = ProcessPoolExecutor(n_processes, mp_context=context, initializer=begin_process)
    try:
        cells = [pool.submit(_run_one, module, settings.plain(config)) for config in configs]
        codes.extend(cell.result() for cell in cells)
    except BrokenProcessPool:
        complain(
            "error: a process of the sweep was killed (out of memory?); cells that were done stay: run the same "
            "command again, with a smaller parallel=… if it happens again"
        )
        codes.append(PARTLY_FAILED)
    finally:
        if len(codes) < len(configs):  # interrupted: the cells in work stop as they do alone
            for process in multiprocessing.active_children():
                process.terminate()
        pool.shutdown(cancel_futures=True)
    return codes


def begin_process() -> None:
    """In a new process: one thread, a polite end that interrupts, and an end when the parent is gone."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _run_one(module: str, config: Mapping[str, object]) -> int:
    return guarded(importlib.import_module(module).run, OmegaConf.create(dict(config)))
