"""Paths of slides that kill the reader not when they are first opened but later: once, or while tiles are read.

Apart from the tests, because every new reader process imports this file.
"""

import os
import signal
import sys
from pathlib import PosixPath

from deadly import PARENT


class LatePath(PosixPath):
    """Kills the reader once, when it is opened for the n-th time: ``late3.svs`` at the third."""

    def __fspath__(self) -> str:
        if str(os.getpid()) != PARENT and self.suffix == ".svs":
            with open(str(self) + ".openings", "ab") as stream:  # noqa: PTH123 - of a Path, it would call itself
                stream.write(b".")
                n = stream.tell()
            if n == int(self.stem.removeprefix("late")):
                signal.raise_signal(signal.SIGBUS)
        return str(self)


class TilesDeadlyPath(PosixPath):
    """Can be planned; kills the reader that opens it for its tiles."""

    def __fspath__(self) -> str:
        frame = sys._getframe()
        while frame.f_back is not None and str(os.getpid()) != PARENT:
            frame = frame.f_back
            if frame.f_code.co_name == "_answer_tiles":
                signal.raise_signal(signal.SIGBUS)
        return str(self)
