"""slide2vec 7: ``tile_embeddings/<slide>.pt`` or ``.npz`` with ``.meta.json``, ``tiles/<slide>.coordinates.npz``."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float32, Float64, Shaped

from feature_extraction.errors import DamagedFileError, InputError
from feature_extraction.files import read_json
from feature_extraction.interop.hdf5 import number, pair
from feature_extraction.interop.peer import PeerFile, PeerGeometry, PeerReader, PeerSlide, reading, refusal

META, COORDINATES = ".meta.json", ".coordinates"
Rows = Callable[[int, int], Shaped[np.ndarray, "row width"]]


def find(source: Path) -> list[PeerFile]:
    """The slides with tile embeddings.

    Raises:
        InputError: None there, or only those of annotated classes.
    """
    folder = source if source.name == "tile_embeddings" else source / "tile_embeddings"
    found = sorted(folder.glob(f"*{META}"))
    if not found:
        classes = sorted({path.parent.name for path in folder.glob(f"*/*{META}")})
        held = f"only those of the classes {', '.join(classes)}, which have no place here" if classes else "none"
        raise InputError(f"source={source}: expected tile_embeddings/<slide>{META} of slide2vec 7, found {held}")
    tiles = folder.parent / "tiles"
    ids = [path.name.removesuffix(META) for path in found]
    return [
        PeerFile(slide_id=slide_id, path=_embeddings(path, slide_id), geometry=tiles / f"{slide_id}{COORDINATES}{META}")
        for slide_id, path in zip(ids, found, strict=True)
    ]


def read(file: PeerFile) -> PeerSlide:
    """One slide.

    Raises:
        SlideError: A file is missing, damaged, or does not fit the others.
    """
    described = _json(file, file.path.with_name(f"{file.slide_id}{META}"))
    told = _json(file, cast("Path", file.geometry))
    slide, tiling = (_section(told, name) for name in ("slide", "tiling"))
    n_tiles = round(number(described, "num_tiles") or 0)
    coords, fraction = _coordinates(file, n_tiles)
    rows, shape, dtype = _rows(file) if n_tiles else (_nothing, (0, 0), np.dtype(np.float32))
    if shape[0] != len(coords):
        raise refusal(file, f"{shape[0]} embeddings, {len(coords)} tiles", "run slide2vec again for this slide")
    return PeerSlide(
        coords=coords,
        geometry=_geometry(file, slide, tiling),
        width=shape[1],
        dtype=dtype,
        read=rows,
        encoder=str(described.get("encoder_name") or ""),
        tissue_fraction=fraction,
    )


def _geometry(file: PeerFile, slide: dict[str, object], tiling: dict[str, object]) -> PeerGeometry:
    side, side_lv0 = number(tiling, "requested_tile_size_px"), number(tiling, "tile_size_lv0")
    if not side or not side_lv0:
        raise refusal(
            file,
            "its tiling states no requested_tile_size_px and tile_size_lv0",
            "this is not the layout of slide2vec 7",
        )
    dimensions = pair(slide, "dimensions")
    return PeerGeometry(
        unit="px",
        tile_px=round(side),
        tile_size=(side_lv0, side_lv0),
        step=number(tiling, "step_px_lv0") or None,
        tile_mpp=number(tiling, "requested_spacing_um"),
        slide_mpp=number(slide, "base_spacing_um") or None,
        size_lv0=None if dimensions is None else (round(dimensions[0]), round(dimensions[1])),
        read_level=round(number(tiling, "read_level") or 0),
    )


def _coordinates(file: PeerFile, n_tiles: int) -> tuple[Float64[np.ndarray, "tile 2"], Float32[np.ndarray, " tile"]]:
    """Corners and tissue of the tiles in the order of the embeddings; a slide without tiles has no such file."""
    if not n_tiles:
        return np.empty((0, 2)), np.empty(0, np.float32)
    path = cast("Path", file.geometry).with_name(f"{file.slide_id}{COORDINATES}.npz")
    with reading(file, path), np.load(path, allow_pickle=False) as content:
        index, x, y = (np.asarray(content[name]) for name in ("tile_index", "x", "y"))
        fraction = np.asarray(content["tissue_fractions"], np.float32)
    if not np.array_equal(index, np.arange(len(x))) or not len(x) == len(y) == len(fraction):
        raise refusal(file, f"{path.name}: tile_index does not count its tiles", "run slide2vec again for this slide")
    return np.stack([x, y], axis=1).astype(np.float64), fraction


def _rows(file: PeerFile) -> tuple[Rows, tuple[int, int], np.dtype]:
    """The embeddings; a ``.pt`` stays on the disk until rows are asked for."""
    with reading(file):
        if file.path.suffix == ".npz":
            with np.load(file.path, allow_pickle=False) as content:
                values = np.asarray(content["features"])
        else:
            tensor = torch.load(file.path, map_location="cpu", weights_only=True, mmap=True)
            if not isinstance(tensor, torch.Tensor):
                raise refusal(
                    file, f"{file.path.name} holds {type(tensor).__name__}, expected a tensor", "see slide2vec 7"
                )
            values = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if values.ndim != 2:
        cause = f"{file.path.name} has shape {values.shape}, expected one row a tile"
        raise refusal(file, cause, "only tile embeddings can be converted")
    return (lambda start, stop: np.asarray(values[start:stop])), (values.shape[0], values.shape[1]), values.dtype


def _nothing(_start: int, _stop: int) -> Shaped[np.ndarray, "row width"]:
    return np.empty((0, 0), np.float32)


def _embeddings(meta: Path, slide_id: str) -> Path:
    compressed = meta.with_name(f"{slide_id}.npz")
    return compressed if compressed.is_file() else meta.with_name(f"{slide_id}.pt")


def _json(file: PeerFile, path: Path) -> dict[str, object]:
    with reading(file, path):
        try:
            return read_json(path)
        except DamagedFileError as error:
            raise refusal(file, f"{path.name} is not whole", "run slide2vec again for this slide") from error


def _section(content: dict[str, object], name: str) -> dict[str, object]:
    found = content.get(name)
    return dict(found) if isinstance(found, dict) else {}


READER = PeerReader(name="slide2vec", holds_mpp=True, find=find, open=read)
