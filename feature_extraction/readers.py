"""The parent's side of the reader process: requests, answers, and what happens when it crashes or stalls.

A process that dies or does not answer is replaced. The slides that were open then are tried again one at a time; one
that does it again alone is failed, and the others go on.
"""

import itertools
import multiprocessing
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from types import TracebackType
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from feature_extraction.errors import SlideError
from feature_extraction.reader_process import Answer, Forget, Reply, Request, death, reader_error, serve, tiles_in

START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""A fork of a small server that has imported everything: a new reader process is there in milliseconds."""
DEATHS_ALLOWED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderSettings:
    """How the reader process works.

    Attributes:
        n_threads: Tiles decoded at the same time.
        n_tiles: Room for tiles in the shared memory.
        side_px: Side of a tile.
        stall_seconds: Without any answer for so long, the process counts as stuck.
    """

    n_threads: int
    n_tiles: int
    side_px: int
    stall_seconds: float


@runtime_checkable
class ReaderService(Protocol):
    """Whoever opens, plans and reads slides for a run: a process of this machine, or actors of a cluster.

    Attributes:
        tiles: Where the tiles come to lie; the place is told in each request.
    """

    tiles: UInt8[np.ndarray, "place side side 3"]

    def __enter__(self) -> "ReaderService":
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; requests without an answer are cancelled."""
        ...

    def ask(self, request: Request) -> "Future[Answer]":
        """Send a request; the answer may be a `SlideError`, it is never raised."""
        ...

    def forget(self, slide_id: str, path: Path) -> None:
        """Let go of a slide file's handles; nobody waits for that."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A request that waits for its answer."""

    request: Request
    answer: "Future[Answer]"


