"""A small study on disk without slides: feature files, text bank and split, for tests of `promptmil train`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from bags import CLASSES, bank, rows
from test_store import HEADER

from feature_extraction.store import FeatureRows, write_features
from feature_extraction.text_bank import write_bank

N_SLIDES, N_TILES = 15, 24
PARTS = ("train", "train", "train", "val", "test")


def write_slide(folder: Path, number: int) -> None:
    """Random tiles, a quarter of them like the words of the slide's class."""
    words = bank()
    features = rows(N_TILES, seed=number)
    features[: N_TILES // 4] += words.class_vector(CLASSES[number % 3])
    tiles = FeatureRows(
        spaces={"joint": features.astype(np.float16)},
        coords_lv0=np.stack([np.arange(N_TILES) * 192, np.zeros(N_TILES)], axis=1).astype(np.int64),
        tissue_fraction=np.ones(N_TILES, np.float32),
        failed_coords_lv0=np.empty((0, 2), np.int64),
    )
    header = replace(
        HEADER, slide_id=f"S{number}", encoder=words.encoder, encoder_fingerprint=words.encoder_fingerprint
    )
    write_features(folder / f"S{number}.h5", header, tiles)


def write_study(folder: Path, n_folds: int = 1) -> list[str]:
    """Write it; returns the words of `promptmil train` that name it."""
    lines = [",".join(["patient_id,slide_id,label,site", *(f"fold_{fold}" for fold in range(n_folds))])]
    for number in range(N_SLIDES):
        write_slide(folder / "features", number)
        parts = [PARTS[(number // 3 + fold) % len(PARTS)] for fold in range(n_folds)]
        lines.append(",".join([f"P{number},S{number},{CLASSES[number % 3]},", *parts]))
    write_bank(folder / "bank.safetensors", bank())
    (folder / "kfold.csv").write_text("\n".join(lines) + "\n")
    return [f"features={folder / 'features'}", f"bank={folder / 'bank.safetensors'}", f"split={folder / 'kfold.csv'}"]
