"""The seal behind a feature file's HDF5 image: whether its structure is what was written, before HDF5 parses it.

HDF5 follows whatever its metadata says: one flipped bit can raise anything or never return. So the file ends with a
digest of everything but the feature rows, which have checksums of their own and are read when they are needed. HDF5
ignores bytes behind its end.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from feature_extraction.errors import DamagedFileError

MAGIC = b"promptmil-seal-1"
_LENGTH = struct.Struct("<I")
_TAIL = _LENGTH.size + len(MAGIC)
MAX_RECORD_BYTES = 1 << 16
CHUNK_BYTES = 1 << 20

Region = tuple[int, int]
"""First byte and number of bytes."""


def sealed(image: bytes, rows: Sequence[Region]) -> bytes:
    """The image with its seal; ``rows`` are the regions that the digest leaves out."""
    digest = hashlib.blake2b(digest_size=16)
    for start, size in _around(rows, len(image)):
        digest.update(image[start : start + size])
    record = json.dumps({"size": len(image), "rows": [list(region) for region in rows], "digest": digest.hexdigest()})
    return image + record.encode() + _LENGTH.pack(len(record)) + MAGIC


def check_seal(path: Path) -> None:
    """Check the structure of a file.

    Raises:
        DamagedFileError: No seal, a broken one, or bytes that differ from it.
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        try:
            size, rows, expected = _read_record(stream)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise DamagedFileError(f"{path.name}: carries no whole seal of promptmil ({error})") from error
        digest = hashlib.blake2b(digest_size=16)
        for chunk in _chunks(stream, _around(rows, size)):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise DamagedFileError(
            f"{path.name}: its bytes differ from its seal; delete the file and extract the slide again"
        )


def _read_record(stream: BinaryIO) -> tuple[int, list[Region], str]:
    end = stream.seek(0, 2)
    if end < _TAIL:
        raise ValueError(f"{end} bytes")
    stream.seek(end - _TAIL)
    tail = stream.read(_TAIL)
    if tail[_LENGTH.size :] != MAGIC:
        raise ValueError("its last bytes are others")
    (length,) = _LENGTH.unpack(tail[: _LENGTH.size])
    if length > min(MAX_RECORD_BYTES, end - _TAIL):
        raise ValueError(f"its record claims {length} bytes")
    stream.seek(end - _TAIL - length)
    record = json.loads(stream.read(length))
    size = int(record["size"])
    if size != end - _TAIL - length:
        raise ValueError(f"the image has {end - _TAIL - length} bytes, expected {size}")
    return size, [(int(start), int(count)) for start, count in record["rows"]], str(record["digest"])


def _around(rows: Iterable[Region], size: int) -> Iterator[Region]:
    """What lies before, between and behind the rows."""
    position = 0
    for start, count in sorted(rows):
        if not position <= start <= start + count <= size:
            raise ValueError(f"rows {start}, {count} do not lie in {size} bytes")
        yield position, start - position
        position = start + count
    yield position, size - position


def _chunks(stream: BinaryIO, regions: Iterable[Region]) -> Iterator[bytes]:
    for start, size in regions:
        stream.seek(start)
        left = size
        while left:
            chunk = stream.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise ValueError("the file became shorter while it was read")
            left -= len(chunk)
            yield chunk
