"""A map for QuPath: merged regions as annotations, tiles with their numbers, and the script that opens both.

Positions are level-0 pixels from the top-left corner of the full slide, as OpenSlide counts them. QuPath itself shows
the scanned area alone where a slide states one; the script moves the objects then.
"""

import gzip
import json
import math
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import shapely
from jaxtyping import Float64

from feature_extraction.pseudonyms import printable
from mil.heatmap.about import USE
from mil.heatmap.contributions import Explanation
from mil.heatmap.exports.placement import SlidePlace
from mil.heatmap.exports.regions import COLOURS, Region
from mil.palette import COLOURS as OF_CLASSES

IMPORTER = "qupath_import.groovy"
"""Name of the script, one for a folder of maps."""
DIGITS = 4
"""Significant digits of the largest number of a layer; more would double the file and say nothing."""


def importer() -> str:
    """The script."""
    return (files("mil.heatmap.exports") / IMPORTER).read_text(encoding="utf-8")


def regions_geojson(regions: Sequence[Region], place: SlidePlace) -> bytes:
    """Regions as QuPath annotations, gzipped GeoJSON; holes stay holes.

    Classes are ``<class>: for`` and ``<class>: against``, which QuPath keeps below the class.

    Args:
        regions: Of one slide.
        place: Of the slide; its size and scanned area are in the member ``promptmil`` of the collection.
    """
    features = [
        {
            "type": "Feature",
            "geometry": _whole(shapely.geometry.mapping(region.polygon)),
            "properties": {
                "objectType": "annotation",
                "classification": {
                    "name": f"{printable(region.class_name)}: {region.side}",
                    "color": list(COLOURS[region.side]),
                },
                "measurements": {"level": _rounded(region.level), "mean": _rounded(region.mean)},
            },
        }
        for region in regions
    ]
    about = {"size_lv0": place.size_lv0, "bounds_lv0": place.bounds_lv0, "use": USE}
    content = {"type": "FeatureCollection", "promptmil": about, "features": features}
    return _zipped(json.dumps(content, separators=(",", ":"), ensure_ascii=False))


def tiles_geojson(explanation: Explanation, classes: Sequence[str]) -> bytes:
    """Every tile as a QuPath tile with its numbers, gzipped GeoJSON; its class is the one that it says most for.

    The layers of a class that are zero everywhere, such as those of the background, are left out, and attention that is
    the same for all classes stands once. The exact numbers are in the tile table.
    """
    bag = explanation.bag
    columns = _measurements(explanation, [printable(name) for name in classes])
    numbers = ",".join(f"{json.dumps(name, ensure_ascii=False)}:%.{_decimals(v)}f" for name, v in columns.items())
    classes_said = [
        json.dumps(
            {"name": printable(name), "color": _rgb(OF_CLASSES[place % len(OF_CLASSES)])},
            separators=(",", ":"),
            ensure_ascii=False,
        )
        for place, name in enumerate(classes)
    ]
    corner, opposite = bag.coords_lv0, np.floor(bag.coords_lv0 + np.array(bag.size_lv0) + 0.5).astype(np.int64)
    (left, top), (right, bottom) = corner.T, opposite.T
    best = explanation.map_layer().argmax(axis=1)
    ring = np.stack([left, top, right, top, right, bottom, left, bottom, left, top], axis=1)
    rows = zip(ring.tolist(), best.tolist(), *(values.tolist() for values in columns.values()), strict=True)
    # Written by hand: a hundred thousand dictionaries take a minute and most of the memory.
    feature = (
        '{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[%d,%d],[%d,%d],[%d,%d],[%d,%d],[%d,%d]]]},'
        '"properties":{"objectType":"tile","classification":%s,"measurements":{'
    )
    percent = numbers.replace("%.", "\0").replace("%", "%%").replace("\0", "%.")
    lines = [
        feature % (*corners, classes_said[which]) + percent % tuple(values) + "}}}" for corners, which, *values in rows
    ]
    return _zipped('{"type":"FeatureCollection","features":[' + ",\n".join(lines) + "]}")


def _measurements(explanation: Explanation, names: Sequence[str]) -> dict[str, Float64[np.ndarray, " tile"]]:
    """Name of each measurement to its values."""
    layers = {"contribution": explanation.contribution}
    if explanation.is_sparse:
        layers["evidence"] = explanation.evidence
    found = {
        f"{layer} {name}": values[:, column]
        for layer, values in layers.items()
        for column, name in enumerate(names)
        if values[:, column].any()
    }
    attention = explanation.attention
    if (attention == attention[:, :1]).all():
        return {**found, "attention": attention[:, 0]}
    return found | {f"attention {name}": attention[:, column] for column, name in enumerate(names)}


def _decimals(values: Float64[np.ndarray, " tile"]) -> int:
    """That give the largest value `DIGITS` digits."""
    largest = float(np.abs(values).max())
    return max(0, DIGITS - 1 - math.floor(math.log10(largest))) if largest > 0 else 0


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _rgb(colour: str) -> list[int]:
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]


def _whole(geometry: dict[str, object]) -> dict[str, object]:
    """Whole numbers as such: half the text."""
    rings = geometry["coordinates"]
    if not isinstance(rings, tuple):
        raise TypeError(f"a region with the coordinates {rings!r}, expected the rings of a polygon")
    return {"type": "Polygon", "coordinates": [[[int(x), int(y)] for x, y in ring] for ring in rings]}


def _zipped(text: str) -> bytes:
    """With a fixed time in the header: the same map is the same file."""
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)
