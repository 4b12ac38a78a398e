"""A map as a table: one row a tile and class, for analysis."""

import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64

from mil.heatmap.contributions import Explanation

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
