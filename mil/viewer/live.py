"""Slides as they are, for the server: their DeepZoom tiles are made when they are asked for."""

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import cast

from feature_extraction.errors import DamagedFileError, InputError, SlideError
from feature_extraction.files import read_json
from feature_extraction.slide import Slide, fingerprint_file
from mil.viewer.layout import FORMAT, MANIFEST
from mil.viewer.pyramid import Pyramid, tile_jpeg

MOST_OPEN = 4
"""Slides that stay open."""


def read_manifest(folder: Path) -> dict[str, Mapping[str, object]]:
    """What an export says of the slide behind each page: ``bounds_lv0`` and ``slide_fingerprint``.

    Raises:
        InputError: The folder is no export, or one of another version.
        DamagedFileError: The manifest is not readable.
    """
    path = folder / MANIFEST
    try:
        content = read_json(path)
    except OSError as error:
        raise InputError(
            f"folder={folder}: no {MANIFEST} in it, so it is no viewer; make one with promptmil heatmap viewer=true"
        ) from error
    if content.get("format") != FORMAT:
        raise InputError(f"folder={folder}: made by another version; run promptmil heatmap viewer=true again")
    slides = content.get("slides")
    if not isinstance(slides, dict):
        raise DamagedFileError(f"{path}: lists no slides; run promptmil heatmap viewer=true again")
    return cast("dict[str, Mapping[str, object]]", slides)


class LiveSlides:
    """The slides at hand that the pages of an export are of.

    Args:
        manifest: Of the export.
        paths: Of slides, by slide id.
    """

    def __init__(self, manifest: Mapping[str, Mapping[str, object]], paths: Mapping[str, Path]) -> None:
        self.strangers: list[str] = []
        """Slides whose file is not the one that the map was made from, or cannot be read."""
        self._paths: dict[str, Path] = {}
        self._pyramids: dict[str, Pyramid] = {}
        for slide_id, known in manifest.items():
            if slide_id not in paths:
                continue
            if not _is_same(paths[slide_id], known):
                self.strangers.append(slide_id)
                continue
            self._paths[slide_id] = paths[slide_id]
            bounds = cast("tuple[int, int, int, int]", tuple(cast("list[int]", known["bounds_lv0"])))
            self._pyramids[slide_id] = Pyramid(bounds_lv0=bounds)
        self._open: OrderedDict[str, Slide] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._paths)

    def pyramid(self, slide_id: str) -> Pyramid | None:
        """The whole pyramid of a slide, None when it is not at hand."""
        return self._pyramids.get(slide_id)

    def tile(self, slide_id: str, level: int, column: int, row: int) -> bytes | None:
        """A tile as JPEG, None when there is none.

        Raises:
            SlideError: The slide cannot be read there.
        """
        pyramid = self.pyramid(slide_id)
        if pyramid is None or not pyramid.holds(level, column, row):
            return None
        with self._lock:  # a handle belongs to one thread at a time
            try:
                return tile_jpeg(self._slide(slide_id), pyramid, level, column, row)
            except SlideError:
                self._forget(slide_id)  # useless after an error
                raise

    def close(self) -> None:
        """Close every slide."""
        with self._lock:
            for slide_id in list(self._open):
                self._forget(slide_id)

    def _slide(self, slide_id: str) -> Slide:
        if slide_id not in self._open:
            self._open[slide_id] = Slide(slide_id, self._paths[slide_id])
        self._open.move_to_end(slide_id)
        if len(self._open) > MOST_OPEN:
            self._forget(next(iter(self._open)))
        return self._open[slide_id]

    def _forget(self, slide_id: str) -> None:
        slide = self._open.pop(slide_id, None)
        if slide is not None:
            with suppress(OSError):
                slide.close()


def _is_same(path: Path, known: Mapping[str, object]) -> bool:
    """Whether this is the file that the features are from; features of other tools do not always say."""
    try:
        return known["slide_fingerprint"] in ("", fingerprint_file(path))
    except OSError:
        return False
