"""CLAM: ``h5_files`` (features and corners), ``pt_files`` (features), ``patches`` (corners and what a tile is)."""

import io
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import torch

from feature_extraction.errors import InputError
from feature_extraction.interop.hdf5 import (
    attributes,
    coordinates,
    image_of,
    number,
    open_hdf5,
    pair,
    require_datasets,
    rows_of,
    shape_of,
)
from feature_extraction.interop.outgoing import Outgoing, PeerWriter
from feature_extraction.interop.peer import (
    UNKNOWN_LEVEL,
    PeerFile,
    PeerGeometry,
    PeerReader,
    PeerSlide,
    files_of,
    reading,
    refusal,
)

LOSSES = (
    "CLAM keeps no µm per pixel, encoder, fingerprint, licence, space, normalisation, tissue share or checksums",
    "CLAM knows a tile as whole pixels of a pyramid level: tiles are stated as squares of level-0 pixels, rounded",
    "corners in h5_files are int32",
)


def find(source: Path) -> list[PeerFile]:
    """The files of ``h5_files``, each with its file in ``patches``.

    Raises:
        InputError: No such folder, several, or ``pt_files`` only, which hold no corners.
    """
    folders = [source] if source.name == "h5_files" else [*source.glob("h5_files"), *source.glob("*/h5_files")]
    if len(folders) > 1:
        names = ", ".join(folder.relative_to(source).as_posix() for folder in sorted(folders))
        raise InputError(f"source={source}: holds several folders of CLAM: {names}; name one of them")
    if not folders and (any(source.glob("pt_files")) or any(source.glob("*/pt_files"))):
        raise InputError(f"source={source}: pt_files hold no coordinates; the h5_files of the same CLAM run are needed")
    folder = folders[0] if folders else source
    patches = [parent / "patches" for parent in (source, folder, folder.parent, folder.parent.parent)]
    paths = list(folder.glob("*.h5"))
    if not paths:
        raise InputError(f"source={source}: no feature file of CLAM in it; expected h5_files/<slide>.h5")
    return files_of(
        paths, lambda path: next((place / path.name for place in patches if (place / path.name).is_file()), None)
    )


def read(file: PeerFile) -> PeerSlide:
    """One slide.

    Raises:
        SlideError: A file is damaged, of another layout, or the one with the tile's size is missing.
    """
    with reading(file), open_hdf5(file.path) as opened:
        require_datasets(opened, file, "CLAM", ("features", "coords"))
        coords = coordinates(opened, file)
        width, dtype = shape_of(opened, file, "features", len(coords))
    if file.geometry is None:
        raise refusal(
            file,
            f"CLAM keeps the size of a tile in patches/{file.path.name}, and there is none",
            "put the folder patches of the same CLAM run beside h5_files",
            code="E-geometry",
        )
    with reading(file, file.geometry), open_hdf5(file.geometry) as opened:
        stated = attributes(opened, "coords")
        cut = coordinates(opened, file)
    if len(cut) != len(coords) or not np.array_equal(cut, coords):
        raise refusal(
            file,
            f"patches/{file.path.name} lists {len(cut)} tiles, h5_files/{file.path.name} {len(coords)}: not the same",
            "give the patches that these features were made from",
            code="E-geometry",
        )
    return PeerSlide(
        coords=coords, geometry=geometry(file, stated), width=width, dtype=dtype, read=rows_of(file.path, "features")
    )


def geometry(file: PeerFile, stated: Mapping[str, object]) -> PeerGeometry:
    """What CLAM's attributes of ``coords`` say: a tile's side at level 0 is ``patch_size`` times ``downsample``.

    Raises:
        SlideError: An attribute is missing.
    """
    side, level = number(stated, "patch_size"), number(stated, "patch_level")
    scales = pair(stated, "downsample") or ((1.0, 1.0) if level == 0 else None)
    if side is None or level is None or scales is None:
        raise refusal(
            file,
            "its coords need the attributes patch_size, patch_level and downsample, they have "
            + (", ".join(sorted(stated)) or "none"),
            "make the patches again with CLAM's create_patches_fp.py",
            code="E-geometry",
        )
    further = number(stated, "custom_downsample") or 1.0
    dims = pair(stated, "level_dim")
    is_known = level == 0 and dims is not None and min(dims) > 0
    return PeerGeometry(
        unit="px",
        tile_px=round(side),
        tile_size=(side * scales[0] * further, side * scales[1] * further),
        size_lv0=(round(dims[0]), round(dims[1])) if dims is not None and is_known else None,
        read_level=UNKNOWN_LEVEL if further > 1 else round(level),
    )


def write(slide: Outgoing) -> dict[str, bytes]:
    """The three files of one slide, by their path in the folder.

    Raises:
        SlideError: A corner does not fit in 32 bits.
    """
    slide.require_corners_below(np.iinfo(np.int32).max)
    features = np.asarray(slide.features, np.float32)
    header, (width, _) = slide.header, slide.header.size_lv0()
    dims = np.array([header.level0_width, header.level0_height])

    def fill(file: h5py.File) -> None:
        file.create_dataset("features", data=features)
        file.create_dataset("coords", data=slide.coords_lv0.astype(np.int32))

    def fill_patches(file: h5py.File) -> None:
        coords = file.create_dataset("coords", data=slide.coords_lv0)
        coords.attrs.update({"patch_size": round(width), "patch_level": 0, "downsample": np.array([1.0, 1.0])})
        coords.attrs.update(
            {"downsampled_level_dim": dims, "level_dim": dims, "name": header.slide_id, "save_path": ""}
        )

    tensor = io.BytesIO()
    torch.save(torch.from_numpy(features.copy()), tensor)
    return {
        f"h5_files/{header.slide_id}.h5": image_of(fill),
        f"pt_files/{header.slide_id}.pt": tensor.getvalue(),
        f"patches/{header.slide_id}.h5": image_of(fill_patches),
    }


READER = PeerReader(name="clam", holds_mpp=False, find=find, open=read)
WRITER = PeerWriter(name="clam", losses=LOSSES, write=write)
