"""A pool of threads that reads tiles of many slides, in order, ahead of whoever uses them.

Threads and not processes: OpenSlide releases the interpreter's lock while it decodes, and one decoded-tile cache serves
all. Each thread keeps its own handles, because a handle whose read failed is useless for ever after.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from feature_extraction.errors import SlideError
from feature_extraction.slide import Slide, shared_cache

CACHE_BYTES = 64 << 20
HANDLES_A_THREAD = 4
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True, kw_only=True)
class TileSource:
    """How the tiles of one slide are read.

    Attributes:
        slide_id: Named in errors.
        path: The slide file.
        level: Pyramid level.
        size_lv0: Width and height of a tile in level-0 pixels.
        side_px: Side of the tile that comes out.
    """

    slide_id: str
    path: Path
    level: int
    size_lv0: tuple[float, float]
    side_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadJob:
    """A few neighbouring tiles of one slide.

    Attributes:
        source: The slide.
        first_row: Row of the first of them in the slide's grid.
        coords_lv0: Top-left corners.
    """

    source: TileSource
    first_row: int
    coords_lv0: Int64[np.ndarray, "tile 2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTiles:
    """What came of a job.

    Attributes:
        job: The job.
        tiles: RGB; rows that could not be read are undefined and must not be used.
        is_read: Which rows hold a tile.
        error: The first error, None when every tile was read.
    """

    job: ReadJob
    tiles: UInt8[np.ndarray, "tile side side 3"]
    is_read: Bool[np.ndarray, " tile"]
    error: SlideError | None


class ReaderPool:
    """Threads that read tiles. Use as a context manager.

    Args:
        n_threads: Tiles decoded at the same time.
        n_ahead: Jobs read or waiting beyond the one in use; bounds the memory.
    """

    def __init__(self, n_threads: int, n_ahead: int) -> None:
        self._executor = ThreadPoolExecutor(n_threads, thread_name_prefix="reader")
        self._n_ahead = n_ahead
        self._cache = shared_cache(CACHE_BYTES)
        self._local = threading.local()
        self._handles: list[OrderedDict[Path, Slide]] = []

    def __enter__(self) -> "ReaderPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)
        for handles in self._handles:
            for slide in handles.values():
                slide.close()

    def read(self, jobs: Iterable[ReadJob]) -> Iterator[ReadTiles]:
        """Read jobs in their order, `n_ahead` of them in advance."""
        return map_ahead(self._executor, self._read_job, jobs, self._n_ahead)

    def _read_job(self, job: ReadJob) -> ReadTiles:
        side = job.source.side_px
        tiles = np.empty((len(job.coords_lv0), side, side, 3), np.uint8)
        is_read = np.zeros(len(job.coords_lv0), dtype=bool)
        first_error: SlideError | None = None
        for row, (x, y) in enumerate(job.coords_lv0):
            try:
                tiles[row] = self._read_tile(job.source, (int(x), int(y)))
                is_read[row] = True
            except SlideError as error:
                first_error = first_error or error
            except (OSError, MemoryError) as error:
                first_error = first_error or _read_error(job.source, error)
        return ReadTiles(job=job, tiles=tiles, is_read=is_read, error=first_error)

    def _read_tile(self, source: TileSource, corner: tuple[int, int]) -> UInt8[np.ndarray, "side side 3"]:
        """Read one tile; after an error once more with a new handle, for OpenSlide's errors are final to a handle."""
        try:
            return self._handle(source).read_square(corner, source.size_lv0, source.level, source.side_px)
        except SlideError:
            self._drop(source.path)
        try:
            return self._handle(source).read_square(corner, source.size_lv0, source.level, source.side_px)
        except SlideError:
            self._drop(source.path)
            raise

    def _handle(self, source: TileSource) -> Slide:
        """This thread's handle of the slide, opened when first needed."""
        handles: OrderedDict[Path, Slide] | None = getattr(self._local, "handles", None)
        if handles is None:
            handles = self._local.handles = OrderedDict()
            self._handles.append(handles)
        if source.path not in handles:
            handles[source.path] = Slide(source.slide_id, source.path, self._cache)
        handles.move_to_end(source.path)
        while len(handles) > HANDLES_A_THREAD:
            handles.popitem(last=False)[1].close()
        return handles[source.path]

    def _drop(self, path: Path) -> None:
        slide = self._local.handles.pop(path, None)
        if slide is not None:
            slide.close()


def _read_error(source: TileSource, error: Exception) -> SlideError:
    return SlideError(
        slide_id=source.slide_id,
        stage="tile",
        cause=f"{source.path.name} cannot be read: {error or type(error).__name__}",
        remedy="check the disk it lies on, then run the same command again",
        code="E-read",
    )


def map_ahead(
    executor: ThreadPoolExecutor, function: Callable[[In], Out], items: Iterable[In], n_ahead: int
) -> Iterator[Out]:
    """Apply a function to items on an executor: results in order, at most ``n_ahead`` of them waiting."""
    waiting: deque[Future[Out]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > n_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
