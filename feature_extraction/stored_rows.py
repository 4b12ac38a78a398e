"""Where the rows of a feature file lie, so that they are read block by block, without HDF5."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped

from feature_extraction.errors import DamagedFileError

BLOCK_BYTES = 1 << 20
"""Each checksum of a feature file covers about this many bytes of features, whole rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRows:
    """The rows of one space of one slide, contiguous in a file.

    Attributes:
        path: The feature file.
        offset: First byte of the rows, -1 of a file without rows.
        coords_offset: First byte of the coordinates (int64), likewise.
        n_tiles: Rows.
        width: Of the space.
        dtype: NumPy's name of the type they are stored in.
        is_unit: Whether each row has unit length, but for rounding.
    """

    path: Path
    offset: int
    coords_offset: int
    n_tiles: int
    width: int
    dtype: str
    is_unit: bool

    @property
    def rows_a_block(self) -> int:
        """Rows that one checksum covers."""
        return rows_a_block(self.width * np.dtype(self.dtype).itemsize)

    def blocks(self) -> Iterator[tuple[int, Shaped[np.ndarray, "_ width"]]]:
        """First row and rows of each block with a checksum of its own, in order; valid until the next one.

        Read into one buffer, not mapped: the system would map page by page what is read once, which takes longer.

        Raises:
            DamagedFileError: The file is shorter than it was.
            OSError: It cannot be opened or read.
        """
        if self.n_tiles == 0:
            return
        size = min(self.rows_a_block, self.n_tiles)
        buffer = np.empty((size, self.width), self.dtype)
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(self.offset)
            for first in range(0, self.n_tiles, size):
                block = buffer[: self.n_tiles - first]
                self._fill(stream, block)
                yield first, block

    def rows(self, first: int, last: int) -> Shaped[np.ndarray, "_ width"]:
        """Rows ``first`` to before ``last``, mapped; what is written to them never reaches the file.

        Raises:
            DamagedFileError: The file is shorter than it was.
            OSError: It cannot be opened.
        """
        place = self.offset + first * self.width * np.dtype(self.dtype).itemsize
        return self._mapped(self.dtype, place, (last - first, self.width))

    def coords_lv0(self) -> Int64[np.ndarray, "tile 2"]:
        """Top-left corner of each tile, mapped.

        Raises:
            DamagedFileError: The file is shorter than it was.
            OSError: It cannot be opened.
        """
        if self.n_tiles == 0:
            return np.empty((0, 2), np.int64)
        return self._mapped("int64", self.coords_offset, (self.n_tiles, 2))

    def _fill(self, stream: FileIO, block: Shaped[np.ndarray, "_ width"]) -> None:
        left = block.data.cast("B")
        while left:
            n_read = stream.readinto(left)
            if not n_read:
                raise self._shorter()
            left = left[n_read:]

    def _shorter(self) -> DamagedFileError:
        return DamagedFileError(f"{self.path.name}: shorter than it was; extract the slide again")

    def _mapped(self, dtype: str, offset: int, shape: tuple[int, int]) -> Shaped[np.ndarray, "_ _"]:
        try:
            return np.memmap(self.path, dtype, mode="c", offset=offset, shape=shape)
        except ValueError as error:
            raise self._shorter() from error


def rows_a_block(row_bytes: int) -> int:
    """Rows that one checksum covers."""
    return max(1, BLOCK_BYTES // max(1, row_bytes))
