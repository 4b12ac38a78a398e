"""`promptmil extract submit`: write a Slurm batch file that does this extraction, show it, and hand it in.

With ``cluster=ray`` it hands the work to actors instead.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from feature_extraction.errors import InputError
from feature_extraction.files import publish_text
from feature_extraction.sbatch import SlurmArray, read_array, sbatch_text
from feature_extraction.slides import read_slide_table

PROGRAM = (sys.executable, "-P", "-m", "mil")
OWN_KEYS = re.compile(r"[+~]*(cluster|worker|workers|wait)([.=@].*)?", re.DOTALL)
"""Overrides that say how the work is shared out; a task is given its own."""


def run(config: DictConfig) -> int:
    """Write ``<out>/submit/extract.sbatch``, print it to standard output and submit it; returns the exit code.

    With ``cluster=ray`` there is nothing to write: actors do the work, and the command waits for them.
    """
    if config.cluster.name == "ray":
        from feature_extraction.commands.submit_ray import run_on_ray

        return run_on_ray(config)
    if config.cluster.name != "slurm":
        raise InputError(
            f"cluster={config.cluster.name}: nothing to submit to; add cluster=slurm or cluster=ray, or leave the word "
            "submit out"
        )
    table = read_slide_table(Path(config.slides))
    array = array_of(config)
    n_slides = len(table.records)
    workers = max(1, min(array.tasks, n_slides))
    refused = f"; {len(table.failures)} rows of the table cannot be a slide" if table.failures else ""
    path = Path(config.out).absolute() / "submit" / "extract.sbatch"
    text = sbatch_text(
        array,
        program=[*PROGRAM, "extract"],
        words=task_words(sys.argv[1:]),  # the line as typed: what it leaves to defaults is left to them in the job too
        workers=workers,
        log_folder=path.parent,
        run_folder=Path.cwd(),
    )
    show_and_hand_in(
        path, text, what=f"{n_slides} slides, {workers} tasks{refused}", is_submitted=not config.cluster.dry_run
    )
    return 0


def array_of(config: DictConfig) -> SlurmArray:
    """What ``cluster`` asks of Slurm."""
    return read_array(cast("dict[str, object]", OmegaConf.to_container(config.cluster, resolve=True)))


def show_and_hand_in(path: Path, text: str, *, what: str, is_submitted: bool) -> None:
    """Write a batch file, print it to standard output, submit it, and say on standard error what became of it.

    Args:
        path: Of the batch file.
        text: Of the batch file.
        what: How much work it is.
        is_submitted: Whether it is handed in, too.

    Raises:
        InputError: See `hand_in`; the file is written all the same.
    """
    publish_text(path, text)
    sys.stdout.write(text)
    sys.stdout.flush()
    job = hand_in(path) if is_submitted else None
    next_step = f"job {job}" if job else f"not submitted; hand it in with: sbatch {shlex.quote(str(path))}"
    Console(stderr=True).print(f"{what} -> {path}\n{next_step}", soft_wrap=True, markup=False, highlight=False)


def task_words(words: Sequence[str]) -> list[str]:
    """The command line of one task, from that of the submission.

    Raises:
        InputError: It asks for a sweep.
    """
    if {"-m", "--multirun"} & set(words):
        raise InputError("extract submit takes no sweep (-m): submit once for each configuration")
    return [*(word for word in words if not OWN_KEYS.fullmatch(word)), "cluster=local", "wait=false"]


def hand_in(path: Path) -> str:
    """Submit a batch file; returns the job's id.

    Raises:
        InputError: There is no sbatch here, or it refuses the file; the message says how to hand it in.
    """
    sbatch = shutil.which("sbatch")
    remedy = f"on a machine that can submit jobs, run: sbatch {shlex.quote(str(path))}"
    if sbatch is None:
        raise InputError(f"cluster=slurm: no sbatch on this machine; the batch file is written: {remedy}")
    done = subprocess.run([sbatch, "--parsable", str(path)], capture_output=True, text=True, check=False)  # noqa: S603 - no shell, our own path
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise InputError(f"cluster=slurm: sbatch refused the batch file ({said}); correct the options, or {remedy}")
    return done.stdout.strip().partition(";")[0]
