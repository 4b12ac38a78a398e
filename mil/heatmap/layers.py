"""A map as tables: one row a tile and class, for analysis; tiles and regions as GeoJSON, for QuPath."""

import gzip
import io
import json
import uuid
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from jaxtyping import Bool, Float64

from feature_extraction.files import address
from mil.heatmap.contributions import Explanation

SUPPORT, AGAINST = (230, 97, 1), (94, 60, 153)
"""Colours for and against a class: orange and purple, told apart with any colour vision."""


METADATA_KEY = b"promptmil"

LAYER_MEANING = {
    "contribution": "c_ik: over the tiles (of both magnifications) its sum and the bias are the logit; where tiles see "
    "each other first (transformer, transmil) it holds what the other tiles told this one: read occlusion beside it",
    "evidence": "e_ik: what the tile would say for the class if it counted fully",
    "attention": "a_ik: how much the tile counts for the class, not what it says",
    "similarity": "tau v.t: the encoder's factor times the cosine to the words of the class, before any training",
    "occlusion": "logit of the slide less that without the tile",
    "concept": "the concept of the class with the largest share",
    "concept_share": "that share",
    "share <concept>": "softmax over the concepts of the class of tau v.c",
}
"""What a column of the tile table says; nan where there is no such thing."""


def tile_table(
    explanation: Explanation,
    classes: Sequence[str],
    concepts: Sequence[Sequence[str]],
    occlusion: Float64[np.ndarray, "tile class"] | None = None,
) -> pd.DataFrame:
    """One row for each tile and class; rows are ordered by class and then as the tiles. `LAYER_MEANING` says the rest.

    Args:
        explanation: Of one slide at one magnification.
        classes: In the order of the columns of the layers.
        concepts: [class, concept] of each column of the concept shares.
        occlusion: Of each tile and class, None where it was not computed.
    """
    bag = explanation.bag
    absent = np.full((len(bag), len(classes)), np.nan)
    similarity = absent if explanation.similarity is None else explanation.similarity
    dropped = absent if occlusion is None else occlusion
    has_concepts = explanation.concept_share.shape[1] > 0
    tables: list[pd.DataFrame] = []
    for column, name in enumerate(classes):
        concept, share = _leading_concept(explanation, name, concepts)
        content: dict[str, object] = {
            "slide_id": bag.slide_id,
            "x_lv0": bag.coords_lv0[:, 0],
            "y_lv0": bag.coords_lv0[:, 1],
            "size_lv0": bag.size_lv0[0],
            "class": name,
            "contribution": explanation.contribution[:, column],
            "evidence": explanation.evidence[:, column],
            "attention": explanation.attention[:, column],
            "similarity": similarity[:, column],
            "occlusion": dropped[:, column],
            "concept": concept,
            "concept_share": share,
        }
        shares = {concept: absent[:, 0] for _, concept in concepts if has_concepts}
        for place, (owner, concept_name) in enumerate(concepts):
            if owner == name and has_concepts:
                shares[concept_name] = explanation.concept_share[:, place]
        content |= {f"share {concept_name}": values for concept_name, values in shares.items()}
        tables.append(pd.DataFrame(content))
    return pd.concat(tables, ignore_index=True)


def parquet_bytes(table: pd.DataFrame, about: Mapping[str, object] | None = None) -> bytes:
    """A table as Parquet.

    Args:
        table: The rows.
        about: Plain data for the schema's metadata, under the key `METADATA_KEY`, as JSON.
    """
    content = pa.Table.from_pandas(table, preserve_index=False)
    if about is not None:
        said = json.dumps(about, ensure_ascii=False).encode()
        content = content.replace_schema_metadata({**(content.schema.metadata or {}), METADATA_KEY: said})
    stream = io.BytesIO()
    pq.write_table(content, stream)
    return stream.getvalue()


