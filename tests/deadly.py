"""Paths that do to the reader process what damaged slides and dying disks do, when somebody opens them there.

A real decoder crashes on one damaged slide in thousands and nobody knows on which; these do it every time.
"""

import os
import signal
import time
from pathlib import PosixPath

PARENT = os.environ.setdefault("PROMPTMIL_TEST_PARENT", str(os.getpid()))


class DeadlyPath(PosixPath):
    """Kills the process that opens it."""

    SIGNAL = signal.SIGSEGV

    def __fspath__(self) -> str:
        if str(os.getpid()) != PARENT:
            signal.raise_signal(self.SIGNAL)  # to this very thread: at once
        return str(self)


class AbortingPath(DeadlyPath):
    """Ends the process as a failed assertion in C does."""

    SIGNAL = signal.SIGABRT


class StuckPath(DeadlyPath):
    """Never comes back, as a read from a dead file server."""

    def __fspath__(self) -> str:
        if str(os.getpid()) != PARENT:
            time.sleep(1000)
        return str(self)


class OnceDeadlyPath(DeadlyPath):
    """Kills the first process that opens it, and is well afterwards."""

    def __fspath__(self) -> str:
        mark = str(self).rpartition("/")[0] + "/died"
        if str(os.getpid()) != PARENT and not os.path.lexists(mark):
            os.close(os.open(mark, os.O_CREAT))
            signal.raise_signal(self.SIGNAL)  # to this very thread: at once
        return str(self)
