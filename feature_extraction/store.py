"""The feature file: one slide's embeddings in HDF5, sealed, checked and memory-mapped.

The layout uses the names that other tools' readers look for (``features``, ``coords`` and their attributes) and adds
what they ignore. Features lie contiguous, so that a bag is a memory map and not a decompression.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt64

from feature_extraction.errors import DamagedFileError
from feature_extraction.files import as_record, publish
from feature_extraction.header import FeatureHeader
from feature_extraction.reading import REASONS, ChosenTiles
from feature_extraction.seal import check_seal, sealed
from feature_extraction.stored_rows import StoredRows, rows_a_block

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRows:
    """The rows of one slide, ordered by y and then x.

    Attributes:
        spaces: Embeddings by space; the first is the primary one.
        coords_lv0: Top-left corner of each tile.
        tissue_fraction: Share of each tile that is tissue.
        failed_coords_lv0: Tiles that could not be read and were allowed to be left out.
        chosen: Why each was read, None where all tissue was; the header says by what.
    """

    spaces: Mapping[str, Shaped[np.ndarray, "tile dim"]]
    coords_lv0: Int64[np.ndarray, "tile 2"]
    tissue_fraction: Float32[np.ndarray, " tile"]
    failed_coords_lv0: Int64[np.ndarray, "bad 2"]
    chosen: ChosenTiles | None = None


def write_features(path: Path, header: FeatureHeader, rows: FeatureRows) -> None:
    """Build the HDF5 image in memory, then publish it.

    h5py on a full disk first raises and then crashes the process; our own write of finished bytes fails cleanly.

    Raises:
        OSError: The disk is full or the folder cannot be written; nothing is left under the name.
    """
    with h5py.File("image", "w", driver="core", backing_store=False) as file:
        written = _fill(file, header, rows)
        file.flush()
        regions = [(offset, dataset.nbytes) for dataset in written if (offset := dataset.id.get_offset()) is not None]
        image = file.id.get_file_image()
    publish(path, sealed(image, regions))


def _fill(file: h5py.File, header: FeatureHeader, rows: FeatureRows) -> list[h5py.Dataset]:
    """Write everything; returns the datasets of rows, which the seal leaves to their checksums."""
    primary, features = next(iter(rows.spaces.items()))
    if primary != header.space:
        raise ValueError(f"the first space is {primary}, the header says {header.space}")
    written: list[h5py.Dataset] = []
    for space, values in rows.spaces.items():
        suffix = "" if space == primary else f"_{space}"
        dataset = file.create_dataset(f"features{suffix}", data=values)
        dataset.attrs.update({"name": f"features{suffix}", "savetodir": "", "encoder": header.encoder})
        is_unit = header.normalized if space == primary else space == "joint"
        dataset.attrs.update({"space": space, "normalized": is_unit})
        file.create_dataset(f"checksums{suffix}", data=checksums(values, rows.coords_lv0))
        written.append(dataset)
    coords = file.create_dataset("coords", data=rows.coords_lv0)
    coords.attrs.update(reader_attributes(header))
    file.create_dataset("tissue_fraction", data=rows.tissue_fraction)
    if len(rows.failed_coords_lv0):
        file.create_dataset("failed_coords", data=rows.failed_coords_lv0)
    if rows.chosen is not None:
        file.create_dataset("reading_parents", data=rows.chosen.parents_lv0)
        file.create_dataset("reading_reasons", data=rows.chosen.reasons).attrs["names"] = list(REASONS)
    for name, value in asdict(header).items():
        file.attrs[name] = value
    file.attrs["schema_version"] = SCHEMA_VERSION
    file.attrs["n_failed"] = len(rows.failed_coords_lv0)
    file.attrs["content_sha256"] = content_sha256(features, rows.coords_lv0)
    file.attrs["complete"] = True
    return written


def reader_attributes(header: FeatureHeader) -> dict[str, object]:
    """The nine attributes that TRIDENT's reader of coordinates expects; the truth is in the mpp attributes."""
    width, _ = header.size_lv0()
    step, _ = header.tile_step_lv0()
    return {
        "patch_size": header.tile_size_px,
        "patch_size_level0": round(width),
        "level0_magnification": round(10 / header.slide_mpp_x),
        "target_magnification": round(10 / header.tile_mpp),
        "overlap": round((width - step) * header.tile_size_px / width),
        "name": header.slide_id,
        "savetodir": "",
        "level0_width": header.level0_width,
        "level0_height": header.level0_height,
    }


