"""Standard error that cannot fail: it may be a file on a full disk, and no message should end a run that can go on."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Protocol, TextIO, cast, runtime_checkable


@runtime_checkable
class _Stream(Protocol):
    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...

    def fileno(self) -> int: ...


class _Unfailing:
    """A line that cannot be written is lost, and nothing else is."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def unfailing_stderr() -> Generator[None, None, None]:
    """For as long as it is entered, what is written to standard error raises nothing."""
    stream: _Stream = sys.stderr
    sys.stderr = cast("TextIO", _Unfailing(stream))
    try:
        yield
    finally:
        sys.stderr = cast("TextIO", stream)
        try:
            stream.flush()
        except OSError:  # the interpreter flushes once more at its end, and would make an exit code of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
