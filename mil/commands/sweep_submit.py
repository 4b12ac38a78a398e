"""`promptmil sweep submit`: write a Slurm batch file that trains what a sweep lacks, show it, and hand it in."""

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from feature_extraction.commands.submit import OWN_KEYS, PROGRAM, array_of, show_and_hand_in
from feature_extraction.errors import InputError
from feature_extraction.sbatch import CELLS, sbatch_text
from mil.commands.sweep_status import asked
from mil.jobs import guarded
from mil.sweep_words import MULTIRUN

TO_DO = ("failed", "stopped", "missing")


def run_sweep(configs: Sequence[DictConfig]) -> int:
    """Write ``<out>/submit/sweep.sbatch``, print it and submit it, unless nothing is to do; returns the exit code.

    The tasks share the cells: each begins at its own place of the sweep and trains what is neither done nor claimed.

    Args:
        configs: Of the cells, as `promptmil train` would be given them.
    """
    return guarded(lambda config: _submit(config, configs), configs[0])


def task_words(words: Sequence[str]) -> list[str]:
    """The command line of one task, from that of the submission."""
    kept = [word for word in words if word not in MULTIRUN and not OWN_KEYS.fullmatch(word)]
    return ["-m", *kept, "wait=false"]


def _submit(config: DictConfig, configs: Sequence[DictConfig]) -> int:
    if config.cluster.name != "slurm":
        raise InputError(
            f"cluster={config.cluster.name}: nothing to submit to; add cluster=slurm, or train here: promptmil train -m"
        )
    array = array_of(config)
    out, cells = asked(configs)
    for cell in cells:
        if not cell.cell:
            raise InputError(f"{cell.name}: {cell.message}")
    to_do = [cell for cell in cells if cell.state in TO_DO]
    if not to_do:
        said = f"{len(cells)} cells, none to do: nothing was submitted"
        Console(stderr=True).print(said, soft_wrap=True, highlight=False)
        return 0
    workers = min(array.tasks, len(to_do))
    path = out.absolute() / "submit" / "sweep.sbatch"
    text = sbatch_text(
        array,
        program=[*PROGRAM, "train"],
        words=task_words(sys.argv[1:]),  # the line as typed: what it leaves to defaults is left to them in the job too
        workers=workers,
        log_folder=path.parent,
        run_folder=Path.cwd(),
        work=CELLS,
    )
    what = f"{len(cells)} cells, {len(to_do)} to do, {workers} tasks"
    show_and_hand_in(path, text, what=what, is_submitted=not config.cluster.dry_run)
    return 0
