"""Find zeros where the compressed data of a level belongs: what an unfinished download leaves in its file.

A file that was made at its full length has its directories as soon as the first part is there, so OpenSlide opens it,
and nothing tells before the first tile is read. Looked at are tiles spread over each level, its last one, and those in
holes that the file system itself tells of.
"""

import errno
import os

import numpy as np
from jaxtyping import Int64

from feature_extraction.tiff_walk import Page

PROBE_BYTES = 64
"""Zeros at the start of a tile that no coder can have written."""
RUN_BYTES = 4096
"""Zeros within NDPI's strips, whose restart markers come far more often."""
PROBES = 32
ZERO_IS_LEGAL = frozenset({1, 32773})
"""Compressions under which black pixels are zeros: none, PackBits."""


def is_zero(descriptor: int, at: int, width: int = PROBE_BYTES) -> bool:
    """Whether there are only zeros in ``width`` bytes from ``at``.

    Raises:
        OSError: The file system fails.
    """
    return not any(os.pread(descriptor, width, at))


def first_zero(descriptor: int, size: int, page: Page, *, is_ndpi: bool) -> int | None:
    """The first byte of a hole in a level; None when none of the places tried is one, or black pixels may be zeros.

    Args:
        descriptor: Open for reading.
        size: Bytes of the file.
        page: Where the tiles of the level lie.
        is_ndpi: The level is one long strip.

    Raises:
        OSError: The file system fails.
    """
    if page.compression in ZERO_IS_LEGAL:
        return None
    width = RUN_BYTES if is_ndpi else PROBE_BYTES
    places = _strip_places(page) if is_ndpi else _tile_places(page, _holes(descriptor, size))
    row = next((row for row, place in enumerate(places) if is_zero(descriptor, place, width)), None)
    if row is None:
        return None
    good, bad = (places[row - 1] if row else 0), places[row]  # neither the file's head nor the tile before is zeros
    while bad - good > RUN_BYTES:
        middle = (good + bad) // 2
        if is_zero(descriptor, middle, RUN_BYTES // 2):
            bad = middle
        else:
            good = middle
    return good + len(os.pread(descriptor, bad - good, good).rstrip(b"\0"))


def _tile_places(page: Page, holes: list[tuple[int, int]]) -> list[int]:
    """First bytes of tiles to look at, in the order of the file: spread, the last, and those that begin in a hole."""
    stored = np.sort(page.offsets[page.n_bytes >= PROBE_BYTES]).astype(np.int64)
    if len(stored) == 0:
        return []
    spread = np.linspace(0, len(stored) - 1, PROBES).round().astype(np.int64)
    inside = [np.searchsorted(stored, start) for start, _ in holes]
    rows = [row for row, (_, end) in zip(inside, holes, strict=True) if row < len(stored) and stored[row] < end]
    chosen: Int64[np.ndarray, " place"] = np.unique(np.concatenate([spread, np.array(rows, np.int64)]))
    return [int(place) for place in stored[chosen]]


def _strip_places(page: Page) -> list[int]:
    """Places within NDPI's strips, which hold a whole level each."""
    return [
        int(place)
        for offset, length in zip(page.offsets.tolist(), page.n_bytes.tolist(), strict=True)
        if length >= 2 * RUN_BYTES
        for place in np.linspace(offset, offset + length - RUN_BYTES, PROBES)
    ]


def _holes(descriptor: int, size: int) -> list[tuple[int, int]]:
    """The first holes of a sparse file: start and end."""
    holes: list[tuple[int, int]] = []
    end = 0
    while len(holes) < PROBES:
        start = _seek(descriptor, end, os.SEEK_HOLE, size)
        if start >= size:
            break
        end = _seek(descriptor, start, os.SEEK_DATA, size)
        holes.append((start, end))
    return holes


def _seek(descriptor: int, start: int, kind: int, size: int) -> int:
    """The next hole or data; the end of the file when there is none or the file system does not know holes."""
    try:
        return os.lseek(descriptor, start, kind)
    except OSError as error:
        if error.errno in {errno.ENXIO, errno.EINVAL, errno.ENOTSUP}:
            return size
        raise
