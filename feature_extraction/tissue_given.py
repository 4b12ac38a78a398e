"""Tissue as somebody drew it: GeoJSON annotations in level-0 pixels, holes and all."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Bool
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from feature_extraction.errors import SlideError

AREAS = frozenset({"Polygon", "MultiPolygon"})
FAULTS = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, shapely.errors.ShapelyError)
"""What json and shapely raise on anything that is not GeoJSON."""
IGNORED_MARK = "*"
"""QuPath's mark of a class that does not count, such as ``Ignore*``: such areas are cut out of the others."""
Affine = tuple[tuple[float, float], tuple[float, float]]
"""Origin (x, y) of a picture and size (width, height) of its pixels, both in level-0 pixels."""


def annotation_bytes(source: Path, slide_id: str) -> bytes:
    """The slide's own annotation: ``<slide_id>.geojson`` of a folder, or the one file there is.

    Raises:
        SlideError: It cannot be read (code E-mask).
    """
    path = source / f"{slide_id}.geojson" if source.is_dir() else source
    try:
        return path.read_bytes()
    except OSError as error:
        raise _error(slide_id, f"no readable annotation {path.name}: {error.strerror or error}") from error


def annotated_area(data: bytes, slide_id: str) -> BaseGeometry:
    """The annotated area of a slide in level-0 pixels.

    Every Polygon and MultiPolygon counts, whatever its class, but those of a class QuPath ignores are cut out. Points
    and lines do not count.

    Args:
        data: A GeoJSON file.
        slide_id: The slide.

    Raises:
        SlideError: It is not GeoJSON (code E-mask).
    """
    kept: list[BaseGeometry] = []
    ignored: list[BaseGeometry] = []
    try:
        for feature in _features(json.loads(data, parse_constant=_refuse_constant)):
            into = ignored if _class_name(feature.get("properties")).endswith(IGNORED_MARK) else kept
            into.extend(_areas(feature["geometry"]))
        area = shapely.union_all(kept)
        return area.difference(shapely.union_all(ignored)) if ignored else area
    except FAULTS as error:
        raise _error(slide_id, f"its annotation is not GeoJSON of areas ({type(error).__name__}: {error})") from error


def rasterize(area: BaseGeometry, affine: Affine, size: tuple[int, int]) -> Bool[np.ndarray, "row column"]:
    """True in the pixels whose centre lies in ``area``.

    The rings of a valid area cross each pixel row an even number of times, and between an odd crossing and the next
    lies its inside: so a pixel is inside when an odd number of crossings lie left of its centre.

    Args:
        area: In level-0 pixels, valid (a union always is).
        affine: Of the picture.
        size: Rows and columns.
    """
    (origin_x, origin_y), (width, height) = affine
    n_rows, n_columns = size
    crossings = np.zeros((n_rows, n_columns + 1), np.int32)
    for ring in _rings(area):
        points = (shapely.get_coordinates(ring) - (origin_x, origin_y)) / (width, height) - 0.5
        start, end = points[:-1], points[1:]
        first = np.clip(np.ceil(np.minimum(start[:, 1], end[:, 1])), 0, n_rows).astype(np.int64)
        last = np.clip(np.ceil(np.maximum(start[:, 1], end[:, 1])), 0, n_rows).astype(np.int64)
        counts = last - first
        edge = np.repeat(np.arange(len(counts)), counts)
        row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        share = (row - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
        x = start[edge, 0] + share * (end[edge, 0] - start[edge, 0])
        np.add.at(crossings, (row, np.clip(np.ceil(x), 0, n_columns).astype(np.int64)), 1)
    return np.cumsum(crossings[:, :-1], axis=1) % 2 == 1


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _features(content: object) -> Iterator[dict[str, object]]:
    """Every feature of a FeatureCollection, a list of features, a feature or a bare geometry."""
    if isinstance(content, list):
        for item in content:
            yield from _features(item)
    elif not isinstance(content, dict) or "type" not in content:
        raise ValueError("expected a FeatureCollection, a Feature or a geometry")
    elif content["type"] == "FeatureCollection":
        yield from _features(content["features"])
    else:
        yield content if content["type"] == "Feature" else {"geometry": content}


def _areas(geometry: object) -> Iterator[BaseGeometry]:
    if geometry is None:  # GeoJSON allows a feature that lies nowhere
        return
    if not isinstance(geometry, dict):
        raise TypeError("a geometry is not an object")
    if geometry["type"] == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _areas(part)
    elif geometry["type"] in AREAS:
        area = shape(geometry)
        if not np.isfinite(shapely.get_coordinates(area)).all():
            raise ValueError("a coordinate is not finite")
        yield shapely.make_valid(area)


def _class_name(properties: object) -> str:
    """QuPath's class of a feature, empty when it has none."""
    found = properties.get("classification") if isinstance(properties, dict) else None
    name = found.get("name") if isinstance(found, dict) else found
    return name if isinstance(name, str) else ""


def _rings(area: BaseGeometry) -> Iterator[BaseGeometry]:
    """Outlines and holes of every polygon; points and lines that a union may leave have none."""
    for part in shapely.get_parts(area):
        if part.geom_type in ("GeometryCollection", "MultiPolygon"):
            yield from _rings(part)
        elif part.geom_type == "Polygon" and not part.is_empty:
            yield from shapely.get_rings(part)


def _error(slide_id: str, cause: str) -> SlideError:
    return SlideError(
        slide_id=slide_id,
        stage="tissue",
        cause=cause,
        remedy=f"put GeoJSON polygons in level-0 pixels at {slide_id}.geojson in the folder of tissue.path=…, or leave "
        "this slide out",
        code="E-mask",
    )