def tiles_geojson(explanation: Explanation, classes: Sequence[str]) -> bytes:
    """Every tile as a QuPath tile object with its numbers, gzipped GeoJSON in level-0 pixels."""
    bag = explanation.bag
    layer = explanation.map_layer()
    features: list[dict[str, object]] = []
    for row, (x, y) in enumerate(bag.coords_lv0.tolist()):
        best = int(layer[row].argmax())
        measurements = {
            f"{layer_name} {name}": round(float(values[row, column]), 6)
            for layer_name, values in (
                ("contribution", explanation.contribution),
                ("evidence", explanation.evidence),
                ("attention", explanation.attention),
            )
            for column, name in enumerate(classes)
        }
        box = shapely.box(x, y, x + bag.size_lv0[0], y + bag.size_lv0[1])
        features.append(_feature(box, "tile", classes[best], f"{bag.slide_id} {x} {y}", measurements))
    # A fixed time in the header: the same map is the same file.
    return gzip.compress(json.dumps({"type": "FeatureCollection", "features": features}).encode(), mtime=0)


def regions_geojson(explanation: Explanation, class_index: int, class_name: str, share: float) -> bytes:
    """The strongest support for one class as merged annotations, GeoJSON in level-0 pixels."""
    chosen = strongest(explanation.map_layer()[:, class_index], share)
    bag = explanation.bag
    x, y = bag.coords_lv0[chosen].T if chosen.any() else np.empty((2, 0))
    # Tiles start at rounded pixels: a pixel of overlap on each side closes the seams.
    boxes = shapely.box(x - 1, y - 1, x + bag.size_lv0[0] + 1, y + bag.size_lv0[1] + 1)
    merged = shapely.union_all(boxes)
    polygons = [] if merged.is_empty else list(getattr(merged, "geoms", [merged]))
    values = explanation.map_layer()[:, class_index]
    features: list[dict[str, object]] = []
    for polygon in polygons:
        inside = shapely.contains_xy(
            polygon, bag.coords_lv0[:, 0] + bag.size_lv0[0] / 2, bag.coords_lv0[:, 1] + bag.size_lv0[1] / 2
        )
        measurements = {
            "tiles": float(inside.sum()),
            f"mean support {class_name}": round(float(values[inside].mean()), 6),
        }
        features.append(
            _feature(polygon, "annotation", class_name, f"{bag.slide_id} {class_name} {polygon.wkt}", measurements)
        )
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def strongest(values: Float64[np.ndarray, " tile"], share: float) -> Bool[np.ndarray, " tile"]:
    """True for the tiles among the given share with the largest value, if that value speaks for the class."""
    n_chosen = max(1, round(share * len(values)))
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[:n_chosen]] = True
    return chosen & (values > 0)


def _leading_concept(
    explanation: Explanation, class_name: str, concepts: Sequence[Sequence[str]]
) -> tuple[list[str], Float64[np.ndarray, " tile"]]:
    """For each tile the concept of the class with the largest share, and that share; empty without concepts."""
    members = [column for column, (owner, _) in enumerate(concepts) if owner == class_name]
    n_tiles = len(explanation.bag)
    if not members or explanation.concept_share.shape[1] == 0:
        return [""] * n_tiles, np.zeros(n_tiles)
    shares = explanation.concept_share[:, members]
    best = shares.argmax(axis=1)
    names = [str(concepts[column][1]) for column in members]
    return [names[index] for index in best], shares.max(axis=1)


def _feature(
    geometry: shapely.Geometry, kind: str, class_name: str, key: str, measurements: dict[str, float]
) -> dict[str, object]:
    """One QuPath object; the id is derived from its content, so that the same map gives the same file."""
    return {
        "type": "Feature",
        "id": str(uuid.UUID(address({"key": key})[:32])),
        "geometry": json.loads(shapely.to_geojson(geometry)),
        "properties": {
            "objectType": kind,
            "classification": {"name": class_name, "color": list(SUPPORT)},
            "measurements": measurements,
        },
    }
