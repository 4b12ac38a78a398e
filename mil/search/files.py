"""The feature files that a search reads, and the record of those that were read wholly before.

The first search of a folder holds every block against its checksum and then notes each file's size, time of change and
where its rows lie. A later search reads the rows of what is as it was noted, without HDF5 and without the checksums.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt64

from feature_extraction.errors import DamagedFileError
from feature_extraction.files import as_record, publish_json, read_json
from feature_extraction.store import block_checksum
from feature_extraction.stored_rows import StoredRows
from mil.feature_folder import FeatureFolder

FOLDER = ".search"
"""In the feature folder; one record a space."""
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What is noted of a file that was read wholly.

    Attributes:
        n_bytes: Of the file.
        mtime_ns: When it was last changed, in nanoseconds since 1970.
        offset: First byte of the rows.
        coords_offset: First byte of the coordinates.
        n_tiles: Rows.
        width: Of the space.
        dtype: Of the rows.
        is_unit: Whether they have unit length.
        size_lv0: Width and height of a tile.
        step_lv0: From one tile to the next.
    """

    n_bytes: int
    mtime_ns: int
    offset: int
    coords_offset: int
    n_tiles: int
    width: int
    dtype: str
    is_unit: bool
    size_lv0: tuple[float, float]
    step_lv0: tuple[float, float]

    @property
    def is_overlapping(self) -> bool:
        """Whether neighbouring tiles share pixels."""
        return any(step < size for step, size in zip(self.step_lv0, self.size_lv0, strict=True))

    def rows(self, path: Path) -> StoredRows:
        """Where the rows lie."""
        return StoredRows(
            path=path,
            offset=self.offset,
            coords_offset=self.coords_offset,
            n_tiles=self.n_tiles,
            width=self.width,
            dtype=self.dtype,
            is_unit=self.is_unit,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchedFile:
    """One slide's file, ready to be scored.

    Attributes:
        slide_id: The slide.
        noted: Where and how its rows lie.
        rows: The same, with the path.
        expected: Checksum of each block that is yet to be compared, None when all were before.
    """

    slide_id: str
    noted: Noted
    rows: StoredRows
    expected: UInt64[np.ndarray, " block"] | None


def open_searched(
    folder: FeatureFolder, slide_id: str, space: str, noted: Mapping[str, Noted], *, is_trusted: bool = True
) -> SearchedFile:
    """One slide's file.

    Args:
        folder: Where it is.
        slide_id: The slide.
        space: Which embeddings.
        noted: What earlier searches noted.
        is_trusted: Whether what was noted of an unchanged file spares its checksums.

    Raises:
        DamagedFileError: It is missing, damaged, of another configuration, or lacks the space.
    """
    path = folder.path / f"{slide_id}.h5"
    try:
        found = path.stat()
    except OSError as error:
        raise DamagedFileError(
            f"slide={slide_id}: no feature file in {folder.path.name}; extract this slide"
        ) from error
    known = noted.get(slide_id)
    if is_trusted and known is not None and (known.n_bytes, known.mtime_ns) == (found.st_size, found.st_mtime_ns):
        return SearchedFile(slide_id=slide_id, noted=known, rows=known.rows(path), expected=None)
    file = folder.open(slide_id)
    if space not in file.spaces:
        raise DamagedFileError(f"slide={slide_id}: its file lacks the {space} space; extract the slide again")
    rows, expected = file.stored(space)
    known = Noted(
        n_bytes=found.st_size,
        mtime_ns=found.st_mtime_ns,
        offset=rows.offset,
        coords_offset=rows.coords_offset,
        n_tiles=rows.n_tiles,
        width=rows.width,
        dtype=rows.dtype,
        is_unit=rows.is_unit,
        size_lv0=file.header.size_lv0(),
        step_lv0=file.header.tile_step_lv0(),
    )
    return SearchedFile(slide_id=slide_id, noted=known, rows=rows, expected=expected)


def require_block(file: SearchedFile, number: int, block: np.ndarray) -> None:
    """Hold a block against its checksum where that is yet to be done.

    Raises:
        DamagedFileError: It differs.
    """
    if file.expected is not None and block_checksum(block) != file.expected[number]:
        raise DamagedFileError(
            f"{file.slide_id}.h5: its bytes differ from its checksums; delete the file and extract the slide again"
        )


def require_rows(file: SearchedFile, rows: Iterable[int] | Int[np.ndarray, " row"]) -> None:
    """Hold the blocks in which some rows lie against their checksums.

    Raises:
        DamagedFileError: One differs, or the file is shorter than it was.
    """
    size = file.rows.rows_a_block
    for number in sorted({int(row) // size for row in rows}):
        last = min((number + 1) * size, file.rows.n_tiles)
        require_block(file, number, file.rows.rows(number * size, last))


def read_noted(folder: FeatureFolder, space: str) -> dict[str, Noted]:
    """What earlier searches noted, by slide id; nothing when the record is missing, damaged or of other features."""
    try:
        content = read_json(_record(folder, space))
        slides = content["slides"]
        if content["version"] != VERSION or content["extraction_fingerprint"] != folder.header.extraction_fingerprint:
            return {}
        return {str(name): _noted(line) for name, line in slides.items()} if isinstance(slides, dict) else {}
    except (DamagedFileError, OSError, KeyError, TypeError, ValueError):
        return {}


def write_noted(folder: FeatureFolder, space: str, noted: Mapping[str, Noted]) -> None:
    """Write the record; where the folder may not be written to, the next search checks everything again."""
    with suppress(OSError):
        if not (folder.path / FOLDER).is_symlink():  # no output follows a link out of its folder
            publish_json(
                _record(folder, space),
                {
                    "version": VERSION,
                    "extraction_fingerprint": folder.header.extraction_fingerprint,
                    "slides": {name: asdict(line) for name, line in sorted(noted.items())},
                },
            )


def _record(folder: FeatureFolder, space: str) -> Path:
    return folder.path / FOLDER / f"{space}.json"


def _noted(line: object) -> Noted:
    if not isinstance(line, dict):
        raise TypeError("expected an object a slide")
    pairs = {name: tuple(float(value) for value in line[name]) for name in ("size_lv0", "step_lv0")}
    return as_record(Noted, {**line, **pairs}, FOLDER)
