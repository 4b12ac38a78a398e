"""Freed memory stays with the process: a training step asks for the same large blocks again and again."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Numbers of glibc's ``mallopt``."""


def keep_freed_memory() -> bool:
    """Ask glibc not to hand large freed blocks back to the system; returns whether it will.

    By default a block above 32 MB is a mapping of its own, and the end of the heap goes back too; at the next step the
    system makes and clears the pages anew. Where there is another C library nothing is changed.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
