"""Known regions of a slide, to measure a map against."""

import json
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Float64, Int64
from shapely.geometry import shape

from feature_extraction.errors import DamagedFileError


def read_regions(path: Path) -> shapely.Geometry:
    """The union of the polygons of a GeoJSON in level-0 pixels; empty when it holds none.

    Raises:
        DamagedFileError: Not GeoJSON.
    """
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]
        return shapely.union_all([shapely.make_valid(shape(feature["geometry"])) for feature in features])
    except (OSError, ValueError, KeyError, TypeError, shapely.errors.ShapelyError) as error:
        raise DamagedFileError(f"{path}: not a GeoJSON FeatureCollection of regions ({error})") from error


def covered_fraction(
    region: shapely.Geometry, coords_lv0: Int64[np.ndarray, "tile 2"], size_lv0: tuple[float, float]
) -> Float64[np.ndarray, " tile"]:
    """Share of each tile's area that lies in the region.

    Args:
        region: In level-0 pixels.
        coords_lv0: Top-left corner of each tile.
        size_lv0: Width and height of a tile.
    """
    x, y = coords_lv0[:, 0], coords_lv0[:, 1]
    tiles = shapely.box(x, y, x + size_lv0[0], y + size_lv0[1])
    shapely.prepare(region)
    return shapely.area(shapely.intersection(tiles, region)) / (size_lv0[0] * size_lv0[1])
