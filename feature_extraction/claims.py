"""Who works on which slide, across processes and machines that share a folder.

A claim is the kernel's lock on a file that is never deleted: it is free the moment its owner dies, however it dies.
"""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claim(path: Path) -> Generator[bool, None, None]:
    """Try to claim the work named by ``path`` while the block runs.

    Yields:
        Whether the work is ours; False when somebody else has it now.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
