"""One process for each device of a machine: each runs the same command on its device, claims keep them apart."""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from feature_extraction.commands import settings
from feature_extraction.commands.stop import StopOnSignal

POLL_SECONDS = 0.2
LOGS = ".workers"
LAST_LETTERS = 3000
BUG = 1
BY_WEIGHT = (4, BUG, 2, 3)
"""Exit codes, the one that is told first."""
OWN_KEYS = re.compile(r"(device|threads|worker|workers)=.*", re.DOTALL)
"""Words of the command line that each process is given anew."""


def run_side_by_side(config: DictConfig, devices: Sequence[str]) -> int:
    """Run ``extract`` once for each device and wait for all; returns the weightiest exit code.

    Each worker's lines go to ``<out>/.workers/<k>.log``. A worker waits for the slides of the others, so that the last
    to end has seen them all in the tables and in ``summary.json``.
    """
    out = Path(config.out)
    logs = out / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    threads = max(1, settings.n_threads(config.threads) // len(devices))
    stop = StopOnSignal()
    was_told = False
    with stop:
        workers = [
            _start(config, device, index, len(devices), threads, logs / f"{index}.log")
            for index, device in enumerate(devices)
        ]
        while any(worker.poll() is None for worker in workers):
            if stop.is_asked and not was_told:
                was_told = True
                for worker in workers:
                    worker.terminate()
            time.sleep(POLL_SECONDS)
    codes = [worker.returncode for worker in workers]
    for index, (device, code) in enumerate(zip(devices, codes, strict=True)):
        log = logs / f"{index}.log"
        console.print(f"{device}: exit code {code}; {log} says:", markup=False, soft_wrap=True)
        console.print(log.read_text(errors="replace")[-LAST_LETTERS:], markup=False, soft_wrap=True)
    return next((code for code in BY_WEIGHT if code in codes), 0 if not any(codes) else BUG)


def _start(
    config: DictConfig, device: str, index: int, n_devices: int, threads: int, log: Path
) -> "subprocess.Popen[bytes]":
    """The same command for one device."""
    words = [
        *(word for word in sys.argv[1:] if not OWN_KEYS.fullmatch(word)),
        f"device={device}",
        f"threads={threads}",
        f"worker={config.worker * n_devices + index}",
        f"workers={config.workers * n_devices}",
    ]
    with log.open("wb") as stream:
        command = [sys.executable, "-P", "-m", "mil", "extract", *words]
        return subprocess.Popen(command, stdout=stream, stderr=stream)  # noqa: S603 - this very command, again
