"""The cells of a sweep, and those of them that other processes train: left to them, or waited for and taken over.

Exit codes: with ``wait=true`` 0 means that every cell is done. With ``wait=false`` it means that every cell is done or
being trained elsewhere, which is listed: a task of an array that has done its share has not failed.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from feature_extraction.claims import claim
from feature_extraction.errors import InputError
from mil.commands.side_by_side import run_cells
from mil.commands.train_request import request_of
from mil.jobs import ELSEWHERE, PARTLY_FAILED, STOPPED, complain, guarded
from mil.reads import Reads
from mil.runs import lock_of
from mil.sweep import Standing, standing

PAUSE_S = 2.0
"""Between two looks at the cells of others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Left:
    """A cell that is not done, and where it stands."""

    config: DictConfig
    standing: Standing


def run_sweep(module: str, configs: Sequence[DictConfig]) -> list[int]:
    """Run what is missing; returns exit codes, one a cell that was tried.

    Args:
        module: Of the command that trains one.
        configs: Of the cells.
    """
    ordered: list[DictConfig] = []
    code = guarded(lambda config: ordered.extend(from_own_share(configs, config)) or 0, configs[0])
    if code:
        return [code]
    codes = run_cells(module, ordered)
    own = [code for code in codes if code != ELSEWHERE]
    if len(codes) < len(ordered) or STOPPED in own:  # it ended early, and has to be run again in any case
        return own
    left = _elsewhere(ordered, codes, Reads())
    return own + (_take_over(module, left) if ordered[0].wait else _leave(left))


def from_own_share(configs: Sequence[DictConfig], config: DictConfig) -> list[DictConfig]:
    """The cells in the order of one of several workers: all of them, each worker beginning elsewhere.

    Raises:
        InputError: ``worker`` and ``workers`` make no sense.
    """
    worker, workers = config.worker, config.workers
    if not (isinstance(worker, int) and isinstance(workers, int) and 0 <= worker < workers):
        raise InputError(f"worker={worker} workers={workers}: expected worker from 0 to workers - 1")
    first = len(configs) * worker // workers
    return [*configs[first:], *configs[:first]]


def _elsewhere(configs: Sequence[DictConfig], codes: Sequence[int], reads: Reads) -> list[_Left]:
    return [
        _Left(config=config, standing=standing(request_of(config), reads))
        for config, code in zip(configs, codes, strict=True)
        if code == ELSEWHERE
    ]


def _leave(left: Sequence[_Left]) -> list[int]:
    for one in left:
        complain(f"{one.standing.cell} {one.standing.name}: being trained elsewhere")
    return []


def _take_over(module: str, left: Sequence[_Left]) -> list[int]:
    """Wait until the cells of others are done, and train those that come free and are not."""
    reads = Reads()
    codes: list[int] = []
    for one in left:
        complain(f"{one.standing.cell} {one.standing.name}: being trained elsewhere; waits for it")
    while left:
        time.sleep(PAUSE_S)
        free = [one for one in left if _is_free(one)]
        to_do: list[DictConfig] = []
        for one in free:
            now = standing(request_of(one.config), reads)
            if now.state == "failed":  # by its owner, meanwhile; the next sweep tries it again
                complain(f"{now.cell} {now.name}: failed elsewhere: {now.message}")
                codes.append(PARTLY_FAILED)
            elif now.state != "done":
                to_do.append(one.config)
        found = run_cells(module, to_do) if to_do else []
        codes += [code for code in found if code != ELSEWHERE]
        if len(found) < len(to_do) or STOPPED in found:
            return codes
        # Somebody may have been faster with one of them.
        left = [one for one in left if one not in free] + _elsewhere(to_do, found, reads)
    return codes


def _is_free(one: _Left) -> bool:
    """Whether nobody has the cell. Asked by claiming it: only so is a lease taken over whose owner is dead."""
    with claim(lock_of(request_of(one.config).out, one.standing.cell)) as is_ours:
        return is_ours
