"""A bundle: what its run said, sets from patients it had not seen, strangers found, nothing changed unnoticed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bags import CLASSES
from study_files import write_slide, write_study
from test_store import HEADER

from feature_extraction.errors import DamagedFileError, InputError
from feature_extraction.store import FeatureRows, write_features
from mil.bundle import read_bundle
from mil.cli import main
from mil.trust.temperature import calibrated

pytestmark = pytest.mark.filterwarnings("ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")
N_TRAIN, N_VAL, N_TEST = 21, 3, 15


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one fold on 39 patients, and its bundle."""
    folder = tmp_path_factory.mktemp("study")
    words = write_study(folder)
    lines = ["patient_id,slide_id,label,site,fold_0"]
    for number in range(N_TRAIN + N_VAL + N_TEST):
        write_slide(folder / "features", number)
        part = "train" if number < N_TRAIN else "val" if number < N_TRAIN + N_VAL else "test"
        lines.append(f"P{number},S{number},{CLASSES[number % 3]},,{part}")
    (folder / "kfold.csv").write_text("\n".join(lines) + "\n")
    assert main(["train", *words, "fold=0", "trainer.max_epochs=0", f"out={folder / 'runs'}"]) == 0
    assert main(["bundle", f"run={_run(folder)}", words[0], f"out={folder / 'x.promptmil'}"]) == 0
    return folder


def _run(study: Path) -> Path:
    (run,) = (path.parent for path in (study / "runs").glob("*/done.json"))
    return run


def _predict(study: Path, out: Path, *words: str) -> pd.DataFrame:
    given = [f"bundle={study / 'x.promptmil'}", f"features={study / 'features'}", f"out={out}", *words]
    assert main(["predict", *given]) == 0
    return pd.read_csv(out / "patients.csv", dtype=str, keep_default_na=False)


def test_a_bundle_says_of_patients_what_its_run_said_and_sets_of_unseen_ones(study: Path, tmp_path: Path) -> None:
    patients = _predict(study, tmp_path).set_index("patient_id")
    stored = pd.read_csv(_run(study) / "predictions.csv", index_col="slide_id")
    card = json.loads((study / "x.promptmil" / "bundle.json").read_text())
    tested = stored[stored["part"] == "test"]
    truth = [tested.loc[name, f"p_{tested.loc[name, 'label']}"] for name in tested.index]
    threshold = np.sort(1 - np.array(truth))[N_TEST - (N_TEST + 1) // 10]
    assert card["calibration"]["thresholds"] == pytest.approx([threshold] * 3, abs=1e-6)
    assert card["calibration"]["n_patients"] == [N_TEST] * 3
    assert "hold the class of 90% of patients" in card["guarantee"]
    classes = card["calibration"]["classes"]
    for slide_id in stored.index:
        raw = stored.loc[slide_id, [f"p_{name}" for name in classes]].to_numpy(np.float64)
        row = patients.loc[slide_id]
        expected = [name for name, p in zip(classes, raw, strict=True) if 1 - p <= threshold]
        assert row["set"].split(";") == (expected or [""])
        soft = calibrated(raw[None], card["temperature"]["value"])[0]
        np.testing.assert_allclose([float(row[f"p_{name}"]) for name in classes], soft, atol=1e-5)
        assert row["referred"] == ("no" if len(expected) == 1 and not row["why"] else "yes")


def test_slides_of_one_patient_are_one_row_by_a_table_without_labels(study: Path, tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    names = [f"S{number}" for number in range(N_TRAIN + N_VAL + N_TEST)]
    table.write_text("slide_id,patient_id\n" + "".join(f"{name},007\n" for name in names))
    patients = _predict(study, tmp_path / "out", f"labels={table}")
    assert patients[["patient_id", "slides"]].to_numpy().tolist() == [["007", str(len(names))]]
    table.write_text("slide_id,patient_id\nS0,007\n")
    words = [f"bundle={study / 'x.promptmil'}", f"features={study / 'features'}", f"out={tmp_path / 'o'}"]
    assert main(["predict", *words, f"labels={table}"]) == 2


def test_a_slide_unlike_those_trained_on_is_referred_and_says_so(study: Path, tmp_path: Path) -> None:
    write_slide(tmp_path / "new", 0)
    whole = read_bundle(study / "x.promptmil")
    rng = np.random.default_rng(5)
    stranger = rng.normal(size=whole.runs[0].card.dim)
    features = (rng.normal(size=(24, len(stranger))) * 0.01 + stranger).astype(np.float16)
    tiles = FeatureRows(
        spaces={"joint": features / np.linalg.norm(features, axis=1, keepdims=True)},
        coords_lv0=np.stack([np.arange(24) * 192, np.zeros(24)], axis=1).astype(np.int64),
        tissue_fraction=np.ones(24, np.float32),
        failed_coords_lv0=np.empty((0, 2), np.int64),
    )
    card = whole.runs[0].card
    header = replace(HEADER, slide_id="odd", encoder=card.encoder, encoder_fingerprint=card.encoder_fingerprint)
    write_features(tmp_path / "new" / "odd.h5", header, tiles)
    given = [f"bundle={study / 'x.promptmil'}", f"features={tmp_path / 'new'}", f"out={tmp_path / 'out'}"]
    assert main(["predict", *given]) == 0
    row = pd.read_csv(tmp_path / "out" / "patients.csv", index_col="patient_id").loc["odd"]
    assert (row["referred"], "unlike those trained on" in row["why"]) == ("yes", True)
    slides = pd.read_csv(tmp_path / "out" / "predictions.csv", index_col="slide_id")
    assert slides["is_unusual"].tolist() == [False, True]


def test_a_bundle_without_features_says_that_it_cannot_tell_strangers(study: Path, tmp_path: Path) -> None:
    assert main(["bundle", f"run={_run(study)}", f"out={tmp_path / 'b'}"]) == 0
    found = read_bundle(tmp_path / "b")
    assert found.nearest is None
    assert "features=… is not given" in found.card.why_not_unusual


def test_no_id_of_a_slide_or_patient_is_in_a_bundle(study: Path) -> None:
    ids = [name.encode() for number in range(10, 39) for name in (f'"S{number}"', f'"P{number}"')]
    for path in (study / "x.promptmil").rglob("*"):
        if path.is_file() and ".hydra_jobs" not in path.parts:
            assert not any(name in path.read_bytes() for name in ids), path.name


def test_a_changed_file_is_found_and_a_bundle_is_never_written_over(study: Path, tmp_path: Path) -> None:
    words = [f"run={_run(study)}", f"out={tmp_path / 'b'}"]
    assert main(["bundle", *words]) == 0
    assert main(["bundle", *words]) == 2
    (path,) = (tmp_path / "b" / "models").glob("*/model.safetensors")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(DamagedFileError, match=r"model\.safetensors missing or not as bundled"):
        read_bundle(tmp_path / "b")
    with pytest.raises(InputError, match=r"no bundle\.json in it"):
        read_bundle(tmp_path)
