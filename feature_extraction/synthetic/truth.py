"""Where the lesions truly are: GeoJSON as QuPath writes it, and the share of a tile they cover."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Float32, Float64, Int64

from feature_extraction.errors import DamagedFileError
from feature_extraction.files import read_json


def lesions_geojson(lesions_lv0: Sequence[Float64[np.ndarray, "vertex 2"]], name: str) -> dict[str, object]:
    """A FeatureCollection of annotations, one for each closed outline (x, y) in level-0 pixels."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [np.round(outline, 2).tolist()]},
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for outline in lesions_lv0
    ]
    return {"type": "FeatureCollection", "features": features}


def lesion_fraction(
    geojson: Path, coords_lv0: Int64[np.ndarray, "tile 2"], *, size_lv0: float
) -> Float32[np.ndarray, "tile"]:
    """Share of each tile's area (0..1) that lies inside the lesions of a truth file, in the order of the tiles.

    Args:
        geojson: A file of `lesions_geojson`.
        coords_lv0: Top-left corners (x, y) in level-0 pixels.
        size_lv0: Side of a tile in level-0 pixels.

    Raises:
        DamagedFileError: The file is not such a collection of polygons.
        OSError: The file cannot be read.
    """
    read_json(geojson)
    try:
        shapes = shapely.from_geojson(geojson.read_text(encoding="utf-8"))
    except shapely.errors.GEOSException as error:
        raise DamagedFileError(f"{geojson}: not GeoJSON ({error}); delete it and make the cohort again") from error
    lesion = shapely.union_all(shapely.make_valid(shapely.get_parts(shapes)))
    corners = coords_lv0.astype(np.float64)
    tiles = shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + size_lv0, corners[:, 1] + size_lv0)
    covered = shapely.area(shapely.intersection(tiles, lesion)) / size_lv0**2
    return covered.astype(np.float32)
