"""Where the lesions truly are: GeoJSON as QuPath writes it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64


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
