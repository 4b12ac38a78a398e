"""Which exports of a map are wanted, and their files."""

import json
from collections.abc import Callable, Mapping, Sequence

from feature_extraction.errors import InputError
from mil.heatmap.exports.asap import regions_asap
from mil.heatmap.exports.case_report import case_report
from mil.heatmap.exports.gallery import gallery_html
from mil.heatmap.exports.mapped import Mapped
from mil.heatmap.exports.ome_tiff import map_ome_tiff
from mil.heatmap.exports.qupath import regions_geojson, tiles_geojson
from mil.heatmap.exports.regions import Region, regions_of


def known_exports(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once, in the order in which the exports are made.

    Raises:
        InputError: There is no such export.
    """
    unknown = [name for name in names if name not in _EXPORTS]
    if unknown:
        raise InputError(f"exports: {', '.join(unknown)} not known; expected some of {', '.join(_EXPORTS)}")
    return tuple(name for name in _EXPORTS if name in names)


def export_files(names: Sequence[str], mapped: Mapped) -> dict[str, bytes]:
    """The content of each file by what follows the slide id in its name.

    Raises:
        SlideError: The slide cannot be opened or read.
    """
    files: dict[str, bytes] = {}
    for name in names:
        files |= _EXPORTS[name](mapped)
    return files


def _geojson(mapped: Mapped) -> dict[str, bytes]:
    return {
        ".tiles.geojson.gz": tiles_geojson(mapped.explanation, mapped.classes),
        ".regions.geojson.gz": regions_geojson(_regions(mapped), mapped.place),
    }


def _ome_tiff(mapped: Mapped) -> dict[str, bytes]:
    return {".ome.tiff": map_ome_tiff(mapped.explanation, mapped.classes, mapped.place)}


def _asap(mapped: Mapped) -> dict[str, bytes]:
    return {".asap.xml": regions_asap(_regions(mapped))}


def _gallery(mapped: Mapped) -> dict[str, bytes]:
    page = gallery_html(mapped)
    return {} if page is None else {".gallery.html": page.encode()}


def _report(mapped: Mapped) -> dict[str, bytes]:
    content, page = case_report(mapped)
    said = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    return {".report.json": f"{said}\n".encode(), ".report.html": page.encode()}


def _regions(mapped: Mapped) -> list[Region]:
    return regions_of(mapped.explanation, mapped.classes, mapped.place, mapped.region_share)


_EXPORTS: Mapping[str, Callable[[Mapped], dict[str, bytes]]] = {
    "geojson": _geojson,
    "ome_tiff": _ome_tiff,
    "asap": _asap,
    "gallery": _gallery,
    "report": _report,
}
