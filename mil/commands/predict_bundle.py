"""`promptmil predict bundle=…`: a bundle + features -> what is said of each patient, and whom to refer."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64
from rich.console import Console

from feature_extraction.errors import InputError
from feature_extraction.files import publish_json, publish_text
from mil.bag import Bag, slide_vectors
from mil.bundle import Bundle
from mil.cohort import listed, read_rows
from mil.commands.unused import say_unused
from mil.feature_folder import BagSet
from mil.trust.conformal import prediction_sets
from mil.trust.out_of_distribution import unusual_patients
from mil.trust.referral import Referral, referrals
from mil.trust.temperature import calibrated

UNLIKE_TRAINING = "a slide is unlike those trained on"
_REQUIRED = ("slide_id", "patient_id")


def patients_of(path: Path | None, slide_ids: Sequence[str]) -> dict[str, str]:
    """Patient of each slide from a table with ``slide_id, patient_id``; without a table each slide is its own.

    Raises:
        InputError: A column or a slide is missing, or a slide has two patients.
    """
    if path is None:
        return {slide_id: slide_id for slide_id in slide_ids}
    header, lines = read_rows(path)
    missing = [name for name in _REQUIRED if name not in header]
    if missing:
        raise InputError(f"labels={path}: no column {listed(missing)}; got {listed(header)}; add it")
    pairs = {(line["slide_id"], line["patient_id"]) for line in lines.values()}
    twice = [name for name, count in Counter(slide for slide, _ in pairs).items() if count > 1]
    found = dict(pairs)
    unknown = [name for name in slide_ids if not found.get(name)]
    if twice or unknown:
        said = f"slide {listed(twice)} has two patients" if twice else f"no patient of slide {listed(unknown)}"
        raise InputError(f"labels={path}: {said}; correct the table")
    return {name: found[name] for name in slide_ids}


def say_patients(
    out: Path, bundle: Bundle, bags: BagSet, mean: Float64[np.ndarray, "slide class"], patients: Mapping[str, str]
) -> int:
    """Write ``predictions.csv`` (slides) and ``patients.csv``; returns the exit code.

    A patient's probabilities are the mean of the slides', under the bundle's temperature; sets come from that mean
    without it, which is what they were calibrated on.

    Args:
        out: The folder.
        bundle: What predicted.
        bags: Its slides.
        mean: Over the models, in the order of the models' classes.
        patients: Slide to patient.
    """
    classes, names = bundle.calibration.classes, list(bags.bags)
    by_name = mean[:, [bundle.runs[0].card.classes.index(name) for name in classes]]
    owners = [patients[name] for name in names]
    found, places = np.unique(np.array(owners), return_inverse=True)
    ids = [str(name) for name in found]
    probabilities = np.stack([by_name[places == row].mean(axis=0) for row in range(len(ids))])
    score, is_unusual = _unusual(bundle, list(bags.bags.values()))
    unusual = unusual_patients(owners, {UNLIKE_TRAINING: is_unusual})
    said = referrals(ids, classes, prediction_sets(bundle.calibration, probabilities), unusual)
    slides = pd.DataFrame({"slide_id": names, "patient_id": owners})
    for column, name in enumerate(classes):
        slides[f"p_{name}"] = by_name[:, column]
    if score is not None:
        slides["distance"] = score
        slides["is_unusual"] = is_unusual
    table = _patients(bundle, said, calibrated(probabilities, bundle.temperature.value), Counter(owners))
    publish_text(out / "predictions.csv", slides.to_csv(index=False))
    publish_text(out / "patients.csv", table.to_csv(index=False))
    n_referred = sum(one.is_referred for one in said)
    record = {"command": "predict", "models": list(bundle.card.models), "guarantee": bundle.card.guarantee}
    counts = {"slides": len(names), "patients": len(said), "referred": n_referred}
    publish_json(out / "summary.json", {**record, **counts, "unused": bags.unused})
    console = Console(stderr=True)
    console.print(bundle.card.guarantee, soft_wrap=True, markup=False)
    if bundle.nearest is None:
        no = f"unusual slides cannot be told: {bundle.card.why_not_unusual}"
        console.print(no, soft_wrap=True, markup=False)
    text = f"{len(said)} patients ({len(names)} slides), {n_referred} referred -> {out}"
    console.print(text, soft_wrap=True, markup=False)
    return say_unused(console, bags.unused)


def _unusual(
    bundle: Bundle, bags: Sequence[Bag]
) -> tuple[Float64[np.ndarray, " slide"] | None, Bool[np.ndarray, " slide"]]:
    if bundle.nearest is None:
        return None, np.zeros(len(bags), dtype=np.bool_)
    score = bundle.nearest.scores(slide_vectors(bags))
    return score, score > bundle.nearest.threshold


def _patients(
    bundle: Bundle, said: Sequence[Referral], probabilities: Float64[np.ndarray, "patient class"], slides: Counter[str]
) -> pd.DataFrame:
    classes = bundle.calibration.classes
    table = pd.DataFrame(
        {
            "patient_id": [one.patient_id for one in said],
            "slides": [slides[one.patient_id] for one in said],
            "predicted": [classes[place] for place in probabilities.argmax(axis=1)],
            "set": [";".join(one.classes) for one in said],
            "referred": ["yes" if one.is_referred else "no" for one in said],
            "why": ["; ".join(one.reasons) for one in said],
        }
    )
    for column, name in enumerate(classes):
        table[f"p_{name}"] = probabilities[:, column]
    return table
