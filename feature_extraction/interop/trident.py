"""TRIDENT: ``<mag>x_<px>px_<overlap>px_overlap`` with ``patches`` (corners) and ``features_<encoder>`` (both)."""

from collections.abc import Mapping
from pathlib import Path

import h5py

from feature_extraction.errors import InputError
from feature_extraction.interop import clam
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
from feature_extraction.store import reader_attributes

FOLDERS = ("features_*", "*/features_*")
LOSSES = (
    "TRIDENT keeps magnifications instead of µm per pixel, rounded to whole numbers",
    "TRIDENT keeps the side of a tile at level 0 as a whole number of pixels",
    "TRIDENT keeps no fingerprint, licence, space, normalisation, tissue share or checksums",
)


def find(source: Path) -> list[PeerFile]:
    """The patch features of one encoder.

    Args:
        source: A ``features_<encoder>`` folder, or a folder above it with exactly one in it.

    Raises:
        InputError: None, or several.
    """
    inside = [] if any(source.glob("*.h5")) else [found for glob in FOLDERS for found in source.glob(glob)]
    folders = [folder for folder in inside if any(folder.glob("*.h5"))]
    if len(folders) > 1:
        names = ", ".join(folder.relative_to(source).as_posix() for folder in sorted(folders))
        raise InputError(f"source={source}: holds features of several encoders: {names}; name one of them")
    folder = folders[0] if folders else source
    paths = list(folder.glob("*.h5"))
    if not paths:
        raise InputError(f"source={source}: no feature file of TRIDENT in it; expected features_<encoder>/<slide>.h5")
    return files_of(paths)


def read(file: PeerFile) -> PeerSlide:
    """One slide.

    Raises:
        SlideError: The file is damaged, of another layout, or does not say what a tile is.
    """
    with reading(file), open_hdf5(file.path) as opened:
        require_datasets(opened, file, "TRIDENT", ("features", "coords"))
        coords = coordinates(opened, file)
        width, dtype = shape_of(opened, file, "features", len(coords))
        stated, named = attributes(opened, "coords"), attributes(opened, "features").get("encoder")
    return PeerSlide(
        coords=coords,
        geometry=_geometry(file, stated),
        width=width,
        dtype=dtype,
        read=rows_of(file.path, "features"),
        encoder=str(named or file.path.parent.name.removeprefix("features_")),
    )


def _geometry(file: PeerFile, stated: Mapping[str, object]) -> PeerGeometry:
    if "patch_level" in stated and "patch_size_level0" not in stated:
        return clam.geometry(file, stated)  # features of CLAM's patches, which TRIDENT reads too
    side_px, side_lv0 = number(stated, "patch_size"), number(stated, "patch_size_level0")
    if not side_px or not side_lv0:
        held = ", ".join(sorted(stated)) or "none"
        raise refusal(
            file,
            f"its coords need the attributes patch_size and patch_size_level0, they have {held}",
            "extract the patch features again with TRIDENT, or take the features from their source",
            code="E-geometry",
        )
    overlap, target = number(stated, "overlap"), number(stated, "target_magnification")
    width, height = number(stated, "level0_width"), number(stated, "level0_height")
    return PeerGeometry(
        unit="px",
        tile_px=round(side_px),
        tile_size=(side_lv0, side_lv0),
        step=None if overlap is None else (side_px - overlap) * side_lv0 / side_px,
        tile_mpp=10 / target if target else None,
        size_lv0=(round(width), round(height)) if width and height else None,
    )


def write(slide: Outgoing) -> dict[str, bytes]:
    """The two files of one slide, by their path in the folder."""
    header = slide.header
    told = reader_attributes(header)
    run = f"{told['target_magnification']}x_{told['patch_size']}px_{told['overlap']}px_overlap"

    def fill_patches(file: h5py.File) -> None:
        file.create_dataset("coords", data=slide.coords_lv0).attrs.update(told)

    def fill(file: h5py.File) -> None:
        features = file.create_dataset("features", data=slide.features)
        features.attrs.update({"name": header.slide_id, "savetodir": "", "encoder": header.encoder})
        fill_patches(file)

    return {
        f"{run}/patches/{header.slide_id}_patches.h5": image_of(fill_patches),
        f"{run}/features_{header.encoder}/{header.slide_id}.h5": image_of(fill),
    }


READER = PeerReader(name="trident", holds_mpp=False, find=find, open=read)
WRITER = PeerWriter(name="trident", losses=LOSSES, write=write)
