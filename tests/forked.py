"""Runs of `promptmil extract` that begin within milliseconds: forked from a process that has imported everything.

A test holds a `Forker` and starts runs in it. A run may be prepared (a limit set, a call patched) before its command
begins, is killed like any process, and its orphans come to the forker, where they can be counted.
"""

import atexit
import ctypes
import faulthandler
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import bounded
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from feature_extraction.store import FeatureFile

PR_SET_CHILD_SUBREAPER = 36
WAIT = 120.0
STACKS = signal.SIGUSR2


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code (minus the signal's number when one ended it) and what it said."""

    code: int
    said: str
    report: object


class Run:
    """A run that goes on in a process group of its own."""

    def __init__(self, forker: "Forker", pid: int, said: Path) -> None:
        self.pid = pid
        self._forker = forker
        self._said = said

    def wait(self, seconds: float = WAIT) -> Ended:
        code = self._forker.ask(do="wait", pid=self.pid, seconds=seconds)
        if code is None:
            self.end()
        assert code is not None, f"still ran after {seconds} s, and said: {self._said.read_text()[-20_000:]}"
        report = self._said.with_suffix(".json")
        said = self._said.read_text()
        return Ended(code=int(str(code)), said=said, report=json.loads(report.read_text()) if report.exists() else None)

    def is_running(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

    def kill(self) -> None:
        """SIGKILL to the run and its reader: a forked reader, unlike a real one, would not notice the run's death."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Let the run and its reader say where they stand, and kill them."""
        for number in (signal.SIGCONT, STACKS):
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)
        time.sleep(bounded.DUMP_S)
        self.kill()


class Forker:
    """The process that runs are forked from; use as a context manager.

    Args:
        folder: For what the runs say.
        prefix: Words before the interpreter, such as those that enter a namespace.
    """

    def __init__(self, folder: Path, prefix: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._n_runs = 0
        self._scope = ExitStack()
        self._process = self._scope.enter_context(
            bounded.started(
                [*prefix, sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
                start_new_session=True,  # so that nothing of it is left, whatever happens
            )
        )
        self.pid = int(str(self.ask(do="ready")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with self._scope:
            self._process.stdin.close()
            self._process.wait(WAIT)

    def ask(self, **request: object) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        limit = float(str(request.get("seconds", 0))) + WAIT
        is_there, _, _ = select.select([self._process.stdout], [], [], limit)
        if not is_there:
            bounded.ask_for_stacks(self._process.pid)
        assert is_there, f"no answer to {request} within {limit:g} s"
        return json.loads(self._process.stdout.readline())

    def start(
        self, options: Mapping[str, object], *, prepare: str = "", whole: bool = False, **arguments: object
    ) -> Run:
        """Start a run.

        Args:
            options: Keys and values of the command line.
            prepare: ``module:function``, called in the run before its command with ``arguments``; what it returns is
                called after the command and makes the report.
            whole: Compose the configuration within the run, as the console command does; else it is composed once.
        """
        self._n_runs += 1
        said = self._folder / f"{self._n_runs}.txt"
        plain = {key: str(value) for key, value in options.items()}
        asked = {"options": plain, "prepare": prepare, "arguments": arguments, "whole": whole}
        return Run(self, int(str(self.ask(do="start", said=str(said), **asked))), said)

    def run(self, options: Mapping[str, object], *, prepare: str = "", **arguments: object) -> Ended:
        return self.start(options, prepare=prepare, **arguments).wait()

    def left_behind(self, seconds: float = 60.0) -> list[int]:
        """Processes of runs that have ended, and that do not end within some seconds themselves."""
        end = time.monotonic() + seconds
        while True:
            children = self.ask(do="children")
            assert isinstance(children, list)
            if not children or time.monotonic() > end:
                return children
            time.sleep(0.01)


def wait_for_file(path: str) -> None:
    """Prepare a run that begins when a file is there: many runs, one moment."""
    while not Path(path).exists():
        time.sleep(0.001)


def check_files(out: Path, n_slides: int | None = None) -> int:
    """Every published file is whole and finite, nothing temporary is left; returns how many files there are."""
    files = sorted(out.glob("*/*.h5"))
    for path in files:
        assert np.isfinite(FeatureFile(path).features()).all()
    assert list(out.rglob(".tmp-*")) == []
    if n_slides is not None:
        assert len(files) == n_slides
    return len(files)


def rows_of(out: Path) -> dict[str, bytes]:
    """The features of each slide."""
    return {path.stem: FeatureFile(path).features().tobytes() for path in out.glob("*/*.h5")}


class _Server:
    """The forker's own side."""

    def __init__(self) -> None:
        self._composed: dict[tuple[str, ...], tuple[DictConfig, DictConfig]] = {}
        self._codes: dict[int, int] = {}
        self._runs: set[int] = set()

    def answer(self, request: Mapping[str, object]) -> object:
        match request["do"]:
            case "start":
                return self._start(request)
            case "wait":
                return self._wait(int(str(request["pid"])), float(str(request["seconds"])))
            case "children":
                self._reap()
                return [int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
            case "mount":
                words = ["mount", "-t", "tmpfs", "-o", str(request["options"]), "tmpfs", str(request["at"])]
                return subprocess.call(words, timeout=WAIT)
            case "unmount":
                return subprocess.call(["umount", "-l", str(request["at"])], timeout=WAIT)
        return os.getpid()

    def _start(self, request: Mapping[str, object]) -> int:
        options = request["options"]
        assert isinstance(options, dict)
        command = self._whole(options) if request["whole"] else self._composed_command(options)
        child = os.fork()
        if child:
            self._runs.add(child)
            return child
        said = os.open(str(request["said"]), os.O_WRONLY | os.O_CREAT)
        for descriptor in (1, 2):
            os.dup2(said, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.setpgid(0, 0)
        faulthandler.enable(2)
        faulthandler.register(STACKS, file=2, all_threads=True)
        code = _run(command, request)
        if request["whole"]:
            atexit._run_exitfuncs()  # what an interpreter does at its end, without taking itself to pieces
        os._exit(code)

    def _whole(self, options: Mapping[str, str]) -> Callable[[], int]:
        import mil.cli

        return lambda: mil.cli.main(["extract", *(f"{key}={value}" for key, value in options.items())])

    def _composed_command(self, options: Mapping[str, str]) -> Callable[[], int]:
        """The command with its configuration composed before the fork; paths and numbers of workers filled in."""
        import mil.jobs
        from feature_extraction.commands import extract

        own = {key: options[key] for key in ("slides", "out", "worker") if key in options}
        rest = {key: value for key, value in options.items() if key not in own}
        words = tuple(f"{key}={value}" for key, value in rest.items())
        if words not in self._composed:
            self._composed[words] = _compose({**rest, "slides": "later", "out": "later"})
        config, of_hydra = self._composed[words]
        for key, value in own.items():
            OmegaConf.update(config, key, int(value) if key == "worker" else value)
        HydraConfig.instance().cfg = of_hydra
        return lambda: mil.jobs.guarded(extract.run, config)

    def _wait(self, pid: int, seconds: float) -> int | None:
        end = time.monotonic() + seconds
        while pid not in self._codes:
            self._reap()
            if time.monotonic() > end:
                return None
            time.sleep(0.002)
        return self._codes.pop(pid)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])


def _compose(options: Mapping[str, str]) -> tuple[DictConfig, DictConfig]:
    """The configuration as the command is given it, and Hydra's own."""
    import mil.cli
    from feature_extraction.commands import extract

    composed: list[tuple[DictConfig, DictConfig]] = []

    def keep(config: DictConfig) -> int:
        of_hydra = HydraConfig.instance().cfg
        assert of_hydra is not None
        composed.append((config, of_hydra))
        return 0

    run, extract.run = extract.run, keep
    mil.cli.main(["extract", *(f"{key}={value}" for key, value in options.items())])
    extract.run = run
    return composed[0]


def _run(command: Callable[[], int], request: Mapping[str, object]) -> int:
    at_end = None
    if request["prepare"]:
        module, function = str(request["prepare"]).split(":")
        at_end = getattr(importlib.import_module(module), function)(**request["arguments"])  # type: ignore[arg-type]
    code = command()
    if at_end is not None:
        Path(str(request["said"])).with_suffix(".json").write_text(json.dumps(at_end()))
    sys.stderr.flush()
    return code


def main() -> None:
    import torch

    import feature_extraction.commands.extract
    import feature_extraction.readers
    import mil.cli  # noqa: F401 - what the runs would import

    torch.set_num_threads(1)  # a thread pool does not survive a fork
    feature_extraction.readers.START_METHOD = "fork"  # everything is imported; a fork server would import it again
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    server = _Server()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(server.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
