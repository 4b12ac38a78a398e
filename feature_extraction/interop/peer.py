"""CONTRACT between a layout of another tool and the import: a slide as that tool stored it."""

import pickle
import zipfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from feature_extraction.errors import SlideError

Unit = Literal["px", "um"]
"""Of coordinates: level-0 pixels, or micrometres from the slide's corner."""
UNKNOWN_LEVEL = -1
READ_ERRORS = (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
"""What h5py, numpy and torch raise on files that are not whole or not what their names say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFile:
    """A slide found in another tool's folder.

    Attributes:
        slide_id: From the file's name, as that tool names its files.
        path: The file with the embeddings.
        geometry: The file that says where the tiles lie, None when ``path`` does.
    """

    slide_id: str
    path: Path
    geometry: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerGeometry:
    """What another tool says of a slide and its tiles. What it does not say is None, never a guess.

    Attributes:
        unit: Of the corners, ``tile_size`` and ``step``.
        tile_px: Side of a tile in its own pixels.
        tile_size: Width and height of a tile in ``unit``.
        step: From one tile to the next.
        tile_mpp: µm per tile pixel that the tool was asked for; a slide's own value may be a little off.
        slide_mpp: µm per level-0 pixel.
        size_lv0: Width and height of the slide in level-0 pixels.
        read_level: Pyramid level of the tiles, `UNKNOWN_LEVEL` when not said.
    """

    unit: Unit
    tile_px: int
    tile_size: tuple[float, float]
    step: float | None = None
    tile_mpp: float | None = None
    slide_mpp: float | None = None
    size_lv0: tuple[int, int] | None = None
    read_level: int = UNKNOWN_LEVEL


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSlide:
    """One slide as another tool stored it.

    Attributes:
        coords: Top-left x, y of each tile in the geometry's unit, in the order of the rows.
        geometry: What a tile is.
        width: Values in a row.
        dtype: Of the rows as stored.
        read: Rows from ``start`` to before ``stop``.
        encoder: As the tool names it, empty when it does not.
        tissue_fraction: Of each tile, None when not said.
    """

    coords: Float64[np.ndarray, "tile 2"]
    geometry: PeerGeometry
    width: int
    dtype: np.dtype
    read: Callable[[int, int], Shaped[np.ndarray, "row width"]]
    encoder: str = ""
    tissue_fraction: Float32[np.ndarray, " tile"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReader:
    """How the folders of one tool are read.

    Attributes:
        name: The tool.
        holds_mpp: Whether its folders say the slides' µm per pixel.
        find: The slides in a folder; raises InputError when it is none of that tool's.
        open: One of them; raises SlideError when it cannot be read, or lacks what no one else can say.
    """

    name: str
    holds_mpp: bool
    find: Callable[[Path], list[PeerFile]]
    open: Callable[[PeerFile], PeerSlide]


def refusal(file: PeerFile, cause: str, remedy: str, *, code: str = "E-peer") -> SlideError:
    """Why a slide of another tool cannot be taken over."""
    return SlideError(slide_id=file.slide_id, stage="read", cause=cause, remedy=remedy, code=code)


@contextmanager
def reading(file: PeerFile, path: Path | None = None) -> Generator[None, None, None]:
    """While entered, whatever a damaged file makes its library raise becomes the slide's error.

    Args:
        file: The slide.
        path: The file that is read, the one with the embeddings when None.
    """
    name = (path or file.path).name
    try:
        yield
    except READ_ERRORS as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise refusal(
            file, f"{name} cannot be read: {said}", "copy it again from its source, or leave it out"
        ) from error


def files_of(paths: Sequence[Path], geometry: Callable[[Path], Path | None] = lambda _: None) -> list[PeerFile]:
    """A `PeerFile` for each path, in the order of their names; the stem is the slide's id."""
    return [PeerFile(slide_id=path.stem, path=path, geometry=geometry(path)) for path in sorted(paths)]