class Readers:
    """A supervised reader process. Use as a context manager.

    Attributes:
        tiles: The shared memory; a tile lies where its request says.
        n_restarts: How often the process had to be replaced.
    """

    def __init__(self, settings: ReaderSettings) -> None:
        self._settings = settings
        self._context = _context()
        side = settings.side_px
        self._memory = self._context.RawArray("B", settings.n_tiles * side * side * 3)
        self.tiles: UInt8[np.ndarray, "place side side 3"] = tiles_in(self._memory, side)
        self.n_restarts = 0
        self._tickets = itertools.count()
        self._asked: dict[int, _Asked] = {}
        self._deaths: Counter[str] = Counter()
        self._suspects: deque[str] = deque()
        self._alone: str | None = None
        self._lock = threading.Lock()  # of everything above, and of the process and its connection
        self._outbox: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._is_closing = False
        self._fault: Exception | None = None
        self._heard = time.monotonic()

    def __enter__(self) -> "Readers":
        self._start()
        self._watcher = threading.Thread(target=self._watch, name="reader-watch", daemon=True)
        self._sender = threading.Thread(target=self._send_all, name="reader-send", daemon=True)
        self._watcher.start()
        self._sender.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:  # no process is begun after this one
            self._is_closing = True
            self._process.kill()
        self._watcher.join()
        self._process.join()
        self._outbox.put(None)
        self._sender.join()
        self._connection.close()
        for asked in self._asked.values():
            asked.answer.cancel()

    def forget(self, slide_id: str, path: Path) -> None:
        """Let go of a slide file's handles; nobody waits for that."""
        with self._lock:
            self._send(-1, Forget(slide_id=slide_id, path=path))

    def ask(self, request: Request) -> "Future[Answer]":
        """Send a request; the answer may be a `SlideError`, it is never raised."""
        asked = _Asked(request=request, answer=Future())
        with self._lock:
            if self._fault is not None:
                asked.answer.set_exception(self._fault)
            if self._is_closing:
                asked.answer.cancel()
            if asked.answer.done():
                return asked.answer
            ticket = next(self._tickets)
            if not self._asked:
                self._heard = time.monotonic()
            self._asked[ticket] = asked
            if self._alone is None or request.slide_id == self._alone:
                self._send(ticket, request)
        return asked.answer

    def _send(self, ticket: int, request: Request | Forget) -> None:
        """Have a request sent to the present process; never waits."""
        self._outbox.put(partial(self._connection.send, (ticket, request)))

    def _send_all(self) -> None:
        """Send until the end: a process that does not read its pipe holds up this thread alone, until it is killed."""
        while (send := self._outbox.get()) is not None:
            try:
                send()
            except OSError:
                pass  # it died meanwhile; the watcher sends the request again
            except Exception as error:  # noqa: BLE001 - raised again where answers are waited for
                self._give_up(error)

    def _start(self) -> None:
        settings = self._settings
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=serve, args=(theirs, self._memory, settings.side_px, settings.n_threads), daemon=True
        )
        # Slurm sends TERM to every process of a job. The server that forks the readers must outlive it as they do.
        resource_tracker.ensure_running()  # its own start unblocks these signals, so it comes before they are blocked
        kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, kept)
        theirs.close()
        self._process, self._connection = process, ours
        self._heard = time.monotonic()

    def _watch(self) -> None:
        """Watch until the end; a fault of the watching itself must not leave anybody waiting for ever."""
        try:
            self._watch_until_closed()
        except Exception as error:  # noqa: BLE001 - raised again where answers are waited for
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            self._fault = self._fault or error
            waiting = list(self._asked.values())
            self._asked.clear()
        for asked in waiting:
            asked.answer.set_exception(error)

    def _watch_until_closed(self) -> None:
        """Receive answers; notice death and silence."""
        limit = self._settings.stall_seconds
        while not self._is_closing:
            wait([self._connection, self._process.sentinel], timeout=min(1.0, limit / 20))
            is_open = self._receive()
            if self._is_closing:
                return
            if not is_open or not self._process.is_alive():
                self._receive()
                self._process.join(1.0)
                self._replace(death(self._process.exitcode))
            elif self._asked and time.monotonic() - self._heard > limit:
                self._replace(f"did not answer for {limit:g} s")

    def _receive(self) -> bool:
        """Take every answer that is there; False when the pipe has ended."""
        try:
            while self._connection.poll():
                reply = self._connection.recv()
                self._heard = time.monotonic()
                if reply.answer is not None:
                    self._take(reply)
        except (EOFError, OSError):
            return False
        return True

    def _take(self, reply: Reply) -> None:
        with self._lock:
            asked = self._asked.pop(reply.ticket)
            del self._deaths[asked.request.slide_id]  # it goes on: what killed the process was not what it always does
            if self._alone is not None and not self._open_of(self._alone):
                self._send_next_suspect()
        if reply.answer is not None:
            asked.answer.set_result(reply.answer)

    def _replace(self, reason: str) -> None:
        """Put a new process in the place of one that died or is stuck."""
        self._process.kill()
        self._process.join()
        self._outbox.put(self._connection.close)  # after whatever is being sent: a descriptor must not be closed in use
        failed: list[tuple[_Asked, SlideError]] = []
        with self._lock:
            if self._is_closing:
                return
            open_slides = (
                [self._alone] if self._alone else list(dict.fromkeys(a.request.slide_id for a in self._asked.values()))
            )
            self._deaths.update(open_slides)
            if len(open_slides) == 1 and self._deaths[open_slides[0]] >= DEATHS_ALLOWED:
                error = reader_error(open_slides[0], reason)
                failed = [(self._asked.pop(ticket), error) for ticket in self._open_of(open_slides[0])]
            if self._alone is None:
                self._suspects = deque(open_slides)
            else:
                self._suspects.appendleft(self._alone)
            self.n_restarts += 1
            self._start()
            self._send_next_suspect()
        for asked, error in failed:
            asked.answer.set_result(error)

    def _send_next_suspect(self) -> None:
        """Send the requests of one suspect alone, or of everybody when all are cleared."""
        while self._suspects:
            self._alone = self._suspects.popleft()
            tickets = self._open_of(self._alone)
            if tickets:
                break
        else:
            self._alone = None
            tickets = list(self._asked)
        for ticket in tickets:
            self._send(ticket, self._asked[ticket].request)

    def _open_of(self, slide_id: str) -> list[int]:
        return [ticket for ticket, asked in self._asked.items() if asked.request.slide_id == slide_id]


def _context() -> ForkServerContext | SpawnContext:
    """How processes begin; both kinds of context are alike to us."""
    context = cast("ForkServerContext | SpawnContext", multiprocessing.get_context(START_METHOD))
    if START_METHOD == "forkserver":
        context.set_forkserver_preload(["feature_extraction.reader_process"])
    return context
