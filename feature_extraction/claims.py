"""Who works on which slide, across processes and machines that share a folder.

A claim is the kernel's lock on a file that is never deleted: it is free the moment its owner dies, however it dies.
Where the file system has no locks, a lease takes its place (`feature_extraction.lease`).
"""

import errno
import fcntl
import functools
import logging
import math
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from feature_extraction.lease import PERIOD_S, Lease, LeaseWatch, looks_held

NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""What ``flock`` says where the file system has no locks."""
GLANCES, GLANCE_S = 5, 0.005
"""A lock that is not free is tried again so often, so many seconds apart: it may be no owner but `is_claimed`."""
_WATCH = LeaseWatch()
_HELD: dict[Path, Lease] = {}


@contextmanager
def claim(path: Path, *, period_s: float = PERIOD_S) -> Generator[bool, None, None]:
    """Try to claim the work named by ``path`` while the block runs; never waits for another owner.

    Args:
        path: The lock file; it is made, and never deleted.
        period_s: Seconds between two beats of a lease, the same for all workers; used only where there are no locks.
            A dead owner's lease is taken over by a process that asks again after it stood still for three of them.

    Yields:
        Whether the work is ours; False when somebody else has it now.

    Raises:
        OSError: The lock file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        is_locked = _lock(descriptor)
        if is_locked is None:
            _say_once()
            with _leased(path, period_s) as is_ours:
                yield is_ours
            return
        try:
            yield is_locked
        finally:
            if is_locked:  # closing would not free it while a forked child has the descriptor too
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def is_still_ours(path: Path) -> bool:
    """Whether work claimed by this process has not been taken over; to be asked before anything is written.

    The kernel's lock cannot be lost. A lease can, when its owner stood still (stopped, swapped out) for three periods.
    """
    lease = _HELD.get(path.absolute())
    return lease is None or lease.is_held()


def is_claimed(path: Path, *, dead_after_s: float = math.inf) -> bool:
    """Whether somebody has the work now; takes and writes nothing.

    Without locks the answer is that of the lease, whose owner may be dead.

    Args:
        path: The lock file.
        dead_after_s: As `feature_extraction.lease.looks_held` has it; only where an answer is shown and not acted on.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return looks_held(_lease_folder(path), dead_after_s=dead_after_s)
    else:
        return False
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether the kernel gave us the lock; None when it has none to give on this file system."""
    for attempt in range(GLANCES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt < GLANCES - 1:
                time.sleep(GLANCE_S)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return None
        else:
            return True
    return False


@contextmanager
def _leased(path: Path, period_s: float) -> Generator[bool, None, None]:
    lease = _WATCH.take(_lease_folder(path), period_s=period_s)
    if lease is None:
        yield False
        return
    _HELD[path.absolute()] = lease
    try:
        yield True
    finally:
        del _HELD[path.absolute()]
        with suppress(OSError):  # then it stands still, and the next owner waits three periods
            lease.give_back()


def _lease_folder(path: Path) -> Path:
    return path.with_name(f"{path.name}.lease")


@functools.cache
def _say_once() -> None:
    logging.getLogger(__name__).warning(
        "this file system has no locks (flock): workers share slides by leases instead; a slide whose worker died is "
        "free again after %g s",
        3 * PERIOD_S,
    )
