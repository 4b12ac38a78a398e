"""Reader actors of a Ray cluster, behind the same door as the reader process of one machine.

An actor that is lost, with its node or alone, is replaced by a new one wherever there is room; what it had is asked
of others.
Ray is imported when it is used: it is an optional part.
"""

import itertools
import queue
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from jaxtyping import UInt8

from feature_extraction.batches import TILES_A_JOB
from feature_extraction.errors import InputError, SlideError
from feature_extraction.ray_nodes import Place, first_line, plain_cause
from feature_extraction.ray_reader_host import Answered, ReaderHost
from feature_extraction.reader_process import Answer, Forget, ReadTiles, Request
from feature_extraction.readers import ReaderSettings

if TYPE_CHECKING:
    from ray.actor import ActorHandle

Out = TypeVar("Out")
LOSSES_ALLOWED = 3
"""A request is given up when so many actors were lost with it, the run when so many for each were before they began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderDemand:
    """Which reader actors a run wants.

    Attributes:
        n_actors: How many.
        cpus: Cores for each, for Ray to reserve.
        n_threads: Tiles that each decodes at the same time.
    """

    n_actors: int
    cpus: float
    n_threads: int


@dataclass(slots=True, eq=False)
class _Host:
    """One actor as its user sees it.

    Attributes:
        handle: To call it by.
        node: Where it is, None before it has begun.
        tickets: What it was asked and has not answered.
    """

    handle: "ActorHandle[ReaderHost]"
    node: str | None = None
    tickets: set[int] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class _Asked:
    """A request that waits for its answer, and how many actors were lost with it."""

    request: Request
    answer: "Future[Answer]"
    n_losses: int = 0


class RayReaders:
    """Reader actors, used by one encoder. Use as a context manager.

    Requests about one slide go to one actor while it keeps up, for the sake of what it has decoded already.

    Args:
        settings: What the encoder wants; ``n_threads`` is not used.
        demand: Which actors.
        place: What their nodes must have.

    Attributes:
        tiles: Ordinary memory of this process; a tile lies where its request says.
    """

    def __init__(self, settings: ReaderSettings, demand: ReaderDemand, place: Place) -> None:
        self._demand, self._place = demand, place
        # Each thread has a job in hand and one to begin with at once.
        self._settings = replace(settings, n_threads=demand.n_threads, n_tiles=2 * (demand.n_threads + 1) * TILES_A_JOB)
        side = settings.side_px
        self.tiles: UInt8[np.ndarray, "place side side 3"] = np.zeros((settings.n_tiles, side, side, 3), np.uint8)
        self._lock = threading.Lock()  # of all below
        self._hosts: list[_Host] = []
        self._tickets = itertools.count()
        self._asked: dict[int, _Asked] = {}
        self._n_false_starts = 0
        self._fault: Exception | None = None
        self._is_closing = False
        self._arrived: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def __enter__(self) -> "RayReaders":
        self._collector = threading.Thread(target=self._collect, name="ray-answers", daemon=True)
        self._collector.start()
        with self._lock:
            for _ in range(self._demand.n_actors):
                self._add_host()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        with self._lock:
            self._is_closing = True
            hosts = list(self._hosts)
        for host in hosts:
            ray.kill(host.handle)
        self._arrived.put(None)
        self._collector.join()
        for asked in self._asked.values():
            asked.answer.cancel()

    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes whose reader actors are at work, one for each actor."""
        with self._lock:
            return tuple(host.node for host in self._hosts if host.node is not None)

    def ask(self, request: Request) -> "Future[Answer]":
        """Send a request; the answer may be a `SlideError`, it is never raised."""
        asked = _Asked(request=request, answer=Future())
        with self._lock:
            if self._fault is not None:
                asked.answer.set_exception(self._fault)
            elif self._is_closing:
                asked.answer.cancel()
            else:
                ticket = next(self._tickets)
                self._asked[ticket] = asked
                self._send(ticket)
        return asked.answer

    def forget(self, slide_id: str, path: Path) -> None:
        """Let go of a slide file's handles; nobody waits for that."""
        with self._lock:
            for host in self._hosts:
                host.handle.forget.remote(Forget(slide_id=slide_id, path=path))

    def _add_host(self) -> None:
        """Ask Ray for one more actor; it is used from when it says that it has begun."""
        import ray

        options = ray.remote(ReaderHost).options(num_cpus=self._demand.cpus, scheduling_strategy="SPREAD")
        host = _Host(cast("ActorHandle[ReaderHost]", options.remote(self._settings, self._place)))
        self._hosts.append(host)
        future: Future[str] = host.handle.begin.remote().future()
        self._when_done(future, partial(self._take_begun, host, future))

    def _send(self, ticket: int) -> None:
        """Send a request to an actor; without any at work it waits for the first."""
        host = self._chosen(ticket, self._asked[ticket].request)
        if host is None:
            return
        host.tickets.add(ticket)
        future: Future[Answered] = host.handle.answer.remote(self._asked[ticket].request).future()
        self._when_done(future, partial(self._take_answer, host, ticket, future))

    def _when_done(self, future: "Future[Out]", take: Callable[[], None]) -> None:
        """Let the collector take it: what Ray calls back on must not be kept busy."""
        future.add_done_callback(lambda _: self._arrived.put(take))

    def _chosen(self, ticket: int, request: Request) -> _Host | None:
        hosts = [host for host in self._hosts if host.node is not None]
        if not hosts:
            return None
        if not isinstance(request, ReadTiles):
            return hosts[ticket % len(hosts)]
        home = hosts[zlib.crc32(request.slide_id.encode()) % len(hosts)]
        idlest = min(hosts, key=lambda host: len(host.tickets))
        keeps_up = len(home.tickets) <= len(idlest.tickets) + self._demand.n_threads
        return home if keeps_up else idlest

    def _collect(self) -> None:
        """Take what arrives, one at a time; a fault of that itself must not leave anybody waiting for ever."""
        while (take := self._arrived.get()) is not None:
            try:
                take()
            except Exception as error:  # noqa: BLE001 - raised again where answers are waited for
                self._give_up(error)

    def _take_begun(self, host: _Host, done: "Future[str]") -> None:
        from ray.exceptions import RayError, RayTaskError

        try:
            node = done.result()
        except RayTaskError as error:
            raise plain_cause(error) from error
        except RayError as error:
            self._n_false_starts += 1
            if self._n_false_starts >= LOSSES_ALLOWED * self._demand.n_actors:
                raise InputError(f"cluster=ray: reader actors do not start: {first_line(error)}") from error
            self._replace(host)
            return
        with self._lock:
            self._n_false_starts = 0
            host.node = node
            for ticket in sorted(self._asked.keys() - {ticket for other in self._hosts for ticket in other.tickets}):
                self._send(ticket)

    def _take_answer(self, host: _Host, ticket: int, done: "Future[Answered]") -> None:
        from ray.exceptions import RayError, RayTaskError

        try:
            answer, tiles = done.result()
        except RayTaskError as error:
            raise plain_cause(error) from error
        except RayError as error:  # the actor is lost, or its node with the answer in its memory
            self._replace(host)
            self._ask_again(host, ticket, first_line(error))
            return
        with self._lock:
            host.tickets.discard(ticket)
            asked = self._asked.pop(ticket, None)
        if asked is None:
            return  # given up meanwhile
        if tiles is not None and isinstance(asked.request, ReadTiles):
            first = asked.request.first
            self.tiles[first : first + len(tiles)] = tiles
        asked.answer.set_result(answer)

    def _ask_again(self, host: _Host, ticket: int, reason: str) -> None:
        with self._lock:
            host.tickets.discard(ticket)
            asked = self._asked.get(ticket)
            if asked is None or self._is_closing:
                return
            asked.n_losses += 1
            if asked.n_losses < LOSSES_ALLOWED:
                self._send(ticket)
                return
            del self._asked[ticket]
        asked.answer.set_result(_lost(asked.request.slide_id, reason))

    def _replace(self, host: _Host) -> None:
        """Put a new actor in the place of one that is lost, once."""
        import ray

        with self._lock:
            if self._is_closing or host not in self._hosts:
                return
            self._hosts.remove(host)
            self._add_host()
        ray.kill(host.handle)  # it may be out of reach only, and must not read on beside its successor

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            if self._is_closing:
                return
            self._fault = self._fault or error
            waiting = list(self._asked.values())
            self._asked.clear()
        for asked in waiting:
            asked.answer.set_exception(error)


def _lost(slide_id: str, reason: str) -> SlideError:
    return SlideError(
        slide_id=slide_id,
        stage="tile",
        cause=f"{LOSSES_ALLOWED} reader actors were lost while they had it, the last one so: {reason}",
        remedy="look at the nodes' memory and at Ray's logs, then run the same command again",
        code="E-crash",
    )
