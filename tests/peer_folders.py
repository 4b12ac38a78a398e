"""Feature folders as other tools leave them, and readers written from what those tools document; none of their code."""

import json
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import torch
from hydra import compose, initialize_config_dir

from feature_extraction.commands.convert import run
from feature_extraction.configuration import conf_folder

READER_OF_STAMP = (2, 3)
"""The version of STAMP whose rules `stamp_bag` follows."""


def convert(*words: str) -> int:
    """`promptmil convert` with these words, errors raised."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("convert", list(words))
    return run(config)


def summary(out: Path) -> dict[str, object]:
    return dict(json.loads((out / "summary.json").read_text()))


def only_folder(out: Path) -> Path:
    """The one feature folder in an out."""
    (folder,) = {path.parent for path in out.glob("*/*.h5")}
    return folder


# What the tools write.


def write_clam(
    root: Path,
    slide_id: str,
    features: np.ndarray,
    coords: np.ndarray,
    *,
    side: int = 224,
    level: int = 0,
    downsample: float = 1.0,
) -> None:
    patches, rows = root / "patches" / f"{slide_id}.h5", root / "features" / "h5_files" / f"{slide_id}.h5"
    for path in (patches, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(patches, "w") as file:
        dataset = file.create_dataset("coords", data=coords.astype(np.int64), chunks=(1, 2))
        size = np.array([4000, 4000])
        dataset.attrs.update({"patch_size": side, "patch_level": level, "downsample": np.array([downsample] * 2)})
        dataset.attrs.update({"downsampled_level_dim": size, "level_dim": size, "name": slide_id, "save_path": "x"})
    with h5py.File(rows, "w") as file:
        file.create_dataset("features", data=features.astype(np.float32), chunks=(1, features.shape[1]))
        file.create_dataset("coords", data=coords.astype(np.int32))


def write_trident(
    root: Path,
    slide_id: str,
    features: np.ndarray,
    coords: np.ndarray,
    *,
    side: int = 224,
    side_lv0: int = 224,
    encoder: str = "some_encoder",
    target: object = 20,
    overlap: int = 0,
) -> Path:
    path = root / f"20x_{side}px_{overlap}px_overlap" / f"features_{encoder}" / f"{slide_id}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        rows = file.create_dataset("features", data=features, chunks=(1, features.shape[1]))
        rows.attrs.update({"name": slide_id, "savetodir": "x", "encoder": encoder})
        dataset = file.create_dataset("coords", data=coords.astype(np.int64), chunks=(1, 2))
        dataset.attrs.update({"patch_size": side, "patch_size_level0": side_lv0, "level0_magnification": 20})
        dataset.attrs.update({"target_magnification": target, "overlap": overlap, "name": slide_id, "savetodir": "x"})
        dataset.attrs.update({"level0_width": 4000, "level0_height": 4000})
    return path


def write_stamp(
    root: Path,
    slide_id: str,
    features: np.ndarray,
    coords_um: np.ndarray,
    *,
    attributes: Mapping[str, object] | None = None,
) -> Path:
    stated = {"stamp_version": "2.3.0", "extractor": "x", "unit": "um", "tile_size_um": 112.0, "tile_size_px": 224}
    path = root / "x-00000000" / f"{slide_id}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["coords"] = coords_um.astype(np.float32)
        file["feats"] = features.astype(np.float16)
        for name, value in {**stated, "feat_type": "tile", **(attributes or {})}.items():
            if value is not None:
                file.attrs[name] = value
    return path


def write_slide2vec(root: Path, slide_id: str, features: np.ndarray, coords: np.ndarray, *, kind: str = "pt") -> None:
    for name in ("tile_embeddings", "tiles"):
        (root / name).mkdir(parents=True, exist_ok=True)
    meta = {"sample_id": slide_id, "artifact_type": "tile_embeddings", "format": kind, "num_tiles": len(features)}
    meta |= {"feature_dim": features.shape[1] if len(features) else None, "encoder_name": "some", "annotation": None}
    (root / "tile_embeddings" / f"{slide_id}.meta.json").write_text(json.dumps(meta))
    told = {
        "slide": {"dimensions": [4000, 4000], "base_spacing_um": 0.5, "level_downsamples": [[1.0, 1.0]]},
        "tiling": {
            "requested_tile_size_px": 224,
            "requested_spacing_um": 0.5,
            "read_level": 0,
            "tile_size_lv0": 224,
            "step_px_lv0": 224,
            "n_tiles": len(features),
        },
    }
    (root / "tiles" / f"{slide_id}.coordinates.meta.json").write_text(json.dumps(told))
    if not len(features):
        return
    x, y = coords.T.astype(np.int64)
    np.savez_compressed(
        root / "tiles" / f"{slide_id}.coordinates.npz",
        tile_index=np.arange(len(x), dtype=np.int32),
        x=x,
        y=y,
        tissue_fractions=np.linspace(0.5, 1, len(x), dtype=np.float32),
    )
    path = root / "tile_embeddings" / f"{slide_id}.{kind}"
    if kind == "pt":
        torch.save(torch.from_numpy(features), path)
    else:
        np.savez_compressed(path, features=features)


# What the tools read.


def clam_bag(data_dir: Path, slide_id: str) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """CLAM's two ways to a bag: the tensor of ``pt_files``, and features with corners of ``h5_files``."""
    tensor = torch.load(data_dir / "pt_files" / f"{slide_id}.pt", weights_only=True)
    with h5py.File(data_dir / "h5_files" / f"{slide_id}.h5") as file:
        return tensor, torch.from_numpy(file["features"][:]), file["coords"][:]


