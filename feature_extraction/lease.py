"""A claim where the file system has no locks: a counter that its owner keeps turning.

A lease is a folder of numbered files, its generations. The highest one holds; whoever wants the lease next creates the
number after it, which only one process can do. A generation may be followed when its owner gave it back, or when its
counter stood still for three periods as timed by the waiter's own monotonic clock, so that neither process numbers nor
anybody's wall clock matter. An owner that was followed while it slept finds out by `Lease.is_held`, at its next beat.
"""

import contextlib
import logging
import math
import os
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

PERIOD_S = 20.0
STILL_PERIODS = 3
SEEMS_DEAD_S = 10 * PERIOD_S
"""Without a beat for so long an owner is shown as dead."""
_FREE = b"free\n"


class Lease:
    """A lease that is ours, with the thread that keeps its counter turning.

    Args:
        path: The generation's file; its name is the number.
        descriptor: Open for writing on that file.
        period_s: Seconds between two beats.
    """

    def __init__(self, path: Path, descriptor: int, period_s: float) -> None:
        self._path = path
        self._descriptor = descriptor
        self._period_s = period_s
        self._owner = uuid.uuid4().hex
        self._n_beats = 0
        self._is_over = threading.Event()
        self._heart = threading.Thread(target=self._keep_beating, name=f"lease {path.parent.name}", daemon=True)
        self._beat()
        self._heart.start()

    def is_held(self) -> bool:
        """Whether nobody has followed us, asked of the folder now; False also when it cannot be read."""
        try:
            return newest_generation(self._path.parent) == int(self._path.name)
        except OSError:
            return False

    def give_back(self) -> None:
        """Let the next one follow without waiting."""
        self._is_over.set()
        self._heart.join()
        try:
            os.pwrite(self._descriptor, _FREE, 0)
            os.ftruncate(self._descriptor, len(_FREE))
        finally:
            os.close(self._descriptor)

    def _keep_beating(self) -> None:
        while not self._is_over.wait(self._period_s):
            if not self.is_held():
                logging.getLogger(__name__).warning(
                    "%s: this worker stood still for so long that another took its work over", self._path.parent.name
                )
                return
            try:
                self._beat()
            except OSError as error:  # the next beat may succeed; if none does, others will follow, as they should
                logging.getLogger(__name__).warning("%s: the lease cannot be written: %s", self._path, error.strerror)

    def _beat(self) -> None:
        self._n_beats += 1
        os.pwrite(self._descriptor, f"{self._owner} {self._n_beats:020d}\n".encode(), 0)
        os.fsync(self._descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sight:
    """What a waiter saw of somebody's lease, and since when it has looked like that (monotonic seconds)."""

    generation: int
    content: bytes
    since_s: float


class LeaseWatch:
    """What one process has seen of the leases of others; waiting means to ask `take` again later."""

    def __init__(self) -> None:
        self._sights: dict[Path, _Sight] = {}

    def take(self, folder: Path, *, period_s: float = PERIOD_S) -> Lease | None:
        """Take a lease if it is free, or if this watch has seen it stand still for three periods.

        Args:
            folder: Of the lease; made when it is not there.
            period_s: Seconds between two beats, the same for all workers.

        Returns:
            The lease, or None when somebody has it, as far as we know yet.

        Raises:
            OSError: The folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        newest = newest_generation(folder)
        if newest and not self._may_follow(folder, newest, STILL_PERIODS * period_s):
            return None
        self._sights.pop(folder, None)
        return _follow(folder, newest, period_s)

    def _may_follow(self, folder: Path, generation: int, patience_s: float) -> bool:
        try:
            content = (folder / str(generation)).read_bytes()
        except FileNotFoundError:
            return False  # followed this very moment
        if content == _FREE:
            return True
        sight = self._sights.get(folder)
        if sight is None or (sight.generation, sight.content) != (generation, content):
            self._sights[folder] = _Sight(generation=generation, content=content, since_s=time.monotonic())
            return False
        return time.monotonic() - sight.since_s > patience_s


def newest_generation(folder: Path) -> int:
    """The generation that holds, 0 when there is none.

    Raises:
        OSError: The folder cannot be read.
    """
    return max(_generations(folder), default=0)


def looks_held(folder: Path, *, dead_after_s: float = math.inf) -> bool:
    """Whether a lease was not given back. Its owner may be dead: only waiting could tell.

    Args:
        folder: Of the lease.
        dead_after_s: Age of the last beat from which on the owner is taken for dead. The age is by wall clocks, which
            may differ between machines: good enough to show to people, not to act on.
    """
    with contextlib.suppress(FileNotFoundError):
        newest = newest_generation(folder)
        if newest == 0:
            return False
        path = folder / str(newest)
        return path.read_bytes() != _FREE and time.time() - path.stat().st_mtime < dead_after_s
    return False


def _follow(folder: Path, generation: int, period_s: float) -> Lease | None:
    """Create the next generation, or None when another process was faster."""
    path = folder / str(generation + 1)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None
    if newest_generation(folder) > generation + 1:  # we were slow: the number was used and cleared away meanwhile
        os.close(descriptor)
        path.unlink(missing_ok=True)
        return None
    try:
        lease = Lease(path, descriptor, period_s)
    except OSError:
        os.close(descriptor)
        raise
    for past in _generations(folder):
        if past <= generation:
            (folder / str(past)).unlink(missing_ok=True)
    return lease


def _generations(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
