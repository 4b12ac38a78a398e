"""AnnData (``.h5ad``), written by its documented on-disk format, so that no further package is needed.

``X`` holds the embeddings, ``obs`` one row a tile, ``obsm['spatial']`` the centres of the tiles in level-0 pixels (what
scanpy and squidpy plot), ``uns['promptmil']`` what our file says of itself.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TypeVar

import h5py
import numpy as np

from feature_extraction.interop.hdf5 import image_of
from feature_extraction.interop.outgoing import Outgoing, PeerWriter

LOSSES = (
    "AnnData holds embeddings as 32-bit floats, and no checksums",
    "one space is written; the corners of the tiles are obs['x_lv0'] and obs['y_lv0'], obsm['spatial'] holds centres",
)
EMPTY_GROUPS = ("layers", "obsp", "varm", "varp")
Item = TypeVar("Item", h5py.Group, h5py.Dataset)
TEXT = h5py.string_dtype("utf-8")


def write(slide: Outgoing) -> dict[str, bytes]:
    """The file of one slide, by its path in the folder."""
    header = slide.header
    centres = slide.coords_lv0 + np.array(header.size_lv0()) / 2
    columns = {
        "x_lv0": slide.coords_lv0[:, 0],
        "y_lv0": slide.coords_lv0[:, 1],
        "tissue_fraction": slide.tissue_fraction,
    }
    told = {**asdict(header), "space": slide.space}

    def fill(file: h5py.File) -> None:
        _mark(file, "anndata", "0.1.0")
        _array(file, "X", slide.features.astype(np.float32))
        _frame(file, "obs", [f"{header.slide_id}:{row}" for row in range(len(slide.coords_lv0))], columns)
        _frame(file, "var", [f"{header.encoder}_{column}" for column in range(slide.features.shape[1])], {})
        for name in EMPTY_GROUPS:
            _mark(file.create_group(name), "dict", "0.1.0")
        _array(_mark(file.create_group("obsm"), "dict", "0.1.0"), "spatial", centres)
        own = _mark(_mark(file.create_group("uns"), "dict", "0.1.0").create_group("promptmil"), "dict", "0.1.0")
        for name, value in told.items():
            _scalar(own, name, value)

    return {f"{header.slide_id}.h5ad": image_of(fill)}


def _frame(parent: h5py.Group, name: str, index: list[str], columns: Mapping[str, np.ndarray]) -> None:
    group = _mark(parent.create_group(name), "dataframe", "0.2.0")
    group.attrs["_index"] = "_index"
    group.attrs["column-order"] = np.array(list(columns), dtype=TEXT)
    _mark(group.create_dataset("_index", data=np.array(index, dtype=object), dtype=TEXT), "string-array", "0.2.0")
    for column, values in columns.items():
        _array(group, column, values)


def _array(parent: h5py.Group, name: str, values: np.ndarray) -> None:
    _mark(parent.create_dataset(name, data=values), "array", "0.2.0")


def _scalar(parent: h5py.Group, name: str, value: object) -> None:
    if isinstance(value, str):
        _mark(parent.create_dataset(name, data=value, dtype=TEXT), "string", "0.2.0")
    else:
        _mark(parent.create_dataset(name, data=value), "numeric-scalar", "0.2.0")


def _mark(item: Item, kind: str, version: str) -> Item:
    """State what an element is, as every element of the format does."""
    item.attrs["encoding-type"] = kind
    item.attrs["encoding-version"] = version
    return item


WRITER = PeerWriter(name="anndata", losses=LOSSES, write=write)
