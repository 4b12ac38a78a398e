"""STAMP: ``<extractor>-<hash8>/<slide>.h5`` with half-precision features and corners in micrometres."""

import re
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from feature_extraction.errors import InputError
from feature_extraction.interop.hdf5 import (
    attributes,
    coordinates,
    image_of,
    number,
    open_hdf5,
    require_datasets,
    rows_of,
    shape_of,
)
from feature_extraction.interop.outgoing import Outgoing, PeerWriter
from feature_extraction.interop.peer import PeerFile, PeerGeometry, PeerReader, PeerSlide, files_of, reading, refusal

KNOWN = (2, 5)
"""The newest version whose files were compared with its code."""
WRITTEN = "2.1.0"
"""The first version of this layout: a reader refuses files of versions above its own."""
AGAIN = "extract the features again with STAMP 2.1 or later"
LOSSES = (
    "STAMP keeps features in half precision; features in single precision are rounded",
    "STAMP keeps corners in micrometres, as 32-bit floats, and a tile as a square in micrometres",
    "STAMP keeps no µm per pixel of the slide, fingerprint, licence, space, normalisation, tissue share or checksums",
)


def find(source: Path) -> list[PeerFile]:
    """The features of one extractor, in folders below too, as STAMP keeps the slides' own folders.

    Raises:
        InputError: None, or several extractors.
    """
    named = [folder for folder in source.glob("*") if re.search("-[0-9a-f]{8}$", folder.name) and folder.is_dir()]
    if len(named) > 1 and not any(source.glob("*.h5")):
        names = ", ".join(sorted(folder.name for folder in named))
        raise InputError(f"source={source}: holds features of several extractors: {names}; name one of them")
    paths = list(source.rglob("*.h5"))
    if not paths:
        raise InputError(f"source={source}: no feature file of STAMP in it; expected <extractor>-<hash8>/<slide>.h5")
    return files_of(paths)


def read(file: PeerFile) -> PeerSlide:
    """One slide.

    Raises:
        SlideError: The file is damaged, newer than known, not of tiles, or does not say what a tile is.
    """
    with reading(file), open_hdf5(file.path) as opened:
        require_datasets(opened, file, "STAMP", ("feats", "coords"))
        stated = attributes(opened)
        _require_known(file, stated)
        coords = coordinates(opened, file)
        width, dtype = shape_of(opened, file, "feats", len(coords))
    return PeerSlide(
        coords=coords,
        geometry=_geometry(file, stated),
        width=width,
        dtype=dtype,
        read=rows_of(file.path, "feats"),
        encoder=str(stated.get("extractor") or ""),
    )


def _require_known(file: PeerFile, stated: Mapping[str, object]) -> None:
    version, kind = str(stated.get("stamp_version", "")), stated.get("feat_type", "tile")
    found = re.match(r"(\d+)\.(\d+)", version)
    if version and (found is None or (int(found[1]), int(found[2])) > KNOWN):
        known = ".".join(str(part) for part in KNOWN)
        raise refusal(
            file,
            f"it was written by STAMP {version}, newer than the {known} that is known here",
            "its layout may have changed: update promptmil, or extract with an older STAMP",
            code="E-version",
        )
    if kind != "tile":
        raise refusal(
            file, f"it holds {kind} features, expected tile features", "give the folder of the tiles' features"
        )


def _geometry(file: PeerFile, stated: Mapping[str, object]) -> PeerGeometry:
    """By STAMP's own rule: ``tile_size_um``, or ``tile_size`` with the unit um (2.0)."""
    is_um = stated.get("unit", "um") == "um"
    side_um = number(stated, "tile_size_um") or (number(stated, "tile_size") if "unit" in stated else None)
    if not side_um or not is_um:
        raise refusal(
            file,
            "it does not say that its coordinates are micrometres (needs tile_size_um and unit): "
            f"a file of STAMP 1, or of another tool; its attributes are {', '.join(sorted(stated)) or 'none'}",
            AGAIN,
            code="E-geometry",
        )
    side_px = number(stated, "tile_size_px")
    if not side_px:
        raise refusal(file, "it does not say how many pixels a tile has (tile_size_px)", AGAIN, code="E-geometry")
    return PeerGeometry(
        unit="um", tile_px=round(side_px), tile_size=(side_um, side_um), step=side_um, tile_mpp=side_um / side_px
    )


def write(slide: Outgoing) -> dict[str, bytes]:
    """The file of one slide, by its path in the folder."""
    header = slide.header
    mpp = np.array([header.slide_mpp_x, header.slide_mpp_y])
    digest = header.extraction_fingerprint[:8]
    features = slide.features.astype(np.float16)

    def fill(file: h5py.File) -> None:
        file.create_dataset("feats", data=features)
        file.create_dataset("coords", data=(slide.coords_lv0 * mpp).astype(np.float32))
        file.attrs.update({"stamp_version": WRITTEN, "extractor": header.encoder, "unit": "um", "feat_type": "tile"})
        file.attrs.update({"tile_size_um": header.size_lv0()[0] * header.slide_mpp_x})
        file.attrs.update({"tile_size_px": header.tile_size_px, "code_hash": digest})

    return {f"{header.encoder}-{digest}/{header.slide_id}.h5": image_of(fill)}


READER = PeerReader(name="stamp", holds_mpp=False, find=find, open=read)
WRITER = PeerWriter(name="stamp", losses=LOSSES, write=write)
