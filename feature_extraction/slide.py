"""Open one slide: what it says of itself, RGB on its background, the level to read.

The only room that sees OpenSlide. It stays the authority on what a slide's pixels are.
"""

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import openslide
import tifffile
from jaxtyping import UInt8
from PIL import Image

from feature_extraction.errors import SlideError
from feature_extraction.mpp import Mpp, MppRule, find_mpp, number

SHRINK_SLACK = 1.01
"""A level may be this much coarser than asked and still count as fine enough (downsamples are stored rounded)."""
SAMPLE_BYTES = 1 << 16
MAX_REGION_PIXELS = 1 << 28
"""The largest region read at once: 1 GiB as RGBA. A slide without a pyramid must not take the machine down."""
TIFF_ERRORS = (tifffile.TiffFileError, struct.error, ValueError, LookupError, TypeError, ArithmeticError, OSError)
"""What tifffile raises on damaged directories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideInfo:
    """What is known of a slide without reading its pixels.

    Attributes:
        width_lv0: Level-0 pixels.
        height_lv0: Level-0 pixels.
        downsamples: Of each level, from the finest (1.0).
        bounds_lv0: x, y, width, height of the scanned area in level-0 pixels.
        mpp: Micrometres per level-0 pixel.
        objective_power: As stored, None when absent.
        vendor: OpenSlide's name of the format.
        fingerprint: Of the file's size, head, tail and a sample of its middle.
    """

    width_lv0: int
    height_lv0: int
    downsamples: tuple[float, ...]
    bounds_lv0: tuple[int, int, int, int]
    mpp: Mpp
    objective_power: float | None
    vendor: str
    fingerprint: str


class Slide:
    """One open slide. Use as a context manager; a handle belongs to one thread.

    Args:
        slide_id: Named in every error.
        path: The slide file.
        cache: Decoded-tile cache shared with other handles.

    Raises:
        SlideError: The file is missing, empty, cut, or of a format OpenSlide does not read.
    """

    def __init__(self, slide_id: str, path: Path, cache: openslide.OpenSlideCache | None = None) -> None:
        self.slide_id = slide_id
        self.path = path
        try:
            self._handle = openslide.OpenSlide(path)
            if cache is not None:
                self._handle.set_cache(cache)
            self.downsamples = tuple(float(factor) for factor in self._handle.level_downsamples)
            self._size_lv0 = self._handle.dimensions
            self._properties = dict(self._handle.properties)
        except (openslide.OpenSlideError, OSError, ValueError) as error:
            raise _open_error(slide_id, path, error) from error
        colour = self._properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR) or ""
        self._background = f"#{colour}" if re.fullmatch("[0-9a-fA-F]{6}", colour) else "#ffffff"

    def __enter__(self) -> "Slide":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file handle back."""
        self._handle.close()

    def bounds_lv0(self) -> tuple[int, int, int, int]:
        """The scanned area: x, y, width, height in level-0 pixels."""
        return _bounds(self._properties, *self._size_lv0)

    def info(self, table_mpp: tuple[float, float] | None, rule: MppRule) -> SlideInfo:
        """Everything the grid and the feature file need to know.

        Args:
            table_mpp: The user's own value, which wins.
            rule: What to do when the slide does not say.

        Raises:
            SlideError: No plausible mpp anywhere.
        """
        properties = self._properties
        width, height = self._size_lv0
        return SlideInfo(
            width_lv0=width,
            height_lv0=height,
            downsamples=self.downsamples,
            bounds_lv0=self.bounds_lv0(),
            mpp=find_mpp(self.slide_id, properties, table_mpp, rule),
            objective_power=number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
            vendor=properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown"),
            fingerprint=fingerprint_file(self.path),
        )

    def level_for(self, downsample: float) -> int:
        """The coarsest level that is still at least as fine as ``downsample``."""
        return self._handle.get_best_level_for_downsample(downsample * SHRINK_SLACK)

    def read_square(
        self, corner_lv0: tuple[int, int], size_lv0: tuple[float, float], level: int, side_px: int
    ) -> UInt8[np.ndarray, "side side 3"]:
        """Read a region and resample it to exactly ``side_px`` squared, RGB on the slide's background.

        The region is read on the level's own pixel grid and cut at fractional positions by the resampling (bicubic,
        antialiased), so the mpp of a tile is exact and not rounded to whole pixels. Without a change of size the pixels
        are the slide's own.

        Raises:
            SlideError: The region cannot be decoded. The handle is useless afterwards (OpenSlide latches the error).
        """
        factor = self.downsamples[level]
        left, top = (position / factor for position in corner_lv0)
        width, height = (extent / factor for extent in size_lv0)
        x, y = int(left + 1e-6), int(top + 1e-6)
        columns, rows = int(np.ceil(left + width - x - 1e-6)), int(np.ceil(top + height - y - 1e-6))
        picture = self._read((round(x * factor), round(y * factor)), level, (columns, rows))
        inset = (max(left - x, 0.0), max(top - y, 0.0))
        box = (*inset, min(inset[0] + width, columns), min(inset[1] + height, rows))
        if (columns, rows) != (side_px, side_px) or max(inset) > 1e-3:
            picture = picture.resize((side_px, side_px), Image.Resampling.BICUBIC, box=box)
        return np.asarray(picture)

    def thumbnail(self, bounds_lv0: tuple[int, int, int, int], downsample: float) -> UInt8[np.ndarray, "row column 3"]:
        """The scanned area at about ``downsample`` times level 0, RGB.

        Raises:
            SlideError: The level cannot be decoded.
        """
        level = self.level_for(downsample)
        factor = self.downsamples[level]
        x, y, width, height = bounds_lv0
        size = (max(1, int(width / factor)), max(1, int(height / factor)))
        picture = self._read((x, y), level, size)
        target = (max(1, round(width / downsample)), max(1, round(height / downsample)))
        return np.asarray(picture.resize(target, Image.Resampling.BOX))

    def _read(self, corner_lv0: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        if size[0] * size[1] > MAX_REGION_PIXELS:
            raise SlideError(
                slide_id=self.slide_id,
                stage="tile",
                cause=f"its level {level} as one region has {size[0]:,} x {size[1]:,} pixels: it has no pyramid",
                remedy="convert it to a pyramid (vips tiffsave --tile --pyramid), or set tissue=none",
                code="E-pyramid",
            )
        try:
            region = self._handle.read_region(corner_lv0, level, size)
        except openslide.OpenSlideError as error:
            x, y = corner_lv0
            raise SlideError(
                slide_id=self.slide_id,
                stage="tile",
                cause=f"region at level-0 ({x}, {y}), level {level}, cannot be decoded: {error}",
                remedy="copy the slide again from its source, or set tolerate_bad_tiles to a share you accept",
                code="E-tile",
            ) from error
        canvas = Image.new("RGB", region.size, self._background)
        canvas.paste(region, mask=region.getchannel("A"))
        return canvas


def library_version() -> str:
    """Version of the OpenSlide library that reads the slides."""
    return openslide.__library_version__


def shared_cache(n_bytes: int) -> openslide.OpenSlideCache:
    """A cache of decoded tiles that several handles may share."""
    return openslide.OpenSlideCache(n_bytes)


def fingerprint_file(path: Path) -> str:
    """Hex SHA-256 over a file's size and its first, middle and last 64 KiB."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        digest = hashlib.sha256(str(size).encode())
        for start in (0, size // 2, max(0, size - SAMPLE_BYTES)):
            stream.seek(start)
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _bounds(properties: Mapping[str, str], width: int, height: int) -> tuple[int, int, int, int]:
    """The scanned area as the format states it, else the whole slide."""
    keys = (
        openslide.PROPERTY_NAME_BOUNDS_X,
        openslide.PROPERTY_NAME_BOUNDS_Y,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH,
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
    )
    values = [number(properties.get(key)) for key in keys]
    x, y, w, h = (None if value is None else int(value) for value in values)
    if x is None or y is None or w is None or h is None:
        return 0, 0, width, height
    return x, y, min(w, width - x), min(h, height - y)


def _open_error(slide_id: str, path: Path, error: Exception) -> SlideError:
    """Say which of the many reasons it is: OpenSlide answers the same to a missing, empty and cut file."""
    if path.is_dir():
        cause, code = f"{path.name} is a folder, expected a slide file", "E-open"
    elif not path.is_file():
        cause, code = f"no such file: {path.name}", "E-missing"
    elif path.stat().st_size == 0:
        cause, code = f"{path.name} is empty (0 bytes)", "E-empty"
    else:
        damage = _tiff_truncation(path)
        said = damage or f"OpenSlide does not read it ({error})"
        cause, code = f"{path.name}: {said}", "E-truncated" if damage else "E-open"
    remedy = (
        "check the path" if code == "E-missing" else "copy the slide again, or convert it to a format OpenSlide reads"
    )
    return SlideError(slide_id=slide_id, stage="open", cause=cause, remedy=remedy, code=code)


def _tiff_truncation(path: Path) -> str | None:
    """Name a cut TIFF by its bytes: a directory or a tile it points to lies behind the end of the file."""
    size = path.stat().st_size
    try:
        with tifffile.TiffFile(path) as tiff:
            ends = [
                offset + count
                for page in tiff.pages
                if isinstance(page, tifffile.TiffPage)
                for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)
            ]
    except TIFF_ERRORS as error:
        return f"its TIFF directory is damaged or cut ({error}); it has {size:,} bytes" if _is_tiff(path) else None
    needed = max(ends, default=0)
    return f"is cut short: its tiles end at byte {needed:,}, the file has {size:,} bytes" if needed > size else None


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
