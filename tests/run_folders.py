"""Run folders as `promptmil train` leaves them, with predictions drawn at a skill."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from feature_extraction.files import address, publish_json, publish_text
from mil.runs import UNUSED, write_done

CLASSES = ("LUAD", "LUSC", "normal")
FOLDS = 3


def cohort_of(n_patients: int = 24) -> list[tuple[str, str, str]]:
    """(slide, patient, label); patients have one or two slides."""
    return [
        (f"s{patient:02}-{slide}", f"p{patient:02}", CLASSES[patient % 3])
        for patient in range(n_patients)
        for slide in range(1 + patient % 2)
    ]


def write_run(
    root: Path,
    *,
    fold: int,
    skill: float,
    cohort: Sequence[tuple[str, str, str]] = (),
    unused: Mapping[str, str] | None = None,
    **changes: object,
) -> Path:
    """One run as `promptmil train` leaves it; fold f tests every third patient of a class, from f."""
    cell: dict[str, object] = {
        "aggregator": "prompt", "init": "text", "space": "joint", "encoder": "tiny", "encoder_fingerprint": "e" * 64,
        "features_folder": "tiny-0123", "prompt_set": "lung", "prompt_set_sha256": "a" * 64, "split_name": "kfold",
        "split_sha256": "b" * 64, "scheme": "kfold", "shots": None, "fold": fold, "seed": 0,
        "pooling": {"rule": "topj", "top_j": 5}, "max_epochs": 20, "version": "0.1.0", **changes,
    }  # fmt: skip
    cell["determined_by"] = {
        "fold": fold,
        "seed": cell["seed"],
        "features": f"bags of fold {fold}",
        "optimizer": {"lr": 1e-4},
    } | dict(changes.get("determined_by", {}))
    name = address(cell)[:12]
    folder = root / name
    generator = np.random.default_rng(int(name[:8], 16))
    rows = []
    for slide, patient, label in cohort or cohort_of():
        part = (
            ("test", "val", "train", "train", "train")[(int(patient[1:]) // 3 - fold) % FOLDS]
            if cell["aggregator"] != "zeroshot"
            else "test"
        )
        weights = np.exp(generator.normal(size=3) + skill * np.eye(3)[CLASSES.index(label)])
        rows.append([slide, patient, fold, part, label, *(weights / weights.sum())])
    publish_json(folder / "cell.json", {"cell": name, **cell})
    stream = io.StringIO()
    csv.writer(stream).writerows(
        [["slide_id", "patient_id", "fold", "part", "label", *(f"p_{c}" for c in CLASSES)], *rows]
    )
    publish_text(folder / "predictions.csv", stream.getvalue())
    publish_json(folder / UNUSED, dict(unused or {}))
    write_done(folder)
    return folder
