"""Run `promptmil extract` again and again in forked children, kill each at a random moment, then let one finish.

Forked from a process that has imported everything, so that the kills fall into the work and not into the imports.
Prints one JSON line: how many children were killed at work, and every change of a file after it was first whole.
"""

import faulthandler
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

LIMIT_S = 300.0


def extract(words: list[str]) -> int:
    import feature_extraction.readers
    import mil.cli

    feature_extraction.readers.START_METHOD = "fork"  # everything is imported; a fork server would import it again
    return mil.cli.main(["extract", *words])


def ended(child: int) -> int:
    """The status that a child ended with; one that does not end in time says where it stands, and all is over."""
    end = time.monotonic() + LIMIT_S
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGABRT)
            os.waitpid(child, 0)
            raise TimeoutError(f"a run did not end within {LIMIT_S:g} s")
        time.sleep(0.002)
    return found[1]


def start(words: list[str]) -> int:
    child = os.fork()
    if child == 0:
        faulthandler.enable(os.dup(2))
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


def seconds_of(words: list[str]) -> float:
    """How long an undisturbed child takes."""
    begin = time.monotonic()
    ended(start(words))
    return time.monotonic() - begin


def main(out: Path, n_kills: int, seed: int, words: list[str]) -> None:
    import feature_extraction.commands.extract  # noqa: F401 - what the children would import
    import mil.cli  # noqa: F401

    torch.set_num_threads(1)  # a thread pool does not survive a fork
    generator = random.Random(seed)
    rehearsal = [*words, f"out={out}/rehearsal"]
    whole, idle = seconds_of(rehearsal), seconds_of(rehearsal)  # the second finds everything done
    # Each attempt gets past its start and through a small part of the work: the kills are spread over all of it.
    longest = idle + (whole - idle) / 5
    report: dict[str, list[object]] = {"rounds": [], "unreadable": [], "changed": [], "exit_codes": []}
    killed = 0
    while killed < n_kills:  # an attempt that finishes before its kill ends a round; the next begins anew
        folder = out / f"round{len(report['rounds'])}"
        line = [*words, f"out={folder}"]
        in_round, sealed = kill_until_done(folder, n_kills - killed, line, report, generator, idle, longest)
        killed += in_round
        report["rounds"].append({"folder": str(folder), "killed": in_round, "sealed_while_killing": sealed})
    print(json.dumps({"killed": killed, **report}))


def kill_until_done(
    folder: Path,
    n_kills: int,
    words: list[str],
    report: dict[str, list[object]],
    generator: random.Random,
    shortest: float,
    longest: float,
) -> tuple[int, int]:
    """One extraction, killed again and again; returns the kills and the files that were whole before the last run."""
    killed = 0
    seen: dict[str, tuple[int, int]] = {}
    while killed < n_kills:
        child = start(words)
        time.sleep(generator.uniform(0.8 * shortest, longest))
        os.kill(child, signal.SIGKILL)
        status = ended(child)
        if os.WIFEXITED(status):
            break
        killed += 1
        seen = compare(folder, seen, report)
    status = ended(start(words))
    report["exit_codes"].append(os.waitstatus_to_exitcode(status))
    compare(folder, seen, report)
    return killed, len(seen)


def compare(
    folder: Path, seen: dict[str, tuple[int, int]], report: dict[str, list[object]]
) -> dict[str, tuple[int, int]]:
    """Note what cannot be read, and what is not the file it was when it was first whole."""
    found, unreadable = whole_files(folder)
    report["unreadable"] += unreadable
    report["changed"] += [name for name, identity in seen.items() if found.get(name) != identity]
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
