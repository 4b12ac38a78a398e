"""A bundle: models, their words, temperature, thresholds and hashes in one folder that `promptmil predict` runs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load, save

from feature_extraction.errors import DamagedFileError, InputError
from feature_extraction.files import as_record, publish, publish_json, read_json, sha256_of_file
from mil.checkpoint import BANK, CARD, TENSORS, read_model
from mil.cohort import listed
from mil.heatmap.explain import LoadedRun
from mil.task import build_task
from mil.trust.conformal import Calibration
from mil.trust.out_of_distribution import NearestSlides
from mil.trust.temperature import Temperature

MANIFEST, TRAINING, MODELS = "bundle.json", "training_slides.safetensors", "models"
SCHEMA = 1
_OF_A_RUN = (TENSORS, CARD, BANK, "cell.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusual:
    """What makes a slide unlike the training slides, whose vectors lie beside it.

    Attributes:
        k: Which neighbour.
        threshold: A larger distance to it is unusual.
        n_patients: Training patients.
    """

    k: int
    threshold: float
    n_patients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleCard:
    """Content of ``bundle.json``, as plain data but for its records.

    Attributes:
        schema: Of this file.
        method: Whose models these are.
        models: Their folders; predictions are the mean over them.
        fitted_on: Where temperature and thresholds come from, in words.
        guarantee: What the prediction sets promise.
        temperature: Of patients' probabilities.
        calibration: Thresholds of patients' sets.
        unusual: None where there are no training slides in the bundle.
        why_not_unusual: Why there are none, else empty.
        files: SHA-256 of every other file.
    """

    schema: int
    method: str
    models: list[str]
    fitted_on: str
    guarantee: str
    temperature: Mapping[str, object]
    calibration: Mapping[str, object]
    unusual: Mapping[str, object] | None
    why_not_unusual: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """A bundle that is ready to predict.

    Attributes:
        card: As it was written.
        runs: Its models; they hold no prediction.
        temperature: Of patients' probabilities.
        calibration: Thresholds of patients' sets.
        nearest: None where it cannot tell an unusual slide.
    """

    card: BundleCard
    runs: list[LoadedRun]
    temperature: Temperature
    calibration: Calibration
    nearest: NearestSlides | None


def write_bundle(out: Path, folders: Sequence[Path], card: BundleCard, nearest: NearestSlides | None) -> BundleCard:
    """Write the folder, the manifest last; no slide or patient id goes into it.

    Args:
        out: The folder, which may not hold another bundle.
        folders: Run folders of the models.
        card: Everything but ``files``.
        nearest: Of the training slides.

    Raises:
        InputError: There is a bundle already.
    """
    if (out / MANIFEST).is_file():
        raise InputError(f"out={out}: there is a bundle already; remove it, or give another folder")
    names: list[str] = []
    for folder in folders:
        for name in _OF_A_RUN:
            if (folder / name).is_file():
                names.append(f"{MODELS}/{folder.name}/{name}")
                publish(out / names[-1], (folder / name).read_bytes())
    if nearest is not None:
        names.append(TRAINING)
        publish(out / TRAINING, save({"vectors": nearest.vectors}))
    whole = replace(card, files={name: sha256_of_file(out / name) for name in sorted(names)})
    publish_json(out / MANIFEST, asdict(whole))
    return whole


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle after comparing every file with its hash.

    Raises:
        InputError: No bundle there.
        DamagedFileError: A file is missing, changed or not among those that were written.
    """
    try:
        card = as_record(BundleCard, read_json(folder / MANIFEST), MANIFEST)
    except OSError as error:
        raise InputError(f"bundle={folder}: no {MANIFEST} in it; give the out=… of `promptmil bundle`") from error
    _require_whole(folder, card)
    temperature = as_record(Temperature, card.temperature, f"{MANIFEST}: temperature")
    plain = {name: tuple(one) if isinstance(one, list) else one for name, one in card.calibration.items()}
    return Bundle(
        card=card,
        runs=[_model(folder / MODELS / name) for name in card.models],
        temperature=temperature,
        calibration=as_record(Calibration, plain, f"{MANIFEST}: calibration"),
        nearest=_nearest(folder, card),
    )


def _require_whole(folder: Path, card: BundleCard) -> None:
    if card.schema != SCHEMA:
        raise DamagedFileError(f"{folder / MANIFEST}: schema {card.schema}, expected {SCHEMA}; bundle the runs again")
    needed = {f"{MODELS}/{name}/{file}" for name in card.models for file in (TENSORS, CARD)}
    needed |= {TRAINING} if card.unusual is not None else set()
    torn = sorted(needed - set(card.files))
    for name, expected in card.files.items():
        path = PurePosixPath(name)
        is_inside = not path.is_absolute() and ".." not in path.parts
        if not is_inside or not (folder / path).is_file() or sha256_of_file(folder / path) != expected:
            torn.append(name)
    if torn:
        raise DamagedFileError(f"{folder}: {listed(torn)} missing or not as bundled; bundle the runs again")


def _model(folder: Path) -> LoadedRun:
    aggregator, card = read_model(folder)
    task = build_task(card.task)
    task.load(card.learned)
    return LoadedRun(folder=folder, aggregator=aggregator, task=task, card=card, predictions=pd.DataFrame())


def _nearest(folder: Path, card: BundleCard) -> NearestSlides | None:
    if card.unusual is None:
        return None
    unusual = as_record(Unusual, card.unusual, f"{MANIFEST}: unusual")
    try:
        vectors = load((folder / TRAINING).read_bytes())["vectors"]
    except (SafetensorError, KeyError) as error:
        raise DamagedFileError(f"{folder / TRAINING}: damaged ({error}); bundle the runs again") from error
    return NearestSlides(vectors=vectors, k=unusual.k, threshold=unusual.threshold)
