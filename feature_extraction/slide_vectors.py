"""Slides as one vector each, by a slide encoder: what it takes of a feature file, and the file the vectors go to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from safetensors.numpy import save
from torch import Tensor

from feature_extraction.errors import MismatchError
from feature_extraction.files import publish
from feature_extraction.store import FeatureFile

TILE_MPP_SLACK = 0.02


@runtime_checkable
class SlideEncoder(Protocol):
    """Vectors of a slide's tiles to one vector.

    Attributes:
        tile_encoder: Name of the encoder that it was trained on, of whose backbone space it takes vectors.
        tile_mpp: µm per pixel of the tiles it was trained on.
    """

    tile_encoder: str
    tile_mpp: float

    def embed_slide(
        self, features: Float[Tensor, "tile width"], coords_lv0: Int[Tensor, "tile 2"], step_lv0: int
    ) -> Float[Tensor, " dim"]:
        """One vector, float32 on the CPU; ``step_lv0`` is from one tile to the next in level-0 pixels."""
        ...


def embed_slide(file: FeatureFile, encoder: SlideEncoder) -> Float32[np.ndarray, " dim"]:
    """One vector of the slide behind a feature file.

    Raises:
        MismatchError: Its vectors are not what the slide encoder was trained on; all defects at once.
        DamagedFileError: Its bytes differ from its checksums.
    """
    header, step = file.header, file.header.tile_step_lv0()
    is_coarse = abs(header.tile_mpp / encoder.tile_mpp - 1) > TILE_MPP_SLACK
    defects = {
        f"encoder {header.encoder}, expected {encoder.tile_encoder}": header.encoder != encoder.tile_encoder,
        f"it has no backbone space but {', '.join(file.spaces)}": "backbone" not in file.spaces,
        f"tiles at {header.tile_mpp} µm per pixel, expected {encoder.tile_mpp}": is_coarse,
        f"steps of {step[0]:g} and {step[1]:g} level-0 pixels, expected equal ones": round(step[0]) != round(step[1]),
        "no tile": file.shape[0] == 0,
    }
    found = [words for words, is_so in defects.items() if is_so]
    if found:
        raise MismatchError(f"{file.path.name}: not what the slide encoder takes: {'; '.join(found)}")
    features = torch.from_numpy(np.asarray(file.features_of("backbone"), np.float32))
    return encoder.embed_slide(features, torch.from_numpy(file.coords_lv0), round(step[0])).numpy()


def write_slide_vectors(
    path: Path, vectors: Mapping[str, Float32[np.ndarray, " dim"]], described: Mapping[str, object]
) -> None:
    """Publish slide vectors: one row a slide, the slides' names and whatever else is known in the metadata."""
    content = {**described, "slide_ids": list(vectors)}
    tensors = {"embeddings": np.stack(list(vectors.values())).astype(np.float32)}
    publish(path, save(tensors, metadata={"promptmil": json.dumps(content, ensure_ascii=False)}))
