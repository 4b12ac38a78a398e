"""A slide in work: rows appended as they come, valid up to the last whole block whatever happens.

A journal is a JSON line (what the rows are) and then blocks ``count, rows, checksum``. A kill in the middle of a write
leaves a tail that does not add up; reading stops there and the next run goes on from that row.
"""

import hashlib
import json
import os
import struct
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

SYNC_SECONDS = 2.0
_COUNT = struct.Struct("<I")
_CHECKSUM_BYTES = 8


class Journal:
    """Rows of one slide on their way to a feature file.

    Args:
        path: The journal's file; its folder is made.
        key: What the rows are of. A journal with another key is thrown away, never continued.
        width: Values in a row, all spaces side by side.
        dtype: Of the values.
    """

    def __init__(self, path: Path, *, key: str, width: int, dtype: np.dtype) -> None:
        self.path = path
        self._dtype = dtype
        self._width = width
        self._header = json.dumps({"key": key, "width": width, "dtype": dtype.str}).encode() + b"\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a+b")
        kept_bytes, self.n_rows = self._recover()
        self._stream.truncate(kept_bytes)
        if kept_bytes == 0:
            self._stream.write(self._header)
        self._synced = time.monotonic()

    def append(self, rows: Shaped[np.ndarray, "row width"]) -> None:
        """Add rows in order; they are on the disk within `SYNC_SECONDS` of work."""
        data = np.ascontiguousarray(rows, self._dtype).tobytes()
        self._stream.write(_COUNT.pack(len(rows)) + data + _digest(data))
        self._stream.flush()
        self.n_rows += len(rows)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()

    def read(self) -> Shaped[np.ndarray, "row width"]:
        """All rows so far."""
        self._stream.flush()
        data = self.path.read_bytes()[len(self._header) :]
        parts = [np.empty((0, self._width), self._dtype)]
        parts += [np.frombuffer(block, self._dtype).reshape(-1, self._width) for block in self._blocks(data)]
        return np.concatenate(parts)

    def close(self) -> None:
        """Stop; the rows stay for the next run.

        On a full disk the last block may be lost: it does not add up and is read again, so nothing is raised.
        """
        if self._stream.closed:
            return  # its removal failed half-way
        with suppress(OSError):
            self._stream.flush()
            os.fsync(self._stream.fileno())
        with suppress(OSError):
            self._stream.close()

    def remove(self) -> None:
        """Stop and delete: the rows are sealed elsewhere, or worthless."""
        with suppress(OSError):
            self._stream.close()
        self.path.unlink(missing_ok=True)

    def _recover(self) -> tuple[int, int]:
        """Bytes and rows that add up."""
        self._stream.seek(0)
        content = self._stream.read()
        if not content.startswith(self._header):
            return 0, 0
        row_bytes = self._width * self._dtype.itemsize
        kept, n_rows = len(self._header), 0
        for block in self._blocks(content[len(self._header) :]):
            kept += _COUNT.size + len(block) + _CHECKSUM_BYTES
            n_rows += len(block) // row_bytes
        return kept, n_rows

    def _blocks(self, data: bytes) -> list[bytes]:
        """The rows' bytes of each whole block, up to the first that does not add up."""
        row_bytes = self._width * self._dtype.itemsize
        blocks: list[bytes] = []
        position = 0
        while position + _COUNT.size <= len(data):
            (count,) = _COUNT.unpack_from(data, position)
            start = position + _COUNT.size
            end = start + count * row_bytes
            block = data[start:end]
            if data[end : end + _CHECKSUM_BYTES] != _digest(block) or len(block) < count * row_bytes:
                break
            blocks.append(block)
            position = end + _CHECKSUM_BYTES
        return blocks


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECKSUM_BYTES).digest()
