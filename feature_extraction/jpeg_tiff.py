"""Decode the JPEG tiles of a TIFF level directly: positioned reads and a JPEG library, no compositing.

OpenSlide spends two thirds of its time laying decoded tiles onto a canvas. Where a level is tiled JPEG, reading the
bytes and decoding each tile once gives the same pixels for a fraction of the work. `reader.py` decides when.
"""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from jaxtyping import UInt8

TRANSFORMS = {tifffile.PHOTOMETRIC.RGB: 0, tifffile.PHOTOMETRIC.YCBCR: 1}
"""Adobe's number for what the JPEG data of each photometric interpretation holds. The TIFF tag is right about it; the
tiles' own markers mostly say nothing, and a decoder then guesses YCbCr."""
START, END = b"\xff\xd8", b"\xff\xd9"


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegLevel:
    """Where the tiles of one level lie in the file.

    Attributes:
        width: Of the level, in pixels.
        height: Of the level.
        tile_width: Of each JPEG tile.
        tile_height: Of each JPEG tile.
        offsets: First byte of each tile, row by row.
        byte_counts: Length of each tile's data.
        head: What makes a tile's data a whole JPEG picture in place of its start: the colour space and the
            quantisation and Huffman tables that the tiles share.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]
    head: bytes

    @property
    def n_columns(self) -> int:
        """JPEG tiles in a row."""
        return -(-self.width // self.tile_width)

    @property
    def n_rows(self) -> int:
        """Rows of JPEG tiles."""
        return -(-self.height // self.tile_height)

    @property
    def tile_bytes(self) -> int:
        """Of a decoded tile."""
        return self.tile_width * self.tile_height * 3

    def band_tiles(self, extent: int) -> int:
        """JPEG tiles that a row of regions of ``extent`` pixels' height, and the next such row, may touch."""
        return self.n_columns * (-(-extent // self.tile_height) + 1)


def jpeg_levels(path: Path, sizes: Sequence[tuple[int, int]]) -> list[JpegLevel | None]:
    """The directly decodable levels of a file, None for each level that is not.

    Args:
        path: Any file.
        sizes: Width and height of each level, as OpenSlide lists them.

    Raises:
        OSError: The file cannot be read.
        tifffile.TiffFileError: It is no TIFF; other errors of a damaged directory pass through as well.
    """
    with tifffile.TiffFile(path) as tiff:
        pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
        found = [[page for page in pages if page.is_tiled and (page.imagewidth, page.imagelength) == s] for s in sizes]
        return [_as_level(same_size[0]) if len(same_size) == 1 else None for same_size in found]


def _as_level(page: tifffile.TiffPage) -> JpegLevel | None:
    """The level of a page, None when its tiles are not plain 8-bit RGB JPEG, all present."""
    is_plain = (
        page.compression == tifffile.COMPRESSION.JPEG
        and page.photometric in TRANSFORMS
        and page.bitspersample == 8
        and page.samplesperpixel == 3
        and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
    )
    if not is_plain:
        return None
    level = JpegLevel(
        width=page.imagewidth,
        height=page.imagelength,
        tile_width=page.tilewidth,
        tile_height=page.tilelength,
        offsets=tuple(page.dataoffsets),
        byte_counts=tuple(page.databytecounts),
        head=_head(page.jpegtables, TRANSFORMS[tifffile.PHOTOMETRIC(page.photometric)]),
    )
    is_whole = len(level.offsets) == len(level.byte_counts) == level.n_columns * level.n_rows and all(level.byte_counts)
    return level if is_whole else None


def _head(tables: bytes | None, transform: int) -> bytes:
    """The start of a JPEG picture: start marker, Adobe's marker of the colour space, shared tables."""
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    return START + adobe + (tables or b"").removeprefix(START).removesuffix(END)


class JpegTileReader:
    """Reads regions of one level, each JPEG tile decoded once while it is near. Shared by threads.

    Args:
        path: The slide file.
        level: Where its tiles lie.
        n_kept: Decoded tiles kept, the last used; `JpegLevel.band_tiles` is enough when regions come row by row.
        downsample: Level-0 pixels to a pixel of the level.
        background: RGB of what lies outside the level.
    """

    def __init__(
        self, path: Path, level: JpegLevel, *, n_kept: int, downsample: float, background: tuple[int, int, int]
    ) -> None:
        self.downsample = downsample
        self._level = level
        self._n_kept = n_kept
        self._background = background
        self._descriptor = os.open(path, os.O_RDONLY)
        self._closer = weakref.finalize(self, os.close, self._descriptor)
        self._tiles: OrderedDict[int, Future[UInt8[np.ndarray, "row column 3"]]] = OrderedDict()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Give the file back; no region may be read any more."""
        self._closer()

    def read(self, corner: tuple[int, int], size: tuple[int, int]) -> UInt8[np.ndarray, "row column 3"]:
        """Read ``size`` (width, height) pixels from ``corner`` (x, y), both in pixels of the level.

        The result may be the decoded tile itself: it must not be written to.

        Raises:
            OSError: The file cannot be read, or ends within a tile.
            ValueError: A tile cannot be decoded, is damaged though it could be, or has another size than it should.
        """
        level = self._level
        (x, y), (width, height) = corner, size
        columns = range(max(0, x // level.tile_width), min(level.n_columns, -(-(x + width) // level.tile_width)))
        rows = range(max(0, y // level.tile_height), min(level.n_rows, -(-(y + height) // level.tile_height)))
        right, bottom = min(x + width, level.width), min(y + height, level.height)
        is_inside = x >= 0 and y >= 0 and (right, bottom) == (x + width, y + height)
        if is_inside and len(columns) == len(rows) == 1 and (width, height) == (level.tile_width, level.tile_height):
            return self._tile(rows[0] * level.n_columns + columns[0])
        region = np.empty((height, width, 3), np.uint8)
        if not is_inside:
            region[:] = self._background
        for row in rows:
            top = row * level.tile_height
            y0, y1 = max(y, top), min(bottom, top + level.tile_height)
            for column in columns:
                left = column * level.tile_width
                x0, x1 = max(x, left), min(right, left + level.tile_width)
                tile = self._tile(row * level.n_columns + column)
                region[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return region

    def _tile(self, index: int) -> UInt8[np.ndarray, "row column 3"]:
        """A decoded tile: from the ones kept, from the thread that is decoding it now, or decoded here."""
        with self._lock:
            decoded = self._tiles.get(index)
            is_ours = decoded is None
            if decoded is None:
                decoded = self._tiles[index] = Future()
                if len(self._tiles) > self._n_kept:
                    self._tiles.popitem(last=False)
            else:
                self._tiles.move_to_end(index)
        if not is_ours:
            return decoded.result()
        try:
            tile = self._decode(index)
        except BaseException as error:  # whoever waits for this tile is told the same, and may ask again
            with self._lock:
                self._tiles.pop(index, None)
            decoded.set_exception(error)
            raise
        decoded.set_result(tile)
        return tile

    def _decode(self, index: int) -> UInt8[np.ndarray, "row column 3"]:
        level = self._level
        n_bytes = level.byte_counts[index]
        data = os.pread(self._descriptor, n_bytes, level.offsets[index])
        if len(data) < n_bytes:
            raise OSError(f"the file ends within the data of a tile ({len(data):,} of {n_bytes:,} bytes)")
        if not data.startswith(START):
            raise ValueError(f"the data of a tile begins with {data[:2].hex()}, expected a JPEG start marker")
        # Strict: what the library could repair by guessing is damage, as it is to OpenSlide.
        tile = simplejpeg.decode_jpeg(level.head + data[len(START) :], "RGB", strict=True)
        if tile.shape != (level.tile_height, level.tile_width, 3):
            raise ValueError(f"a JPEG tile has shape {tile.shape}, expected {level.tile_width} x {level.tile_height}")
        return tile
