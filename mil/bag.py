"""Bags: the tiles of one slide as the aggregator sees them, and the folder they come from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from feature_extraction.errors import DamagedFileError, InputError, MismatchError
from feature_extraction.store import FeatureFile
from feature_extraction.text_bank import TextBank
from mil.labels import Target
from mil.packed import Packing, pack
from mil.task import Targets

NO_TISSUE = "no tissue was found"
"""Why a valid slide without a tile is not used; unlike the other reasons no failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bag:
    """One slide's tiles.

    Attributes:
        slide_id: The slide.
        features: Embeddings as stored, usually a memory map in half precision; writable for torch, never written.
        coords_lv0: Top-left corner of each tile.
        size_lv0: Width and height of a tile.
    """

    slide_id: str
    features: np.ndarray
    coords_lv0: Int64[np.ndarray, "tile 2"]
    size_lv0: tuple[float, float]

    def __len__(self) -> int:
        return len(self.features)

    def tensor(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "tile dim"]:
        """The embeddings for computing."""
        return torch.from_numpy(self.features).to(dtype)  # ten times as fast as NumPy from half precision

    def unit_rows(self) -> Float64[np.ndarray, "tile dim"]:
        """The embeddings at unit length, double precision; stored joint vectors need not be normalised."""
        rows = np.asarray(self.features, np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class BagBatch:
    """Several bags, packed.

    Attributes:
        tiles: All their tiles, bag after bag.
        packing: Where each bag lies.
        labels: Target of each bag, as the task made them.
        rows: Index of each bag in the data it came from.
    """

    tiles: Float[Tensor, "tile dim"]
    packing: Packing
    labels: Targets
    rows: Int[Tensor, " bag"]

    def to(self, device: torch.device) -> "BagBatch":
        """The same batch on ``device``."""
        return BagBatch(
            tiles=self.tiles.to(device),
            packing=self.packing.to(device),
            labels=self.labels.to(device),
            rows=self.rows.to(device),
        )


def collate(bags: Sequence[tuple[Float[Tensor, "_ dim"], Target, int]]) -> BagBatch:
    """Pack (tiles, target, row) of several bags."""
    tiles, labels, rows = zip(*bags, strict=True)
    return BagBatch(
        tiles=torch.cat(tiles),
        packing=pack([len(bag) for bag in tiles]),
        labels=torch.tensor(labels),
        rows=torch.tensor(rows),
    )


class FeatureFolder:
    """The feature files of one configuration.

    Args:
        path: A folder of feature files, or an ``out`` of `promptmil extract` with exactly one such folder in it.

    Raises:
        InputError: No feature file there, or several folders of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = _find_folder(path)
        first = _first_whole(self.path)
        self.header = first.header
        self.spaces = first.spaces

    def slide_ids(self) -> list[str]:
        """Slides with a feature file, sorted."""
        return sorted(path.stem for path in self.path.glob("*.h5"))

    def open(self, slide_id: str) -> FeatureFile:
        """One slide's file.

        Raises:
            DamagedFileError: It is missing, damaged, or of another configuration than the rest of the folder.
        """
        path = self.path / f"{slide_id}.h5"
        if path.parent != self.path or not path.is_file():
            raise DamagedFileError(f"slide={slide_id}: no feature file in {self.path.name}; extract this slide")
        file = FeatureFile(path)
        got, expected = file.header.extraction_fingerprint, self.header.extraction_fingerprint
        if got != expected:
            raise DamagedFileError(
                f"slide={slide_id}: its file was made by another configuration ({got[:8]}) than the rest of the folder "
                f"({expected[:8]}); extract it again"
            )
        return file


def require_space(space: str, folder: FeatureFolder) -> None:
    """Refuse features that are not in the space asked for.

    Raises:
        MismatchError: They are in others only.
    """
    if space not in folder.spaces:
        also = ", or convert with project=true" if space == "joint" else ""
        name, weights = folder.header.encoder, folder.header.encoder_fingerprint[:8]
        raise MismatchError(
            f"features={folder.path}: asked for the {space} space of {name} ({weights}), these are in its "
            f"{', '.join(folder.spaces)} space ({weights}); extract with space={space}{also}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BagSet:
    """Bags that could be loaded, and why others could not.

    Attributes:
        bags: By slide id.
        content: SHA-256 of each bag's rows, by slide id.
        unused: Slide id to reason: no file, damaged, or no tissue.
    """

    bags: dict[str, Bag]
    content: dict[str, str]
    unused: dict[str, str]


def load_bags(
    folder: FeatureFolder, slide_ids: Sequence[str], *, space: str, nontask_of: TextBank | None = None
) -> BagSet:
    """Open bags; one that cannot be used is listed with the reason and the others are returned.

    Args:
        folder: Where the files are.
        slide_ids: Which slides.
        space: Which embeddings.
        nontask_of: Leave out tiles whose best prompt in this bank is a non-task thing; None to keep every tile.
    """
    bags: dict[str, Bag] = {}
    content: dict[str, str] = {}
    unused: dict[str, str] = {}
    for slide_id in slide_ids:
        try:
            file = folder.open(slide_id)
            features = file.features_of(space)
        except DamagedFileError as error:
            unused[slide_id] = str(error)
            continue
        if len(features) == 0:
            unused[slide_id] = NO_TISSUE
            continue
        bag = Bag(slide_id=slide_id, features=features, coords_lv0=file.coords_lv0, size_lv0=file.header.size_lv0())
        bags[slide_id] = bag if nontask_of is None else _task_tiles(bag, nontask_of)
        content[slide_id] = file.content_sha256
    return BagSet(bags=bags, content=content, unused=unused)


def _task_tiles(bag: Bag, bank: TextBank) -> Bag:
    """Without the tiles that look most like a non-task thing; all of them if none would be left."""
    if not bank.nontask():
        return bag
    rows = bag.unit_rows()
    task = rows @ np.stack([bank.class_vector(name) for name in bank.class_names()]).T
    nontask = rows @ np.stack([bank.nontask_vector(name) for name in bank.nontask()]).T
    is_task = task.max(axis=1) >= nontask.max(axis=1)
    if not is_task.any():
        return bag
    return replace(bag, features=np.asarray(bag.features)[is_task], coords_lv0=bag.coords_lv0[is_task])


def _first_whole(folder: Path) -> FeatureFile:
    """The first file that can be read; damaged ones cost themselves only."""
    paths = sorted(folder.glob("*.h5"))
    for path in paths:
        try:
            return FeatureFile(path)
        except DamagedFileError:
            continue
    raise InputError(f"features={folder}: none of its {len(paths)} files is a whole feature file of promptmil")


def _find_folder(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"features={path}: no such folder; give the out=… of `promptmil extract`")
    if any(path.glob("*.h5")):
        return path
    inside = sorted({file.parent for file in path.glob("*/*.h5")})
    if len(inside) != 1:
        names = ", ".join(folder.name for folder in inside) or "none"
        raise InputError(f"features={path}: expected one folder of feature files in it, got {names}; name one of them")
    return inside[0]
