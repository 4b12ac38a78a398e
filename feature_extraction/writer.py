"""One thread that takes rows to the disk, so that the device does not wait for it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

DEPTH = 4
"""Batches that may wait for the disk; beyond it the device waits, and the counters say so."""


class Writer:
    """Runs one task after the other, in order. Use as a context manager: leaving it waits for all of them."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._room = threading.BoundedSemaphore(DEPTH)
        self._failed: BaseException | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown()
        if kind is None:
            self._raise_failure()

    def submit(self, task: Callable[[], None]) -> None:
        """Queue a task; waits while `DEPTH` of them are queued.

        Raises:
            BaseException: What an earlier task raised.
        """
        self._raise_failure()
        self._room.acquire()
        self._executor.submit(task).add_done_callback(self._done)

    def drain(self) -> None:
        """Wait until everything queued so far is done.

        Raises:
            BaseException: What a task raised.
        """
        self._executor.submit(int).result()
        self._raise_failure()

    def _done(self, future: "Future[None]") -> None:
        self._failed = self._failed or future.exception()
        self._room.release()

    def _raise_failure(self) -> None:
        if self._failed is not None:
            raise self._failed
