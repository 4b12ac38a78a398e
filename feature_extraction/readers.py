"""The parent's side of the reader process: requests, answers, and what happens when it crashes or stalls.

A process that dies or does not answer is replaced. The slides that were open then are tried again one at a time; one
that does it again alone is failed, and the others go on.
"""

import itertools
import multiprocessing
import signal
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from types import TracebackType
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from feature_extraction.errors import SlideError
from feature_extraction.reader_process import Answer, Forget, Reply, Request, serve, tiles_in

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
        self._lock = threading.Lock()  # of everything above
        self._send_lock = threading.Lock()  # a full pipe must not keep the watcher from its work
        self._is_closing = False
        self._fault: Exception | None = None
        self._heard = time.monotonic()

    def __enter__(self) -> "Readers":
        self._start()
        self._watcher = threading.Thread(target=self._watch, name="reader-watch", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._is_closing = True
        self._process.kill()
        self._process.join()
        self._watcher.join()
        self._connection.close()
        for asked in self._asked.values():
            asked.answer.cancel()

    def forget(self, slide_id: str, path: Path) -> None:
        """Let go of a slide file's handles; nobody waits for that."""
        with self._lock:
            connection = self._connection
        self._send(connection, -1, Forget(slide_id=slide_id, path=path))

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
            is_waiting = self._alone is not None and request.slide_id != self._alone
            connection = self._connection
        if not is_waiting:
            self._send(connection, ticket, request)
        return asked.answer

    def _send(self, connection: Connection, ticket: int, request: Request | Forget) -> None:
        try:
            with self._send_lock:
                connection.send((ticket, request))
        except OSError:
            pass  # it died meanwhile; the watcher sends the request again

    def _start(self) -> None:
        settings = self._settings
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=serve, args=(theirs, self._memory, settings.side_px, settings.n_threads), daemon=True
        )
        # Slurm sends TERM to every process of a job. The server that forks the readers must outlive it as they do.
        resource_tracker.ensure_running()  # its own start unblocks these signals, so it comes before they are blocked
        kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, kept)
        theirs.close()
        self._heard = time.monotonic()

    def _watch(self) -> None:
        """Watch until the end; a fault of the watching itself must not leave anybody waiting for ever."""
        try:
            self._watch_until_closed()
        except Exception as error:  # noqa: BLE001 - raised again where answers are waited for
            with self._lock:
                self._fault = error
                for asked in self._asked.values():
                    asked.answer.set_exception(error)
                self._asked.clear()

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
                self._replace(_death(self._process.exitcode))
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
        to_send: list[tuple[int, Request]] = []
        with self._lock:
            asked = self._asked.pop(reply.ticket)
            del self._deaths[asked.request.slide_id]  # it goes on: what killed the process was not what it always does
            if self._alone is not None and not self._open_of(self._alone):
                to_send = self._next_suspect()
            connection = self._connection
        if reply.answer is not None:
            asked.answer.set_result(reply.answer)
        for ticket, request in to_send:
            self._send(connection, ticket, request)

    def _replace(self, reason: str) -> None:
        """Put a new process in the place of one that died or is stuck."""
        self._process.kill()
        self._process.join()
        with self._send_lock:  # whoever was sending has its broken pipe by now
            self._connection.close()
        failed: list[tuple[_Asked, SlideError]] = []
        with self._lock:
            open_slides = (
                [self._alone] if self._alone else list(dict.fromkeys(a.request.slide_id for a in self._asked.values()))
            )
            self._deaths.update(open_slides)
            if len(open_slides) == 1 and self._deaths[open_slides[0]] >= DEATHS_ALLOWED:
                error = _reader_error(open_slides[0], reason)
                failed = [(self._asked.pop(ticket), error) for ticket in self._open_of(open_slides[0])]
            if self._alone is None:
                self._suspects = deque(open_slides)
            else:
                self._suspects.appendleft(self._alone)
            self.n_restarts += 1
            self._start()
            to_send = self._next_suspect()
            connection = self._connection
        for asked, error in failed:
            asked.answer.set_result(error)
        for ticket, request in to_send:
            self._send(connection, ticket, request)

    def _next_suspect(self) -> list[tuple[int, Request]]:
        """The requests to send next: of one suspect alone, or of everybody when all are cleared."""
        while self._suspects:
            self._alone = self._suspects.popleft()
            tickets = self._open_of(self._alone)
            if tickets:
                return [(ticket, self._asked[ticket].request) for ticket in tickets]
        self._alone = None
        return [(ticket, asked.request) for ticket, asked in self._asked.items()]

    def _open_of(self, slide_id: str) -> list[int]:
        return [ticket for ticket, asked in self._asked.items() if asked.request.slide_id == slide_id]


def _context() -> ForkServerContext | SpawnContext:
    """How processes begin; both kinds of context are alike to us."""
    context = cast("ForkServerContext | SpawnContext", multiprocessing.get_context(START_METHOD))
    if START_METHOD == "forkserver":
        context.set_forkserver_preload(["feature_extraction.reader_process"])
    return context


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"crashed the reader with {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended the reader (exit code {exit_code})"


def _reader_error(slide_id: str, reason: str) -> SlideError:
    is_stall = reason.startswith("did not answer")
    return SlideError(
        slide_id=slide_id,
        stage="tile",
        cause=f"opened alone, it {reason}, twice",
        remedy="check the storage it lies on (stall_seconds=… gives it longer)"
        if is_stall
        else "copy the slide again from its source, or leave it out",
        code="E-timeout" if is_stall else "E-crash",
    )
