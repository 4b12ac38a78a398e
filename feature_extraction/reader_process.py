"""The process in which slides are opened, planned and read, so that damage in one cannot take the run down.

It answers requests that come through a pipe. Tiles go into memory that both processes see; everything else is small
and goes back through the pipe. It ends when the pipe does.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8

from feature_extraction.errors import SlideError
from feature_extraction.plan import PlanRules, SlidePlan, plan_slide
from feature_extraction.reader import TileReader, TileSource, with_patience
from feature_extraction.slide import fingerprint_file
from feature_extraction.slides import SlideRecord

PLANNERS = 2
MEMORY_BYTES = 6 << 30
"""What the process may take beyond what it starts with; a slide that claims more fails alone."""


SharedBytes = ctypes.Array[ctypes.c_ubyte]
"""Memory that both processes see: a `multiprocessing.RawArray` of bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identify:
    """Ask for the fingerprint of a slide file, a string."""

    slide_id: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class MakePlan:
    """Ask for the `SlidePlan` of a slide."""

    record: SlideRecord
    rules: PlanRules

    @property
    def slide_id(self) -> str:
        """Whose plan."""
        return self.record.slide_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTiles:
    """Ask for tiles, to be put into the shared memory.

    Attributes:
        source: The slide and how to read it.
        coords_lv0: Top-left corners.
        first: Place of the first tile in the shared memory, counted in tiles.
    """

    source: TileSource
    coords_lv0: Int64[np.ndarray, "tile 2"]
    first: int

    @property
    def slide_id(self) -> str:
        """Whose tiles."""
        return self.source.slide_id


@dataclass(frozen=True, slots=True, kw_only=True)
class TilesRead:
    """What came of `ReadTiles`.

    Attributes:
        is_read: Which tiles are there; the others' memory must not be used.
        error: The first error, None when every tile is there.
        wall_seconds: That a thread spent on it.
        cpu_seconds: That it computed; the rest it waited for the storage.
    """

    is_read: Bool[np.ndarray, " tile"]
    error: SlideError | None
    wall_seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Say that a slide file is not read any more; there is no answer."""

    slide_id: str
    path: Path


Request = Identify | MakePlan | ReadTiles
Answer = str | SlidePlan | TilesRead | SlideError


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer on its way back; None says that the slide is still being worked on."""

    ticket: int
    answer: Answer | None


class _Sender:
    """The pipe's end, shared by threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, reply: Reply) -> None:
        with self._lock:
            self._connection.send(reply)


def serve(connection: Connection, memory: SharedBytes, side_px: int, n_threads: int) -> None:
    """Answer requests until the pipe ends.

    Args:
        connection: Receives ``(ticket, request)``, sends `Reply`.
        memory: For tiles, whole ones side by side.
        side_px: Side of each of them.
        n_threads: Tiles decoded at the same time.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the parent says when to end
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what we report in our own words
    torch.set_num_threads(1)
    _limit_memory(MEMORY_BYTES)
    tiles = tiles_in(memory, side_px)
    sender, reader = _Sender(connection), TileReader()
    with ThreadPoolExecutor(n_threads) as readers, ThreadPoolExecutor(PLANNERS) as planners:
        try:
            while not _is_orphan(connection):
                ticket, request = connection.recv()
                if isinstance(request, ReadTiles):
                    readers.submit(_answer_tiles, sender, ticket, request, reader, tiles)
                elif isinstance(request, Forget):
                    reader.forget(request.path)
                else:
                    planners.submit(_answer, sender, ticket, request)
        except (EOFError, OSError):
            pass
        os._exit(0)  # the parent is gone or wants no more: what threads still do is of no use


def _is_orphan(connection: Connection) -> bool:
    """Wait for a request; True when the parent has died instead.

    The pipe alone does not tell where the process was forked from the parent itself and holds both of its ends.
    """
    parent = multiprocessing.parent_process()
    ends = [connection] if parent is None else [connection, parent.sentinel]
    return connection not in wait(ends)


def _answer(sender: _Sender, ticket: int, request: Identify | MakePlan) -> None:
    """Identify or plan a slide; while that takes, tell the parent that it goes on."""
    path = request.path if isinstance(request, Identify) else request.record.path
    try:
        if isinstance(request, Identify):
            answer: Answer = with_patience(lambda: fingerprint_file(path))
        else:
            alive = Reply(ticket=ticket, answer=None)
            answer = with_patience(lambda: plan_slide(request.record, request.rules, lambda: sender.send(alive)))
    except SlideError as error:
        answer = error
    except (OSError, MemoryError) as error:
        answer = _read_error(request.slide_id, path, error)
    except Exception as error:  # noqa: BLE001 - decoders of damaged files raise anything; it costs this slide only
        answer = _damage(request.slide_id, path, error)
    sender.send(Reply(ticket=ticket, answer=answer))


def _answer_tiles(
    sender: _Sender, ticket: int, request: ReadTiles, reader: TileReader, tiles: UInt8[np.ndarray, "place s s 3"]
) -> None:
    source = request.source
    wall, cpu = time.monotonic(), time.thread_time()
    is_read = np.zeros(len(request.coords_lv0), dtype=bool)
    first_error: SlideError | None = None
    for row, (x, y) in enumerate(request.coords_lv0.tolist()):
        try:
            tiles[request.first + row] = reader.read(source, (x, y))
            is_read[row] = True
        except SlideError as error:
            first_error = first_error or error
        except (OSError, MemoryError) as error:
            first_error = first_error or _read_error(source.slide_id, source.path, error)
        except Exception as error:  # noqa: BLE001 - as above
            first_error = first_error or _damage(source.slide_id, source.path, error)
    read = TilesRead(
        is_read=is_read,
        error=first_error,
        wall_seconds=time.monotonic() - wall,
        cpu_seconds=time.thread_time() - cpu,
    )
    sender.send(Reply(ticket=ticket, answer=read))


def _read_error(slide_id: str, path: Path, error: OSError | MemoryError) -> SlideError:
    if isinstance(error, MemoryError):
        return SlideError(
            slide_id=slide_id,
            stage="open",
            cause=f"{path.name} asks for more than {MEMORY_BYTES >> 30} GiB of memory: it is damaged, or one huge tile",
            remedy="copy the slide again, or convert it to a tiled pyramid (vips tiffsave --tile --pyramid)",
            code="E-memory",
        )
    return SlideError(
        slide_id=slide_id,
        stage="open",
        cause=f"{path.name} cannot be read: {error.strerror or error}",
        remedy="check the disk it lies on and its rights, then run the same command again",
        code="E-read",
    )


def _damage(slide_id: str, path: Path, error: Exception) -> SlideError:
    return SlideError(
        slide_id=slide_id,
        stage="open",
        cause=f"{path.name} is damaged in a way that its decoder does not name ({type(error).__name__}: {error})",
        remedy="copy the slide again from its source",
        code="E-damaged",
    )


def _limit_memory(n_bytes: int) -> None:
    """Bound the address space, where the system can."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    limit = pages * resource.getpagesize() + n_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def tiles_in(memory: SharedBytes, side_px: int) -> UInt8[np.ndarray, "place side side 3"]:
    """The shared memory as tiles, without a copy."""
    return np.frombuffer(memoryview(memory), np.uint8).reshape(-1, side_px, side_px, 3)


def death(exit_code: int | None) -> str:
    """How the process ended, as part of a sentence about the slide that it had."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"crashed the reader with {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended the reader (exit code {exit_code})"


def reader_error(slide_id: str, reason: str) -> SlideError:
    """What to say of a slide that took the process down, or kept it from answering, twice."""
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
