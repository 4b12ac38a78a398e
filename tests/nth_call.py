"""Let the n-th call to the file system fail, as SQLite's tests do: every call of a run in its turn.

Only calls that touch a given folder count, in whichever process they are made. A write that fails has written half of
its bytes, as on a disk that becomes full.
"""

import builtins
import fcntl
import io
import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOOKING = frozenset({"open to read", "read", "scandir", "statvfs", "flock", "pread"})
"""Calls that a full disk, and one that became read-only, still answers."""
REMOVING = frozenset({"unlink"})
TAKING = frozenset({"open to write", "write", "ftruncate", "fsync", "replace", "rename", "mkdir", "chmod"})


class FailingCalls:
    """Counts calls and decides which fail.

    Args:
        folder: Only what lies in it counts.
        n: The first call that fails, counted from 1.
        code: The error's number.
        last: The last call that fails.
        spares: Calls that neither count nor fail.
    """

    def __init__(self, folder: Path, *, n: int, code: int, last: int, spares: frozenset[str]) -> None:
        self._folder = str(folder) + os.sep
        self._n, self._last, self._code, self._spares = n, last, code, spares
        self._count = multiprocessing.get_context("fork").Value("l", 0)
        self._lock = threading.Lock()
        self.failed: list[str] = []

    def touch(self, call: str, path: object) -> None:
        """Count a call; raises when its turn has come."""
        name = _name_of(path)
        if not (name + os.sep).startswith(self._folder) or call in self._spares:
            return
        with self._lock, self._count.get_lock():
            self._count.value += 1
            n = self._count.value
        if self._n <= n <= self._last:
            self.failed.append(f"{n}: {call} {name}")
            raise OSError(self._code, os.strerror(self._code), name if isinstance(path, str | os.PathLike) else None)

    def report(self) -> dict[str, object]:
        return {"n_calls": self._count.value, "failed": self.failed}


def fail_calls(folder: str, n: int, code: int, last: int, spared: list[str]) -> Callable[[], object]:
    """Prepare a run whose calls from the n-th to the last one fail."""
    calls = FailingCalls(Path(folder), n=n, code=code, last=last, spares=frozenset(spared))
    _patch_descriptors(calls)
    _patch_names(calls)
    _patch_streams(calls)
    return calls.report


def _name_of(path: object) -> str:
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115 - patched too
    return os.path.abspath(os.fspath(path)) if isinstance(path, str | os.PathLike) else ""  # noqa: PTH100 - patched too


def _patch_descriptors(calls: FailingCalls) -> None:
    def counted(call: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, *rest: Any, **named: Any) -> Any:
            calls.touch(call, path.fileno() if hasattr(path, "fileno") else path)
            return function(path, *rest, **named)

        return wrapped

    for name in ("fsync", "ftruncate", "pwrite", "pread", "statvfs"):
        setattr(os, name, counted({"pwrite": "write"}.get(name, name), getattr(os, name)))
    flock = fcntl.flock
    fcntl.flock = lambda fd, how: flock(fd, how) if how == fcntl.LOCK_UN else counted("flock", flock)(fd, how)


def _patch_names(calls: FailingCalls) -> None:
    def counted(call: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any = ".", *rest: Any, **named: Any) -> Any:
            calls.touch(call, path)
            return function(path, *rest, **named)

        return wrapped

    for name in ("replace", "rename", "mkdir", "unlink", "chmod", "scandir"):
        setattr(os, name, counted(name, getattr(os, name)))
    plain_open = os.open

    def open_descriptor(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        calls.touch("open to write" if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) else "open to read", path)
        return plain_open(path, flags, *rest, **named)

    os.open = open_descriptor


def _patch_streams(calls: FailingCalls) -> None:  # noqa: C901 - one small patch beside the other
    """Streams on a raw file whose reads and writes count: buffers above it behave as they always do."""
    plain_open, plain_fdopen = io.open, os.fdopen

    class CountedFile(io.FileIO):
        def write(self, data: Any) -> int:
            try:
                calls.touch("write", self.fileno())
            except OSError:
                super().write(memoryview(data)[: len(data) // 2])
                raise
            return super().write(data)

        def readinto(self, buffer: Any) -> int:
            calls.touch("read", self.fileno())
            return super().readinto(buffer)

        def readall(self) -> bytes:
            calls.touch("read", self.fileno())
            return super().readall()

        def truncate(self, size: int | None = None) -> int:
            calls.touch("write", self.fileno())
            return super().truncate(size)

    def counted_open(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        if not (_name_of(file) + os.sep).startswith(calls._folder):
            return plain_open(file, mode, buffering, *rest, **named)
        if not isinstance(file, int):
            calls.touch("open to read" if set(mode) <= set("rbt") else "open to write", file)
        raw = CountedFile(file, mode.replace("b", "").replace("t", ""))
        kind = io.BufferedRandom if raw.readable() else io.BufferedWriter
        stream = kind(raw) if raw.writable() else io.BufferedReader(raw)
        return stream if "b" in mode else io.TextIOWrapper(stream, *rest, **named)

    def counted_fdopen(descriptor: int, mode: str = "r", *rest: Any, **named: Any) -> Any:
        own = (_name_of(descriptor) + os.sep).startswith(calls._folder)
        return counted_open(descriptor, mode, *rest, **named) if own else plain_fdopen(descriptor, mode, *rest, **named)

    io.open = builtins.open = counted_open
    os.fdopen = counted_fdopen
