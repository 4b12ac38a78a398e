"""Processes of tests: each has a time limit, and a limit that is passed says where everybody stood.

A command writes to files: one of its children that outlives it may hold a pipe open, but not keep a test waiting.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

LIMIT_S = 240.0
DUMP_S = 2.0
"""Between asking a process for its stacks and killing it."""


def run(
    words: Sequence[str | Path],
    *,
    check: bool = False,
    seconds: float = LIMIT_S,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, without input; it fails the test when it takes longer than ``seconds``.

    Python's processes then say where they stand, and all of its session is killed.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        with started(
            words, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=env, cwd=cwd, start_new_session=True
        ) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                ask_for_stacks(process.pid)
                end_group(process)
                pytest.fail(f"{process.args} still ran after {seconds:g} s and said:\n{_text(stdout)}\n{_text(stderr)}")
        done = subprocess.CompletedProcess(process.args, process.returncode, _text(stdout), _text(stderr))
    if check:
        assert done.returncode == 0, f"{words} ended with {done.returncode}: {done.stdout}\n{done.stderr}"
    return done


@contextmanager
def started(
    words: Sequence[str | Path], *, env: Mapping[str, str] | None = None, **options: object
) -> Generator["subprocess.Popen[str]", None, None]:
    """A process for as long as the block: `subprocess.Popen` would wait at its end for as long as the process likes."""
    environment = {**(os.environ if env is None else env), "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen([str(word) for word in words], text=True, env=environment, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        end_group(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(OSError):  # what it had not read
                    stream.close()


def end_group(process: "subprocess.Popen[str]") -> None:
    """Kill a process, and its session where it has one of its own."""
    with suppress(ProcessLookupError):
        if os.getsid(process.pid) == process.pid:
            for pid in session_of(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait(30)


def ask_for_stacks(pid: int) -> None:
    """Let Python's processes of a session print all their stacks to their standard error; it ends them."""
    for one in {pid, *session_of(pid)}:
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGCONT)
            os.kill(one, signal.SIGABRT)
    time.sleep(DUMP_S)


def session_of(leader: int) -> list[int]:
    """The processes of a session that are no zombies."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                found += [int(folder.name)] if int(fields[3]) == leader and fields[0] != "Z" else []
    return found


def until(is_so: Callable[[], object], seconds: float = 120.0, pause: float = 0.002) -> None:
    """Wait until something is so, and fail when it is not within ``seconds``."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"not so after {seconds:g} s"
        time.sleep(pause)


def join(*threads: threading.Thread, seconds: float = 120.0) -> None:
    """Wait for threads, and fail when one does not end."""
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), f"{thread.name} still runs: {_stack_of(thread)}"


def _stack_of(thread: threading.Thread) -> str:
    import traceback

    return "".join(traceback.format_stack(sys._current_frames().get(thread.ident or 0)))


def _text(stream: object) -> str:
    stream.seek(0)  # type: ignore[attr-defined]
    return stream.read().decode(errors="replace")  # type: ignore[attr-defined]