class FeatureFile:
    """A feature file opened for reading: header at once, rows as a memory map, each block checked on first touch.

    Args:
        path: A ``.h5`` file written by `write_features`.

    Raises:
        DamagedFileError: Not HDF5, not sealed, or an attribute is missing.
        OSError: The file cannot be opened at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _open(path) as file:
            self.header = _read_header(file, path)
            self.content_sha256 = str(file.attrs["content_sha256"])
            features = _dataset(file, "features", path)
            names = [str(name) for name in file]
            others = [name.removeprefix("features_") for name in names if name.startswith("features_")]
            self.spaces = (self.header.space, *others)
            self.shape: tuple[int, int] = (features.shape[0], features.shape[1])
            self.dtype: np.dtype = features.dtype
            self._offset: int | None = features.id.get_offset()
            self.coords_lv0: Int64[np.ndarray, "tile 2"] = _dataset(file, "coords", path)[:]
            self.tissue_fraction: Float32[np.ndarray, " tile"] = _dataset(file, "tissue_fraction", path)[:]
            self.failed_coords_lv0: Int64[np.ndarray, "bad 2"] = (
                _dataset(file, "failed_coords", path)[:] if "failed_coords" in file else np.empty((0, 2), np.int64)
            )
            self.chosen: ChosenTiles | None = _read_chosen(file, self.header, path)
            self._checksums: UInt64[np.ndarray, " block"] = _dataset(file, "checksums", path)[:]
        self._checked = False

    def features(self) -> Shaped[np.ndarray, "tile dim"]:
        """The primary embeddings as a memory map; what is written to it would stay in this process, not reach the file.

        Raises:
            DamagedFileError: A block differs from its checksum (checked the first time this object is asked).
        """
        if self._offset is None:
            return np.empty(self.shape, self.dtype)
        rows = np.memmap(self.path, dtype=self.dtype, mode="c", offset=self._offset, shape=self.shape)
        if not self._checked:
            self._compare(rows, self._checksums)
            self._checked = True
        return rows

    def features_of(self, space: str) -> Shaped[np.ndarray, "tile dim"]:
        """The embeddings of ``space``, primary or second, in memory.

        Raises:
            DamagedFileError: The file does not hold that space.
        """
        if space == self.header.space:
            return self.features()
        with _open(self.path) as file:
            rows = _dataset(file, f"features_{space}", self.path)[:]
            self._compare(rows, _dataset(file, f"checksums_{space}", self.path)[:])
        return rows

    def stored(self, space: str) -> tuple[StoredRows, UInt64[np.ndarray, " block"]]:
        """Where the embeddings of ``space`` lie, and the checksum of each block, none of them checked yet.

        Raises:
            DamagedFileError: The file does not hold that space.
        """
        suffix = "" if space == self.header.space else f"_{space}"
        with _open(self.path) as file:
            rows, coords = (_dataset(file, name, self.path) for name in (f"features{suffix}", "coords"))
            expected: UInt64[np.ndarray, " block"] = _dataset(file, f"checksums{suffix}", self.path)[:-1]
            offsets = [place if (place := found.id.get_offset()) is not None else -1 for found in (rows, coords)]
            place = StoredRows(
                path=self.path,
                offset=offsets[0],
                coords_offset=offsets[1],
                n_tiles=rows.shape[0],
                width=rows.shape[1],
                dtype=str(rows.dtype),
                is_unit=self.header.normalized if not suffix else space == "joint",
            )
        return place, expected

    def _compare(self, rows: Shaped[np.ndarray, "tile dim"], expected: UInt64[np.ndarray, " block"]) -> None:
        if not np.array_equal(checksums(rows, self.coords_lv0), expected):
            raise DamagedFileError(
                f"{self.path.name}: its bytes differ from its checksums; delete the file and extract the slide again"
            )


def check_features(path: Path, *, extraction_fingerprint: str, slide_fingerprint: str | None = None) -> FeatureFile:
    """Open a feature file and check that it is whole and made by exactly this configuration from this slide.

    Args:
        path: The file.
        extraction_fingerprint: The expected configuration.
        slide_fingerprint: The expected slide, None when the slide is not at hand.

    Raises:
        DamagedFileError: It is not; the message says what was expected.
        OSError: There is no such file.
    """
    file = FeatureFile(path)
    if file.header.extraction_fingerprint != extraction_fingerprint:
        raise DamagedFileError(f"{path.name}: made by another configuration ({file.header.extraction_fingerprint[:8]})")
    if slide_fingerprint is not None and file.header.slide_fingerprint != slide_fingerprint:
        raise DamagedFileError(f"{path.name}: made from another version of the slide file")
    rows = file.features()
    if rows.size and not np.isfinite(rows).all():
        raise DamagedFileError(f"{path.name}: holds values that are not finite; extract the slide again")
    return file


def checksums(
    features: Shaped[np.ndarray, "tile dim"], coords_lv0: Int64[np.ndarray, "tile 2"]
) -> UInt64[np.ndarray, " block"]:
    """One 64-bit checksum for each block of whole rows of about 1 MiB, and a last one for the coordinates."""
    size = rows_a_block(features.shape[1] * features.dtype.itemsize)
    blocks = [features[start : start + size] for start in range(0, len(features), size)]
    return np.array([block_checksum(block) for block in [*blocks, coords_lv0]], dtype=np.uint64)


def content_sha256(features: Shaped[np.ndarray, "tile dim"], coords_lv0: Int64[np.ndarray, "tile 2"]) -> str:
    """Hex SHA-256 over features and coordinates: the name of a bag's content."""
    digest = hashlib.sha256(np.ascontiguousarray(features).data)
    digest.update(np.ascontiguousarray(coords_lv0).data)
    return digest.hexdigest()


