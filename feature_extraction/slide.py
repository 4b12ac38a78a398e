"""Open one slide: what it says of itself, RGB on its background, the level to read.

The only room that sees OpenSlide. It stays the authority on what a slide's pixels are.
"""

import hashlib
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import openslide
import tifffile
from jaxtyping import UInt8
from PIL import Image, ImageColor

from feature_extraction.errors import SlideError
from feature_extraction.mpp import Mpp, MppRule, find_mpp, number
from feature_extraction.preflight import Defect, explain_refusal, find_defect

SHRINK_SLACK = 1.01
"""A level may be this much coarser than asked and still count as fine enough (downsamples are stored rounded)."""
SAMPLE_BYTES = 1 << 16
STRIP_PIXELS = 1 << 25
"""The largest part of a level read at once for a thumbnail: 128 MiB as RGBA."""
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
            defect = find_defect(path)
            if defect is not None:
                raise _as_error(slide_id, defect)
            self._handle = openslide.OpenSlide(path)
            if cache is not None:
                self._handle.set_cache(cache)
            self.downsamples = tuple(float(factor) for factor in self._handle.level_downsamples)
            self._size_lv0 = self._handle.dimensions
            properties = self._handle.properties  # a name that is not UTF-8 cannot be asked for
            self._properties = {key: value for key in properties if (value := properties.get(key)) is not None}
        except (openslide.OpenSlideError, ValueError) as error:
            raise _as_error(slide_id, explain_refusal(path, str(error))) from error
        colour = self._properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR) or ""
        self._background = f"#{colour}" if re.fullmatch("[0-9a-fA-F]{6}", colour) else "#ffffff"
        self.background: tuple[int, int, int] = ImageColor.getrgb(self._background)[:3]
        self.level_sizes: tuple[tuple[int, int], ...] = tuple(self._handle.level_dimensions)

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

    def is_aligned(self, level: int) -> bool:
        """Whether every pixel of a level begins at a whole level-0 pixel, so that it can be asked for exactly.

        OpenSlide takes level-0 positions. Between two pixels of the level it interpolates.
        """
        return self.downsamples[level].is_integer()

    def read_region(
        self, corner: tuple[int, int], level: int, size: tuple[int, int]
    ) -> UInt8[np.ndarray, "row column 3"]:
        """Read ``size`` (width, height) pixels from ``corner`` (x, y), both in pixels of the level, RGB on background.

        Raises:
            SlideError: The region cannot be decoded. The handle is useless afterwards (OpenSlide latches the error).
        """
        factor = self.downsamples[level]
        corner_lv0 = (round(corner[0] * factor), round(corner[1] * factor))
        return np.array(self._read(corner_lv0, level, size))

    def thumbnail(
        self,
        bounds_lv0: tuple[int, int, int, int],
        downsample: float,
        on_progress: Callable[[], None] = lambda: None,
    ) -> UInt8[np.ndarray, "row column 3"]:
        """The scanned area at about ``downsample`` times level 0, RGB.

        Read in strips, so that a slide without a pyramid costs time and not memory.

        Args:
            bounds_lv0: The scanned area: x, y, width, height.
            downsample: Level-0 pixels to a pixel of the thumbnail.
            on_progress: Called after each strip.

        Raises:
            SlideError: The level cannot be decoded.
        """
        level = self.level_for(downsample)
        factor = self.downsamples[level]
        x, y, width_lv0, height_lv0 = bounds_lv0
        width, height = max(1, int(width_lv0 / factor)), max(1, int(height_lv0 / factor))
        n_columns, n_rows = max(1, round(width_lv0 / downsample)), max(1, round(height_lv0 / downsample))
        shrink = height / n_rows
        rows_a_strip = max(1, int(STRIP_PIXELS / (width * shrink)))
        strips: list[UInt8[np.ndarray, "row column 3"]] = []
        for first in range(0, n_rows, rows_a_strip):
            last = min(n_rows, first + rows_a_strip)
            top, bottom = int(first * shrink), min(height, math.ceil(last * shrink))
            strip = self._read((x, y + round(top * factor)), level, (width, bottom - top))
            box = (0.0, first * shrink - top, float(width), min(last * shrink - top, bottom - top))
            strips.append(np.asarray(strip.resize((n_columns, last - first), Image.Resampling.BOX, box=box)))
            on_progress()
        return np.concatenate(strips)

    def _read(self, corner_lv0: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
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


def _as_error(slide_id: str, defect: Defect) -> SlideError:
    return SlideError(slide_id=slide_id, stage="open", cause=defect.cause, remedy=defect.remedy, code=defect.code)
