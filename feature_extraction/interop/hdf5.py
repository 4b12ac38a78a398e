"""HDF5 files of other tools: read in parts, refused by name, written as one finished image."""

from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float64, Shaped

from feature_extraction.interop.peer import PeerFile, refusal

FOREIGN = {
    frozenset({"feats", "coords"}): "STAMP's layout: from=stamp",
    frozenset({"features", "coords"}): "the layout of TRIDENT or CLAM: from=trident or from=clam",
}


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading, without HDF5's own lock, which network file systems refuse."""
    return h5py.File(path, "r", locking=False)


def require_datasets(file: h5py.File, peer: PeerFile, tool: str, names: tuple[str, str]) -> None:
    """Refuse a file that does not hold the tool's datasets.

    Raises:
        SlideError: It does not; the message says what it holds, and whose layout that is.
    """
    held = [str(name) for name in file]
    if set(names) <= set(held):
        return
    whose = next((hint for keys, hint in FOREIGN.items() if keys <= set(held)), "")
    raise refusal(
        peer,
        f"{peer.path.name} holds {', '.join(held) or 'nothing'}; {tool}'s files hold {' and '.join(names)}",
        f"this looks like {whose}" if whose else "convert reads CLAM, TRIDENT, STAMP and slide2vec folders only",
    )


def attributes(file: h5py.File, name: str = "/") -> dict[str, object]:
    """Attributes of the file or of something in it, as Python's own values; TRIDENT's text ``None`` is None."""
    found = {str(key): _plain(value) for key, value in file[name].attrs.items()}
    return {name: None if value == "None" else value for name, value in found.items()}


def coordinates(file: h5py.File, peer: PeerFile, name: str = "coords") -> Float64[np.ndarray, "tile 2"]:
    """The corners of the tiles.

    Raises:
        SlideError: They are not pairs.
    """
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 2 or dataset.shape[1] != 2:
        shape = getattr(dataset, "shape", "a group")
        raise refusal(peer, f"{name} must be pairs x, y, it is {shape}", "convert reads tile features only")
    return np.asarray(dataset[:], np.float64)


def rows_of(path: Path, name: str) -> Callable[[int, int], Shaped[np.ndarray, "row width"]]:
    """A function that reads some rows of a dataset, opening the file for each part."""

    def read(start: int, stop: int) -> Shaped[np.ndarray, "row width"]:
        with open_hdf5(path) as file:
            dataset = file[name]
            if not isinstance(dataset, h5py.Dataset):
                raise TypeError(f"{name} is no dataset")
            return np.asarray(dataset[start:stop])

    return read


def shape_of(file: h5py.File, peer: PeerFile, name: str, n_tiles: int) -> tuple[int, np.dtype]:
    """Width and type of the embeddings.

    Raises:
        SlideError: They are not one row a tile.
    """
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 2 or dataset.shape[0] != n_tiles:
        shape = getattr(dataset, "shape", "a group")
        raise refusal(peer, f"{name} is {shape}, expected {n_tiles} rows", "convert reads tile features only")
    return int(dataset.shape[1]), dataset.dtype


def number(values: Mapping[str, object], name: str) -> float | None:
    """An attribute as a number, None when it is absent or no number."""
    value = values.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def pair(values: Mapping[str, object], name: str) -> tuple[float, float] | None:
    """An attribute as two numbers, None when it is none."""
    found = values.get(name)
    if not isinstance(found, list) or len(found) != 2:
        return None
    x, y = (number({"": value}, "") for value in found)
    return None if x is None or y is None else (x, y)


def image_of(fill: Callable[[h5py.File], None]) -> bytes:
    """The bytes of an HDF5 file, built in memory: our own write of finished bytes fails cleanly on a full disk."""
    with h5py.File("image", "w", driver="core", backing_store=False) as file:
        fill(file)
        file.flush()
        return file.id.get_file_image()


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
