"""Read tiles of many slides on many threads of one process: direct decode where it is exact, else OpenSlide.

Threads and not processes: both decoders release the interpreter's lock, and decoded JPEG tiles serve all threads. Each
thread keeps its own OpenSlide handles, because a handle whose read failed is useless for ever after.
"""

import errno
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import UInt8

from feature_extraction.errors import SlideError
from feature_extraction.jpeg_tiff import JpegTileReader, jpeg_levels
from feature_extraction.region import region_of
from feature_extraction.resample import resample
from feature_extraction.slide import TIFF_ERRORS, Slide, shared_cache

Decoder = Literal["direct", "openslide"]
"""What decodes the pixels of a slide; recorded in its feature file."""

CACHE_BYTES = 64 << 20
HANDLES_KEPT = 4
BAND_BYTES = 512 << 20
"""Decoded JPEG tiles kept of one slide, at most."""
PROBE_PX = 300
"""Side of the regions on which the decoders are compared; more than one JPEG tile, so that seams are in them."""
TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN})
"""What a network file system answers while it recovers."""
RETRY_SECONDS = (0.1, 0.4, 1.6)
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True, kw_only=True)
class TileSource:
    """How the tiles of one slide are read.

    Attributes:
        slide_id: Named in errors.
        path: The slide file.
        decoder: What reads the pixels.
        level: Pyramid level.
        size_lv0: Width and height of a tile in level-0 pixels.
        side_px: Side of the tile that comes out.
    """

    slide_id: str
    path: Path
    decoder: Decoder
    level: int
    size_lv0: tuple[float, float]
    side_px: int


class TileReader:
    """Reads tiles; shared by threads, and the owner of every handle."""

    def __init__(self) -> None:
        self._cache = shared_cache(CACHE_BYTES)
        self._local = threading.local()
        self._handles: list[OrderedDict[Path, Slide]] = []  # of every thread
        self._lock = threading.Lock()
        self._direct: OrderedDict[tuple[Path, int], JpegTileReader] = OrderedDict()

    def read(self, source: TileSource, corner_lv0: tuple[int, int]) -> UInt8[np.ndarray, "side side 3"]:
        """Read one tile.

        What cannot be decoded directly is OpenSlide's to judge; its handle is opened anew after an error, once.

        Raises:
            SlideError: The tile cannot be read.
        """
        if source.decoder == "direct":
            try:
                return with_patience(lambda: self._read_directly(source, corner_lv0))
            except (OSError, ValueError):
                with self._lock:
                    self._direct.pop((source.path, source.level), None)
        try:
            return with_patience(lambda: self._read_by_openslide(source, corner_lv0))
        except SlideError:
            self._drop(source.path)
        try:
            return with_patience(lambda: self._read_by_openslide(source, corner_lv0))
        except SlideError:
            self._drop(source.path)
            raise

    def forget(self, path: Path) -> None:
        """Close every handle of a slide file, none of which is in use: an open file keeps its bytes on the disk."""
        with self._lock:
            for key in [key for key in self._direct if key[0] == path]:
                del self._direct[key]
        for handles in self._handles:
            slide = handles.pop(path, None)
            if slide is not None:
                slide.close()

    def _read_directly(self, source: TileSource, corner_lv0: tuple[int, int]) -> UInt8[np.ndarray, "side side 3"]:
        key = (source.path, source.level)
        with self._lock:
            reader = self._direct.get(key)
            if reader is None:
                with Slide(source.slide_id, source.path) as slide:
                    reader = open_direct(slide, source.level, source.size_lv0[1])
                if reader is None:
                    raise ValueError("the level is no longer decodable directly")
                self._direct[key] = reader
                while len(self._direct) > HANDLES_KEPT:
                    self._direct.popitem(last=False)  # closes itself when the last thread lets go
            self._direct.move_to_end(key)
        factor = reader.downsample
        region = region_of(corner_lv0, source.size_lv0, factor)
        return resample(reader.read(region.corner, region.size), region, source.side_px)

    def _read_by_openslide(self, source: TileSource, corner_lv0: tuple[int, int]) -> UInt8[np.ndarray, "side side 3"]:
        slide = self._handle(source)
        region = region_of(corner_lv0, source.size_lv0, slide.downsamples[source.level])
        return resample(slide.read_region(region.corner, source.level, region.size), region, source.side_px)

    def _handle(self, source: TileSource) -> Slide:
        """This thread's handle of the slide, opened when first needed."""
        handles: OrderedDict[Path, Slide] | None = getattr(self._local, "handles", None)
        if handles is None:
            handles = self._local.handles = OrderedDict()
            self._handles.append(handles)
        if source.path not in handles:
            handles[source.path] = Slide(source.slide_id, source.path, self._cache)
        handles.move_to_end(source.path)
        while len(handles) > HANDLES_KEPT:
            handles.popitem(last=False)[1].close()
        return handles[source.path]

    def _drop(self, path: Path) -> None:
        slide = self._local.handles.pop(path, None) if hasattr(self._local, "handles") else None
        if slide is not None:
            slide.close()


def open_direct(slide: Slide, level: int, extent_lv0: float) -> JpegTileReader | None:
    """A direct reader of a level, or None where its pixels would not be OpenSlide's.

    Only levels whose pixels begin at whole level-0 pixels: between them OpenSlide interpolates.

    Args:
        slide: The open slide.
        level: Pyramid level.
        extent_lv0: Height of a tile, which tells how many rows of JPEG tiles are worth keeping.
    """
    if not slide.is_aligned(level):
        return None
    try:
        found = jpeg_levels(slide.path, slide.level_sizes)[level]
        if found is None:
            return None
        factor = slide.downsamples[level]
        n_kept = min(found.band_tiles(int(extent_lv0 / factor) + 1), BAND_BYTES // found.tile_bytes)
        return JpegTileReader(slide.path, found, n_kept=n_kept, downsample=factor, background=slide.background)
    except TIFF_ERRORS:
        return None


def choose_decoder(slide: Slide, level: int, size_lv0: tuple[float, float]) -> Decoder:
    """Compare both decoders on a few regions of a level: direct decode only where every pixel is OpenSlide's.

    Raises:
        SlideError: OpenSlide cannot read one of the regions.
    """
    reader = open_direct(slide, level, size_lv0[1])
    if reader is None:
        return "openslide"
    try:
        for corner in _probes(slide.level_sizes[level]):
            size = (PROBE_PX, PROBE_PX)
            if not np.array_equal(reader.read(corner, size), slide.read_region(corner, level, size)):
                return "openslide"
    except (OSError, ValueError):
        return "openslide"
    finally:
        reader.close()
    return "direct"


def _probes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Corners of the regions that are compared: the first tile, the middle, a third, and the far edges."""
    width, height = size
    return [
        (0, 0),
        (width // 2, height // 2),
        (width // 3, 2 * height // 3),
        (width - PROBE_PX // 2, height - PROBE_PX // 2),
    ]


def with_patience(read: Callable[[], Out]) -> Out:
    """Call ``read``, again after a while when the file system says that it is about to recover.

    Raises:
        OSError: It did not recover, or says something else.
    """
    for seconds in RETRY_SECONDS:
        try:
            return read()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        time.sleep(seconds)
    return read()
