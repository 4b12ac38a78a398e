"""Run `promptmil train` again and again in forked children, kill each at a random moment, until one finishes.

Forked from a process that has imported everything, so that the kills fall into the work and not into the imports.
Prints one JSON line: how many children were killed, how many went on from a checkpoint, checkpoints that do not load,
and files that differ from those of the run that nobody killed.
"""

import contextlib
import io
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import kill_loop
import torch
from study_files import write_study

from feature_extraction.errors import DamagedFileError
from mil.resume import CHECKPOINT, Checkpoints
from mil.state_file import read_state

COMPARED = ("metrics.json", "predictions.csv", "log.csv", "model.safetensors")


def start(words: list[str], said: Path) -> int:
    child = os.fork()
    if child == 0:
        import mil.cli

        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os._exit(mil.cli.main(["train", *words]))
    return child


def unreadable(folder: Path) -> list[str]:
    """Checkpoints below a folder that do not load; there must be none."""
    found: list[str] = []
    for path in folder.glob(f"*/{CHECKPOINT}"):
        try:
            read_state(path, Checkpoints(path=path, cell=path.parent.name, every_s=0).made_by())
        except DamagedFileError as error:
            found.append(str(error))
    return found


def kill_until_done(words: list[str], out: Path, waits: tuple[float, float], n_kills: int) -> dict[str, object]:
    """One training; killed after a random wait until it ends by itself, or ``n_kills`` times and then left alone."""
    generator = random.Random(out.name)
    killed, bad = 0, list[str]()
    said = out.with_suffix(".txt")
    while True:
        child = start([*words, f"out={out}"], said)
        if killed < n_kills:
            time.sleep(generator.uniform(*waits))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = kill_loop.ended(child)
        bad += unreadable(out)
        if os.WIFEXITED(status):
            break
        killed += 1
    resumed = said.read_text().count("goes on after epoch")
    return {"killed": killed, "resumed": resumed, "unreadable": bad, "exit_code": os.waitstatus_to_exitcode(status)}


def differences(calm: Path, out: Path) -> list[str]:
    """Files that are not those of the calm run, and files that should be gone."""
    (expected,), (found,) = calm.glob("*/done.json"), out.glob("*/done.json")
    left = [path.name for path in found.parent.iterdir() if path.name.startswith(".")]
    return left + [
        name for name in COMPARED if (found.parent / name).read_bytes() != (expected.parent / name).read_bytes()
    ]


def main(folder: Path, n_kills: int, n_epochs: int) -> None:
    import mil.cli

    torch.set_num_threads(1)  # a thread pool does not survive a fork
    words = [*write_study(folder), "trainer.max_tiles=16", "trainer.batch_size=2", "trainer.accelerator=cpu"]
    words += [f"trainer.max_epochs={n_epochs}", "checkpoint_s=0"]
    # What is imported late is imported here; without an epoch, as a backward pass would not survive a fork either.
    with contextlib.redirect_stderr(io.StringIO()):
        mil.cli.main(["train", *words, "trainer.max_epochs=0", f"out={folder / 'imports'}"])
    seconds: list[float] = []
    for _ in range(2):  # the second finds it done
        begin = time.monotonic()
        kill_loop.ended(start([*words, f"out={folder / 'calm'}"], folder / "calm.txt"))
        seconds.append(time.monotonic() - begin)
    whole, idle = seconds
    waits = (0.8 * idle, idle + (whole - idle) / 4)
    rounds: list[dict[str, object]] = []
    killed = 0
    while killed < n_kills:
        out = folder / f"round{len(rounds)}"
        one = kill_until_done(words, out, waits, n_kills - killed)
        killed += int(str(one["killed"]))
        rounds.append({**one, "differences": differences(folder / "calm", out)})
    print(json.dumps({"killed": killed, "calm_s": [whole, idle], "rounds": rounds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
