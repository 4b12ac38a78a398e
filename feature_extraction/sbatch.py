"""The text of a Slurm batch file: plain bash that its owner can read, edit and hand in again."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from feature_extraction.errors import InputError

RESTARTS = 20
NOTICE_S = 120  # seconds before the time limit at which Slurm warns; it may do so up to 60 s early
UNFIT_FOR_LOGS = ("\n", "\\")  # in a log's path, sbatch reads a backslash as "no patterns here"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmArray:
    """What an array of tasks asks of Slurm; ``None`` leaves it to the partition.

    Attributes:
        tasks: Number of array tasks.
        at_once: How many of them may run at a time.
        cpus: Cores a task.
        mem: Memory a task, in Slurm's notation.
        time: Time limit a task, in Slurm's notation.
        gpus: GPUs a task.
        partition: Where to run.
        account: Who pays.
        qos: Quality of service.
        extra: Further options of sbatch, one a line.
        setup: Shell lines before the work.
    """

    tasks: int
    at_once: int | None
    cpus: int
    mem: str | None
    time: str | None
    gpus: int
    partition: str | None
    account: str | None
    qos: str | None
    extra: Sequence[str]
    setup: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayWork:
    """What the tasks of an array share.

    Attributes:
        name: Of the job.
        what: What a task does, for who reads the file.
        order: What ``worker`` and ``workers`` mean to a task.
        cores_key: Key of the command that takes the number of cores, None when it finds them itself.
    """

    name: str
    what: str
    order: str
    cores_key: str | None


SLIDES = ArrayWork(
    name="promptmil-extract",
    what="Every task does the slides that no other has claimed; they can be killed, requeued or added any time.",
    order="task k begins at k/{workers} of the slide table",
    cores_key="threads",
)
CELLS = ArrayWork(
    name="promptmil-sweep",
    what="Every task trains the cells that no other has claimed; they can be killed, requeued or added any time.",
    order="task k begins at k/{workers} of the sweep",
    cores_key=None,
)


def read_array(content: Mapping[str, object]) -> SlurmArray:
    """Check what ``conf/cluster/slurm.yaml`` says, as plain data.

    Raises:
        InputError: A number out of range, or an option that is none; the message names the key.
    """
    extra = _lines(content, "extra")
    for line in extra:
        if not line.startswith("-") or "\n" in line:
            raise InputError(f"cluster.extra: {line!r} is no option of sbatch; expected one such as --constraint=a100")
    return SlurmArray(
        tasks=_whole(content, "tasks", 1),
        at_once=None if content["at_once"] is None else _whole(content, "at_once", 1),
        cpus=_whole(content, "cpus", 1),
        mem=_text(content, "mem"),
        time=_text(content, "time"),
        gpus=_whole(content, "gpus", 0),
        partition=_text(content, "partition"),
        account=_text(content, "account"),
        qos=_text(content, "qos"),
        extra=extra,
        setup=_lines(content, "setup"),
    )


def _whole(content: Mapping[str, object], key: str, least: int) -> int:
    value = content[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"cluster.{key}={value}: expected a whole number of at least {least}")
    return value


def _text(content: Mapping[str, object], key: str) -> str | None:
    return None if content[key] is None else str(content[key])


def _lines(content: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = content[key]
    if not isinstance(value, list):
        raise InputError(f"cluster.{key}={value}: expected a list, such as cluster.{key}=[first,second]")
    return tuple(str(line) for line in cast("list[object]", value))


def sbatch_text(
    array: SlurmArray,
    *,
    program: Sequence[str],
    words: Sequence[str],
    workers: int,
    log_folder: Path,
    run_folder: Path,
    work: ArrayWork = SLIDES,
) -> str:
    """The batch file of an array whose task k runs ``program threads=<its cores> words worker=k workers=<workers>``.

    A task hands a stop signal on and waits. It is requeued when it stopped for its time limit, and not when cancelled.

    Args:
        array: What to ask for.
        program: What to run; quoted here.
        words: Its arguments, after those that may be overridden by them; quoted here.
        workers: Number of tasks.
        log_folder: Where each task writes ``<job>_<task>.log``.
        run_folder: Where the command runs, so that relative paths in it mean what they meant to its author.
        work: What the tasks share.

    Raises:
        InputError: A path that Slurm cannot write logs to.
    """
    if any(unfit in str(folder) for folder in (log_folder, run_folder) for unfit in UNFIT_FOR_LOGS):
        raise InputError(f"out={log_folder.parent}: Slurm cannot use a path with a line break or a backslash")
    options = [f"--job-name={work.name}", *_options(array, workers, log_folder, run_folder)]
    cores = "" if work.cores_key is None else f' {work.cores_key}="$OMP_NUM_THREADS"'
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {shlex.quote(option)}" for option in options),
            *(f"#SBATCH {option}" for option in array.extra),
            "",
            f"# {work.what}",
            f"workers={workers}    # {work.order.format(workers=workers)}",
            f"restarts={RESTARTS}  # how often a task that ran into its time limit may go on in a new one",
            'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"',
            *array.setup,
            "",
            _TRAPS,
            f"{shlex.join(program)}{cores} \\",
            *(f"  {shlex.quote(word)} \\" for word in words),
            '  worker="$((SLURM_ARRAY_TASK_ID % workers))" workers="$workers" &',
            "child=$!",
            '[ -z "$why" ] || { sleep 1; tell; }  # a process that has just been forked may not hear it',
            "",
            _WAIT,
        ]
    )


def _options(array: SlurmArray, workers: int, log_folder: Path, run_folder: Path) -> list[str]:
    throttle = f"%{array.at_once}" if array.at_once is not None else ""
    asked = {
        "mem": array.mem,
        "time": array.time,
        "gres": f"gpu:{array.gpus}" if array.gpus else None,
        "partition": array.partition,
        "account": array.account,
        "qos": array.qos,
    }
    return [
        f"--array=0-{workers - 1}{throttle}",
        f"--cpus-per-task={array.cpus}",
        *(f"--{key}={value}" for key, value in asked.items() if value is not None),
        "--requeue",
        "--open-mode=append",
        f"--signal=B:USR1@{NOTICE_S}",
        f"--chdir={run_folder}",
        f"--output={str(log_folder).replace('%', '%%')}/%A_%a.log",
    ]


_TRAPS = """\
# USR1: the time limit is near. TERM: cancelled, or requeued from outside; Slurm signals the command as well, so it is
# told again only if it is still there after a while. What comes before its number is known is handed on afterwards.
child= why=
tell() {
  [ -n "$child" ] || return
  if [ "$why" = TERM ]; then (sleep 10; kill -TERM "$child") 2>/dev/null & else kill -USR1 "$child"; fi
}
trap 'woken=yes; [ "$why" = TERM ] || { why=USR1; tell; }' USR1
trap 'woken=yes; why=TERM; tell' TERM INT
"""

_WAIT = """\
while true; do  # a signal ends the wait, not the command
  woken=
  wait "$child"
  code=$?
  [ -n "$woken" ] || break
done
echo "task $SLURM_ARRAY_TASK_ID ended with code $code"

# 4 is "stopped, run me again to go on"; 138 is USR1 before the command was ready for it.
case "$why $code" in
  "USR1 4" | "USR1 138")
    [ "${SLURM_RESTART_COUNT:-0}" -ge "$restarts" ] || scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    ;;
esac
exit "$code"
"""
