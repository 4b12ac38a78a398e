"""The viewer's folder: a page a slide, the cohort's page, and what both are made of."""

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import cast

from feature_extraction.errors import DamagedFileError
from feature_extraction.files import address, is_valid, publish, publish_json, publish_text, read_json, sha256_of_file
from feature_extraction.header import FeatureHeader
from feature_extraction.slide import Slide, fingerprint_file
from mil.viewer.layout import FORMAT, MANIFEST, PICTURE, PICTURE_SCRIPT, SLIDES
from mil.viewer.pyramid import Pyramid, pyramid_within, write_pyramid
from mil.viewer.script import script_text
from mil.viewer.slide_data import index_row, read_scales, slide_data, table_paths

ASSETS = "assets"
"""Scripts and style of all pages."""
PAGE_FILES = ("style.css", "index.js", "layers.js", "paint.js", "stage.js", "crops.js", "about.js", "slide.js")
VENDOR_FILES = ("openseadragon.min.js", "openseadragon.LICENSE.txt")
PACKAGE = "mil.viewer"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideExport:
    """What one slide's page is made from.

    Attributes:
        slide_id: The slide.
        headers: Of its feature file at each magnification, the finest first.
        path: Of the slide, None when it is not at hand.
    """

    slide_id: str
    headers: Sequence[FeatureHeader]
    path: Path | None


def export_slide(source: SlideExport, maps: Path, viewer: Path, most_tiles: int) -> None:
    """Write the page of a slide whose map is there, unless it is there already.

    Args:
        source: The slide.
        maps: The ``out`` of `promptmil heatmap`.
        viewer: The export's folder.
        most_tiles: Of the slide's pyramid; a bigger slide is shown at a coarser level.

    Raises:
        DamagedFileError: The map's table is not what it should be.
        SlideError: The slide cannot be opened or read.
        OSError: A file cannot be read or written.
    """
    folder, record = viewer / SLIDES / source.slide_id, _record(maps, source.slide_id)
    wanted = _address(source, maps, most_tiles)
    if is_valid(record, lambda file: _check(file, folder, wanted)):
        return
    scales = read_scales(maps, source.slide_id, source.headers)
    data = slide_data(scales)
    if folder.is_dir():  # tiles of another pyramid would stay
        shutil.rmtree(folder)
    bounds = cast("tuple[int, int, int, int]", tuple(json.loads(source.headers[0].bounds_lv0)))
    picture: Pyramid | None = None
    made: list[Path] = []
    if source.path is not None:
        picture = pyramid_within(bounds, most_tiles)
        with Slide(source.slide_id, source.path) as slide:
            made += write_pyramid(slide, picture, folder / PICTURE)
    texts = {
        "data.js": script_text("slide", data),
        PICTURE_SCRIPT: script_text("picture", None if picture is None else picture.described(PICTURE)),
        "index.html": _asset("page", "slide.html").decode(),
    }
    for name, text in texts.items():
        made.append(folder / name)
        publish_text(folder / name, text)
    known = {"bounds_lv0": bounds, "slide_fingerprint": source.headers[0].slide_fingerprint}
    hashes = {str(path.relative_to(folder)): sha256_of_file(path) for path in made}
    publish_json(record, {"address": wanted, "files": hashes, "row": index_row(scales), "slide": known})


def write_index(maps: Path, viewer: Path, slide_ids: Sequence[str]) -> None:
    """Write the cohort's page of the slides whose pages are there, in this order.

    Raises:
        DamagedFileError: A slide's record is damaged.
        OSError: A file cannot be read or written.
    """
    records = {slide_id: read_json(_record(maps, slide_id)) for slide_id in slide_ids}
    for name in (*PAGE_FILES, *VENDOR_FILES):
        publish(viewer / ASSETS / name, _asset("vendor" if name in VENDOR_FILES else "page", name))
    rows = [record["row"] for record in records.values()]
    publish_text(viewer / "slides.js", script_text("slides", rows))
    publish(viewer / "index.html", _asset("page", "index.html"))
    known = {slide_id: record["slide"] for slide_id, record in records.items()}
    publish_json(viewer / MANIFEST, {"format": FORMAT, "slides": known})


def _record(maps: Path, slide_id: str) -> Path:
    return maps / ".work" / f"{slide_id}.viewer.json"


def _asset(folder: str, name: str) -> bytes:
    return (files(PACKAGE) / folder / name).read_bytes()


def _address(source: SlideExport, maps: Path, most_tiles: int) -> str:
    """What determines a slide's page."""
    tables = table_paths(maps, source.slide_id, len(source.headers))
    return address(
        {
            "page": hashlib.sha256(_asset("page", "slide.html")).hexdigest(),
            "format": FORMAT,
            "tables": [sha256_of_file(path) for path in tables],
            "slide": None if source.path is None else fingerprint_file(source.path),
            "most_tiles": None if source.path is None else most_tiles,
            "version": importlib.metadata.version("promptmil"),
        }
    )


def _check(record: Path, folder: Path, wanted: str) -> None:
    """Raise unless this record is of the wanted page and its files are as they were written."""
    content = read_json(record)
    made = content.get("files")
    if content.get("address") != wanted or not isinstance(made, dict):
        raise DamagedFileError(f"{record.name}: of another page")
    for name, expected in made.items():
        if sha256_of_file(folder / str(name)) != expected:
            raise DamagedFileError(f"{name}: not as it was written")