def block_checksum(values: Shaped[np.ndarray, "..."]) -> int:
    """The 64-bit checksum of one block of rows."""
    data = np.ascontiguousarray(values).data
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _open(path: Path) -> h5py.File:
    """Check the seal, then open for reading without HDF5's own lock, which network file systems refuse."""
    if not _is_hdf5(path):
        raise DamagedFileError(f"{path.name}: not an HDF5 file; delete it and extract the slide again")
    try:
        check_seal(path)
    except DamagedFileError as error:
        raise DamagedFileError(
            f"{error}; not a sealed feature file of promptmil: features of other tools need `promptmil convert`"
        ) from error
    try:
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedFileError(f"{path.name}: not a whole HDF5 file ({error}); delete it and extract again") from error


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(8) == b"\x89HDF\r\n\x1a\n"


def _read_header(file: h5py.File, path: Path) -> FeatureHeader:
    attributes = {name: _plain(value) for name, value in file.attrs.items()}
    needed = [field.name for field in fields(FeatureHeader) if field.default is MISSING]
    missing = [name for name in [*needed, "content_sha256"] if name not in attributes]
    if missing or not attributes.get("complete"):
        raise DamagedFileError(
            f"{path.name}: not a sealed feature file of promptmil (lacks {', '.join(missing) or 'its seal'}); "
            "features of other tools need `promptmil convert`"
        )
    names = [field.name for field in fields(FeatureHeader)]
    return as_record(FeatureHeader, {name: attributes[name] for name in names if name in attributes}, path.name)


def _read_chosen(file: h5py.File, header: FeatureHeader, path: Path) -> ChosenTiles | None:
    if not header.reading:
        return None
    parents, reasons = (_dataset(file, f"reading_{name}", path)[:] for name in ("parents", "reasons"))
    return ChosenTiles(parents_lv0=parents, reasons=reasons, described=header.reading)


def _dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise DamagedFileError(f"{path.name}: holds no {name}, it has {', '.join(file)}; extract the slide again")
    return found


def _plain(value: object) -> object:
    """HDF5's scalars as Python's."""
    return value.item() if isinstance(value, np.generic) else value