def clam_tiles(path: Path) -> tuple[np.ndarray, int, int]:
    """What CLAM's reader of patches needs: corners, and the level and size it hands to OpenSlide."""
    with h5py.File(path) as file:
        coords = file["coords"]
        return coords[:], int(coords.attrs["patch_level"]), int(coords.attrs["patch_size"])


def trident_bag(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """What TRIDENT's slide encoders are given; its reader of corners wants three of the attributes."""
    with h5py.File(path) as file:
        told = dict(file["coords"].attrs)
        assert None not in [told.get(name) for name in ("patch_size", "level0_magnification", "target_magnification")]
        return file["features"][:], file["coords"][:], told


def stamp_bag(path: Path) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Features, corners in µm, side in µm and pixels; refuses a file that is newer than its reader."""
    with h5py.File(path) as file:
        told = dict(file.attrs)
        if told.get("tile_size") and told.get("unit") == "um":
            side_um = float(told["tile_size"])
        else:
            side_um = float(told["tile_size_um"])
        version = tuple(int(part) for part in str(told["stamp_version"]).split(".")[:2])
        assert version <= READER_OF_STAMP, "the features are of a newer STAMP"
        assert told.get("feat_type", "tile") == "tile"
        return file["feats"][:], file["coords"][:], side_um, int(told["tile_size_px"])


def h5ad(path: Path) -> dict[str, object]:
    """An AnnData file by its documented format: every element says what it is."""
    versions = {"array": "0.2.0", "dataframe": "0.2.0", "dict": "0.1.0", "string": "0.2.0", "numeric-scalar": "0.2.0"}
    versions |= {"string-array": "0.2.0", "anndata": "0.1.0"}
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"encoding-type": "anndata", "encoding-version": "0.1.0"}
        assert set(file) == {"X", "layers", "obs", "obsm", "obsp", "uns", "var", "varm", "varp"}

        def check(_: str, item: h5py.Group) -> None:
            assert versions[item.attrs["encoding-type"]] == item.attrs["encoding-version"]

        file.visititems(check)
        frames = {name: list(file[name].attrs["column-order"]) for name in ("obs", "var")}
        assert all(set(frames[name]) | {"_index"} == set(file[name]) for name in frames)
        assert file["obs/_index"].shape == file["X"].shape[:1]
        assert file["var/_index"].shape == file["X"].shape[1:]
        return {
            "X": file["X"][:],
            "obs": {name: file["obs"][name][:] for name in frames["obs"]},
            "spatial": file["obsm/spatial"][:],
            "encoder_fingerprint": file["uns/promptmil/encoder_fingerprint"].asstr()[()],
        }
