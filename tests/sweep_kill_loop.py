"""Run sweeps over one folder at the same time, kill their processes at random, start them again, until all is done.

Forked from a process that has imported everything, so that the kills fall into the work and not into the imports; half
of them hit a worker of a sweep, half the sweep itself. Prints one JSON line: what was killed, cells that were trained
twice at once or again after they were done, and files that differ from those of a sweep that nobody disturbed.
"""

import contextlib
import fcntl
import io
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import kill_loop
import torch
from study_files import write_study

COMPARED = ("predictions.csv", "metrics.json", "log.csv", "model.safetensors")
SWEEP = ("-m", "aggregator=prompt,gated_abmil", "fold=0,1", "seed=0,1", "trainer.accelerator=cpu", "checkpoint_s=0")
AT_ONCE = (1, 2, 2)
"""Processes of the first, second and third sweep."""


def note(log: Path, what: str, cell: str) -> None:
    """One line, in the order in which things happened: the log is locked while it is written."""
    with log.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(f"{what} {cell}\n".encode())


def watch_attempts(log: Path) -> None:
    """Log when an attempt at a cell starts and ends; a lock of its own tells whether another is at work on it."""
    import mil.train

    recorded = mil.train.recorded

    @contextlib.contextmanager
    def watched(out: Path, cell: str) -> Generator[None, None, None]:
        with log.with_name(f"{log.name}-{cell}").open("wb") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                note(log, "twice", cell)
            note(log, "start", cell)
            with recorded(out, cell):
                yield
            note(log, "end", cell)

    mil.train.recorded = watched


@dataclass
class Sweep:
    """One of the sweeps over the folder: its line, and the process that runs it now."""

    words: list[str]
    said: Path
    log: Path
    child: int = 0
    codes: tuple[int, ...] = ()

    def start(self) -> None:
        self.child = os.fork()
        if self.child:
            return
        import mil.cli
        import mil.commands.side_by_side
        import mil.commands.sweep_run

        mil.commands.side_by_side.START_METHOD = "fork"  # everything is imported; a fork server would import it again
        mil.commands.sweep_run.PAUSE_S = 0.05
        out = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        watch_attempts(self.log)
        os._exit(mil.cli.main(["train", *self.words]))

    def kill(self, generator: random.Random) -> bool:
        """Kill the sweep or one of its workers; whether it was the sweep."""
        with contextlib.suppress(OSError):
            workers = Path(f"/proc/{self.child}/task/{self.child}/children").read_text().split()
            if workers and generator.random() < 0.5:
                os.kill(int(generator.choice(workers)), signal.SIGKILL)
                return False
        os.kill(self.child, signal.SIGKILL)
        return True

    def has_ended(self) -> bool:
        """Whether it ended by itself; one that was killed, or lost a worker, is started again."""
        if not self.child:
            return True
        found, status = os.waitpid(self.child, os.WNOHANG)
        if not found:
            return False
        self.child = 0
        if os.WIFEXITED(status):
            self.codes += (os.WEXITSTATUS(status),)
            if not os.WEXITSTATUS(status):
                return True
        self.start()
        return False


def disturbed(words: list[str], out: Path, n_sweeps: int, n_kills: int, longest_s: float) -> dict[str, object]:
    """Sweeps over one folder, killed until all cells are done; what happened to them."""
    generator = random.Random(out.name)
    log = out.with_suffix(".log")
    sweeps = [
        Sweep(words=[*words, f"out={out}", f"parallel={AT_ONCE[n]}"], said=out.with_suffix(f".{n}"), log=log)
        for n in range(n_sweeps)
    ]
    for sweep in sweeps:
        sweep.start()
    killed = Counter[str]()
    end, next_kill = time.monotonic() + kill_loop.LIMIT_S, time.monotonic() + generator.uniform(0, longest_s)
    while sum(sweep.has_ended() for sweep in sweeps) < n_sweeps:  # each is asked: asking starts it again
        if time.monotonic() > end:
            raise TimeoutError("".join(sweep.said.read_text() for sweep in sweeps))
        if time.monotonic() > next_kill and killed.total() < n_kills:
            alive = [sweep for sweep in sweeps if sweep.child]
            killed["sweep" if generator.choice(alive).kill(generator) else "worker"] += 1
            next_kill = time.monotonic() + generator.uniform(0, longest_s)
        time.sleep(0.002)
    return {"killed": dict(killed), "codes": [sweep.codes for sweep in sweeps], **read_log(log)}


def read_log(log: Path) -> dict[str, object]:
    """Attempts, cells trained by two at once, and cells trained again after they were done."""
    ended: set[str] = set()
    counts = Counter[str]()
    for line in log.read_text().splitlines():
        what, cell = line.split()
        counts[what] += 1
        counts["again"] += what == "start" and cell in ended
        ended |= {cell} if what == "end" else set()
    return {name: counts[name] for name in ("start", "end", "twice", "again")}


def differences(calm: Path, out: Path) -> list[str]:
    """Cells that lack, files that are not those of the calm sweep, and files that should be gone."""
    cells = sorted(path.parent.name for path in calm.glob("*/done.json"))
    found = sorted(path.parent.name for path in out.glob("*/done.json"))
    left = [str(path) for path in (*out.glob("*/.*"), *out.glob(".failed/*"))]
    changed = [
        f"{cell}/{name}"
        for cell in set(cells) & set(found)
        for name in COMPARED
        if (out / cell / name).read_bytes() != (calm / cell / name).read_bytes()
    ]
    return sorted(set(cells) ^ set(found)) + left + changed


def main(folder: Path, n_sweeps: int, n_kills: int, n_epochs: int, words: Sequence[str] = ()) -> None:
    import mil.cli

    torch.set_num_threads(1)  # a thread pool does not survive a fork
    line = [*(words or [*write_study(folder, n_folds=2), *SWEEP]), f"trainer.max_epochs={n_epochs}"]
    # What is imported late is imported here; without an epoch, as a backward pass would not survive a fork either.
    with contextlib.redirect_stderr(io.StringIO()):
        mil.cli.main(["train", *line, "trainer.max_epochs=0", f"out={folder / 'imports'}", "parallel=1"])
    calm = Sweep(
        words=[*line, f"out={folder / 'calm'}", "parallel=2"], said=folder / "calm.txt", log=folder / "calm.log"
    )
    begin = time.monotonic()
    calm.start()
    kill_loop.ended(calm.child)
    calm_s = time.monotonic() - begin
    rounds: list[dict[str, object]] = []
    killed = 0
    while killed < n_kills:
        out = folder / f"round{len(rounds)}"
        one = disturbed(line, out, n_sweeps, n_kills - killed, calm_s / 3)
        killed += sum(dict(one["killed"]).values())
        rounds.append({**one, "differences": differences(folder / "calm", out)})
    n_cells = len(list((folder / "calm").glob("*/done.json")))
    print(json.dumps({"cells": n_cells, "killed": killed, "calm_s": calm_s, "rounds": rounds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), words=sys.argv[5:])
