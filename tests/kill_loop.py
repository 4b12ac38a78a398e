"""Run `promptmil extract` again and again in forked children, kill each at a random moment, then let one finish.

Forked from a process that has imported everything, so that the kills fall into the work and not into the imports.
Prints one JSON line: how many children were killed at work, and every change of a file after it was first whole.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from feature_extraction.errors import DamagedFileError
from feature_extraction.store import FeatureFile


def extract(words: list[str]) -> int:
    import mil.cli

    return mil.cli.main(["extract", *words])


def start(words: list[str]) -> int:
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os._exit(extract(words))
    return child


def whole_files(out: Path) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Identity of each feature file, and those that cannot be read: there must be none."""
    found: dict[str, tuple[int, int]] = {}
    unreadable: list[str] = []
    for path in out.glob("*/*.h5"):
        try:
            FeatureFile(path).features()
        except DamagedFileError:
            unreadable.append(path.name)
        status = path.stat()
        found[path.name] = (status.st_ino, status.st_mtime_ns)
    return found, unreadable


def main(out: Path, n_kills: int, longest: float, seed: int, words: list[str]) -> None:
    import feature_extraction.commands.extract  # noqa: F401 - what the children would import
    import mil.cli  # noqa: F401

    torch.set_num_threads(1)  # a thread pool does not survive a fork
    generator = random.Random(seed)
    killed, unreadable = 0, []
    changed: list[str] = []
    seen: dict[str, tuple[int, int]] = {}
    while killed < n_kills:
        child = start(words)
        time.sleep(generator.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        found, broken = whole_files(out)
        unreadable += broken
        changed += [name for name, identity in seen.items() if found.get(name) != identity]
        seen = found
        if os.WIFEXITED(status):
            break  # it finished before the kill: nothing is left to do
    _, status = os.waitpid(start(words), 0)
    found, broken = whole_files(out)
    changed += [name for name, identity in seen.items() if found.get(name) != identity]
    print(
        json.dumps(
            {
                "killed": killed,
                "sealed_while_killing": len(seen),
                "unreadable": unreadable + broken,
                "changed": changed,
                "exit_code": os.waitstatus_to_exitcode(status),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
