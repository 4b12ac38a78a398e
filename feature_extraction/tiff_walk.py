"""Walk the directories of a TIFF, BigTIFF or NDPI: where its data must lie, whether or not it does.

Made for damaged files: every number in them may be a lie, so nothing is read that does not fit into the file, chains
may be circles, and the walk ends after a fixed amount of work. (TIFF 6.0, Adobe 1992; BigTIFF, libtiff's design page.
NDPI is a classic TIFF with 64-bit offsets: a pointer to the next directory has 8 bytes, and in large files the upper
halves of the values follow it. Everything lies before its directory there, so that the chain alone tells the end.)
"""

import os
from collections import deque
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

TYPE_BYTES = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8], np.uint64)
"""Bytes of one value, by the number of its type; 0 for the numbers that are no type."""
INTEGER_CODES = {3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
PRIVATE_FROM = 32768
"""Tags of vendors, who may point anywhere; readers pass over what they do not know."""
ICC_PROFILE = 34675
IMAGE_WIDTH, IMAGE_HEIGHT, TILE_WIDTH, TILE_HEIGHT, COMPRESSION = 256, 257, 322, 323, 259
SUB_DIRECTORIES, NDPI_FORMAT, NDPI_LENS = 330, 65420, 65421
TILE_TAGS, STRIP_TAGS = (324, 325), (273, 279)
HEAD_BYTES = 16
"""Of a BigTIFF; no TIFF with a directory in it is shorter."""
MAX_DIRECTORIES = 4096
MAX_LIST_BYTES = 1 << 26
"""Lists of tiles are read up to this sum, which is room for four million tiles; more is damage."""
WIDE_FROM = 0xFFFFFFFF
"""Bytes up to which 32 bits are enough, and NDPI's upper halves may be missing."""
NDPI_LIMIT = 1 << 40
"""No slide is longer; in other TIFFs the bytes of an NDPI's first pointer give a larger number."""
FAR = np.uint64(1 << 62)
"""Offsets and counts are cut off here, so that their sum cannot wrap around."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How one kind of TIFF writes its numbers.

    Attributes:
        order: ``<`` or ``>``.
        is_big: BigTIFF: 64-bit numbers throughout.
        is_ndpi: Classic entries with 64-bit pointers.
    """

    order: str
    is_big: bool = False
    is_ndpi: bool = False

    @property
    def entry(self) -> np.dtype[np.void]:
        """One entry of a directory."""
        wide = "u8" if self.is_big else "u4"
        return np.dtype([(name, self.order + code) for name, code in zip(
            ("tag", "type", "count", "value"), ("u2", "u2", wide, wide), strict=True)])  # fmt: skip

    @property
    def count_code(self) -> str:
        """Of the number of entries, which comes first."""
        return self.order + ("u8" if self.is_big else "u2")

    @property
    def pointer_code(self) -> str:
        """Of the position of the next directory, which comes last."""
        return self.order + ("u8" if self.is_big or self.is_ndpi else "u4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The image of one directory: where its tiles or strips lie.

    Attributes:
        offsets: First byte of each.
        n_bytes: Bytes of each; 0 for a tile that the scanner left out.
        image_px: Width and height.
        tile_px: Width and height of a tile; None where the image is stored in strips.
        is_level: A level of the pyramid (tiles, or NDPI's strips), and not a label or a thumbnail.
        compression: TIFF's number, 1 for none.
        list_at: Where ``n_bytes`` itself is stored.
    """

    offsets: UInt64[np.ndarray, " tile"]
    n_bytes: UInt64[np.ndarray, " tile"]
    image_px: tuple[int, int]
    tile_px: tuple[int, int] | None
    is_level: bool
    compression: int
    list_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """What the directories say.

    Attributes:
        end: Behind the last byte that any of them refers to.
        is_whole: Every directory could be read, so ``end`` is all; else the file needs ``end`` bytes at least.
        pages: In the order of the file.
        zero_at: Where zeros lie instead of a directory, None when there is no such place.
        is_ndpi: Levels are single strips with restart markers.
    """

    end: int
    is_whole: bool
    pages: tuple[Page, ...]
    zero_at: int | None
    is_ndpi: bool


class TiffWalk:
    """The walk over one open file; `run` once.

    Args:
        descriptor: Open for reading; its position is left alone.
        size: Bytes of the file.
        is_named_ndpi: What its name says; believed only where the file is cut before it says so itself.
    """

    def __init__(self, descriptor: int, size: int, *, is_named_ndpi: bool = False) -> None:
        self._descriptor = descriptor
        self._size = size
        self._is_named_ndpi = is_named_ndpi
        self._end = 0
        self._is_whole = True
        self._zero_at: int | None = None
        self._list_bytes = 0
        self._pages: list[Page] = []

    def run(self) -> Walk | None:
        """Follow the chain of directories; None when the file does not begin as a TIFF.

        Raises:
            OSError: The file system fails.
        """
        head = os.pread(self._descriptor, HEAD_BYTES, 0)
        layout = _layout(head)
        if layout is None:
            return None
        first = _first_directory(head, layout)
        if layout.order == "<" and not layout.is_big:
            layout, first = self._as_ndpi(head, layout, first)
        if first == 0:
            self._zero_at = 4
        queue = deque([first])
        seen: set[int] = {0}
        while queue and len(seen) <= MAX_DIRECTORIES:
            at = queue.popleft()
            if at not in seen:
                seen.add(at)
                queue.extend(self._directory(at, layout))
        return Walk(
            end=self._end,
            is_whole=self._is_whole,
            pages=tuple(self._pages),
            zero_at=self._zero_at,
            is_ndpi=layout.is_ndpi,
        )

    def _as_ndpi(self, head: bytes, layout: Layout, first: int) -> tuple[Layout, int]:
        """NDPI does not say so in its head: only a tag of its first directory does."""
        ndpi = Layout(order="<", is_ndpi=True)
        wide = int.from_bytes(head[4:12], "little")
        entries = self._entries(wide, ndpi) if wide < self._size else None
        is_ndpi = entries is not None and bool((entries["tag"] == NDPI_FORMAT).any())
        is_cut = self._is_named_ndpi and self._size <= wide < NDPI_LIMIT
        return (ndpi, wide) if is_ndpi or is_cut else (layout, first)

    def _entries(self, at: int, layout: Layout) -> np.ndarray | None:
        """The entries of the directory at ``at``, None when they do not all lie in the file."""
        count = self._number(at, layout.count_code)
        if count is None or count > MAX_DIRECTORIES:
            return None
        start = at + np.dtype(layout.count_code).itemsize
        blob = os.pread(self._descriptor, count * layout.entry.itemsize, start)
        return np.frombuffer(blob, layout.entry) if len(blob) == count * layout.entry.itemsize else None

    def _directory(self, at: int, layout: Layout) -> list[int]:
        """Note what one directory refers to; the directories that follow from it."""
        count_bytes, pointer_bytes = (np.dtype(code).itemsize for code in (layout.count_code, layout.pointer_code))
        count = self._number(at, layout.count_code)
        if count is None:
            self._end = max(self._end, at + count_bytes)
        elif count == 0:
            self._note_zeros(at)
        behind = at + count_bytes + (count or 0) * layout.entry.itemsize
        entries = self._entries(at, layout)
        if not count or entries is None:
            self._is_whole = False
            # More entries than any writer makes are damage, and say nothing of the length.
            self._end = max(self._end, behind if count and count <= MAX_DIRECTORIES else 0)
            return []
        self._end = max(self._end, behind + pointer_bytes)
        if not any(entries[-1].tobytes()):
            self._note_zeros(behind - layout.entry.itemsize)
        places = self._places(entries, at + count_bytes, layout)
        if not layout.is_ndpi:
            is_standard = (entries["tag"] < PRIVATE_FROM) | (entries["tag"] == ICC_PROFILE)
            self._end = max(self._end, int((places + _value_bytes(entries))[is_standard].max(initial=0)))
        self._page(entries, places, layout)
        following = self._number(behind, layout.pointer_code)
        self._is_whole &= following is not None
        inner = self._list(entries, places, SUB_DIRECTORIES, layout)
        return [int(position) for position in (*inner[0][:MAX_DIRECTORIES], following or 0) if position]

    def _note_zeros(self, at: int) -> None:
        self._zero_at = at if self._zero_at is None else min(self._zero_at, at)

    def _places(self, entries: np.ndarray, start: int, layout: Layout) -> UInt64[np.ndarray, " entry"]:
        """Where the values of each entry are stored: in the entry itself when they fit."""
        within = np.dtype(layout.entry)["value"].itemsize
        inline = np.arange(len(entries), dtype=np.uint64) * np.uint64(layout.entry.itemsize)
        inline += np.uint64(start + layout.entry.itemsize - within)
        far = entries["value"].astype(np.uint64)
        if layout.is_ndpi and self._size > WIDE_FROM:
            blob = os.pread(self._descriptor, 4 * len(entries), start + len(entries) * layout.entry.itemsize + 8)
            if len(blob) == 4 * len(entries):
                far |= np.frombuffer(blob, "<u4").astype(np.uint64) << np.uint64(32)
        return np.where(_value_bytes(entries) <= within, inline, np.minimum(far, FAR))

    def _page(self, entries: np.ndarray, places: UInt64[np.ndarray, " entry"], layout: Layout) -> None:
        tags = entries["tag"]
        is_tiled = bool((tags == TILE_TAGS[0]).any())
        offset_tag, count_tag = TILE_TAGS if is_tiled else STRIP_TAGS
        offsets, _ = self._list(entries, places, offset_tag, layout)
        n_bytes, list_at = self._list(entries, places, count_tag, layout)
        if len(offsets) == 0 or len(n_bytes) == 0:
            return
        length = min(len(offsets), len(n_bytes))
        offsets, n_bytes = offsets[:length], n_bytes[:length]
        if not layout.is_ndpi:
            self._end = max(self._end, int((offsets + n_bytes)[n_bytes > 0].max(initial=0)))
        width, height, tile_width, tile_height, compression = (
            int(self._list(entries, places, tag, layout)[0][:1].sum())
            for tag in (IMAGE_WIDTH, IMAGE_HEIGHT, TILE_WIDTH, TILE_HEIGHT, COMPRESSION)
        )
        self._pages.append(
            Page(
                offsets=offsets,
                n_bytes=n_bytes,
                image_px=(width, height),
                tile_px=(tile_width, tile_height) if is_tiled else None,
                is_level=is_tiled or (layout.is_ndpi and self._lens(entries) > 0),
                compression=compression or 1,
                list_at=list_at,
            )
        )

    def _list(
        self, entries: np.ndarray, places: UInt64[np.ndarray, " entry"], tag: int, layout: Layout
    ) -> tuple[UInt64[np.ndarray, " value"], int]:
        """The whole numbers under ``tag`` and where they are stored; none when it is absent or not in the file."""
        (found,) = np.nonzero(entries["tag"] == tag)
        nothing = np.empty(0, np.uint64)
        if len(found) == 0 or int(entries["type"][found[0]]) not in INTEGER_CODES:
            return nothing, 0
        row = int(found[0])
        code = layout.order + INTEGER_CODES[int(entries["type"][row])]
        length, at = int(_value_bytes(entries)[row]), int(places[row])
        self._list_bytes += length
        if at + length > self._size or self._list_bytes > MAX_LIST_BYTES:
            self._is_whole = False
            return nothing, at
        values = np.frombuffer(os.pread(self._descriptor, length, at), code).astype(np.uint64)
        if layout.is_ndpi and len(values) == 1 and self._size > WIDE_FROM:
            upper = self._number(at + (len(entries) - row) * 12 + 4 * row, "<u4")
            values = values | np.uint64((upper or 0) << 32)
        return np.minimum(values, FAR), at

    def _lens(self, entries: np.ndarray) -> float:
        """NDPI's objective power of a page; negative for the macro picture and the map."""
        found = entries["value"][entries["tag"] == NDPI_LENS].astype("<u4").tobytes()[:4]
        return float(np.frombuffer(found, "<f4")[0]) if found else 0.0

    def _number(self, at: int, code: str) -> int | None:
        width = np.dtype(code).itemsize
        blob = os.pread(self._descriptor, width, at) if at + width <= self._size else b""
        return int(np.frombuffer(blob, code)[0]) if len(blob) == width else None


def _layout(head: bytes) -> Layout | None:
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < HEAD_BYTES:
        return None
    version = int(np.frombuffer(head[2:4], f"{order}u2")[0])
    return Layout(order=order, is_big=version == 43) if version in (42, 43) else None


def _first_directory(head: bytes, layout: Layout) -> int:
    return int(np.frombuffer(head, layout.pointer_code, count=1, offset=8 if layout.is_big else 4)[0])


def _value_bytes(entries: np.ndarray) -> UInt64[np.ndarray, " entry"]:
    """Bytes that the values of each entry take; 0 for types that are none, which readers pass over."""
    known = np.minimum(entries["type"], len(TYPE_BYTES) - 1)
    width = np.where(entries["type"] < len(TYPE_BYTES), TYPE_BYTES[known], 0).astype(np.uint64)
    return np.minimum(entries["count"].astype(np.uint64), FAR >> np.uint64(4)) * width
