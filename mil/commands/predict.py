"""`promptmil predict`: run or bundle + features -> predictions of new slides."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from rich.console import Console

from feature_extraction.commands.licence import check_licence
from feature_extraction.errors import InputError
from feature_extraction.files import publish_json, publish_text
from mil.bag import Bag
from mil.bundle import Bundle, read_bundle
from mil.cohort import read_labels
from mil.commands import settings
from mil.commands.predict_bundle import patients_of, say_patients
from mil.commands.unused import say_unused
from mil.feature_folder import load_bags
from mil.fit import logits_of
from mil.heatmap.explain import LoadedRun, load_runs, open_features, require_one_method
from mil.task import Outcome

BAGS_A_BATCH = 8


def run(config: DictConfig) -> int:
    """Predict every slide of a feature folder; returns the exit code."""
    console = Console(stderr=True)
    bundle = _bundle(config)
    runs = _loaded(config) if bundle is None else bundle.runs
    check_licence(config.licence_profile, runs[0].card, console)
    features = open_features(settings.paths(config.features), runs)
    bags = load_bags(features, features[0].slide_ids(), space=runs[0].card.space, nontask_of=runs[0].nontask_bank())
    if not bags.bags:
        raise InputError(
            f"features={config.features}: no slide with a usable feature file, {len(bags.unused)} unusable"
        )
    slide_ids = list(bags.bags)
    outcomes = [_outcome(run, list(bags.bags.values())) for run in runs]
    mean = np.mean([outcome.probabilities for outcome in outcomes], axis=0)
    if bundle is not None:
        patients = patients_of(settings.optional_path(config.labels), slide_ids)
        return say_patients(Path(config.out), bundle, bags, mean, patients)
    task, classes = runs[0].task, runs[0].card.classes
    table = pd.DataFrame({"slide_id": slide_ids, **{f"p_{name}": mean[:, i] for i, name in enumerate(classes)}})
    decisions = task.decisions(mean, classes)
    if decisions is not None:
        table.insert(1, "predicted", decisions)
    scores = [outcome.score for outcome in outcomes if outcome.score is not None]
    if scores:
        table.insert(1, str(task.score_name), np.mean(scores, axis=0))
    columns = [name for name in table.columns if name not in ("slide_id", "predicted")]
    out = Path(config.out)
    if config.labels is not None:
        cohort = read_labels(Path(config.labels), kind=task.labels)
        patient_of = {row.slide_id: row.patient_id for row in cohort.rows}
        table.insert(1, "patient_id", [patient_of.get(slide_id, slide_id) for slide_id in slide_ids])
        patients = table.pivot_table(index="patient_id", values=columns, aggfunc="mean")[columns]
        publish_text(out / "patients.csv", patients.to_csv())
    publish_text(out / "predictions.csv", table.to_csv(index=False))
    publish_json(
        out / "summary.json",
        {"command": "predict", "runs": [run.folder.name for run in runs], "slides": len(table), "unused": bags.unused},
    )
    console.print(f"{len(table)} slides predicted by {len(runs)} run(s) -> {out}", soft_wrap=True, markup=False)
    return say_unused(console, bags.unused)


def _loaded(config: DictConfig) -> list[LoadedRun]:
    runs = load_runs(settings.optional_path(config.run), settings.optional_path(config.runs))
    require_one_method(runs)
    return runs


def _bundle(config: DictConfig) -> Bundle | None:
    if config.bundle is None:
        return None
    if config.run is not None or config.runs is not None:
        raise InputError("give one of bundle=…, run=… and runs=…")
    return read_bundle(Path(config.bundle))


def _outcome(run: LoadedRun, bags: Sequence[Bag]) -> Outcome:
    return run.task.predict(torch.from_numpy(logits_of(run.aggregator, bags, batch_size=BAGS_A_BATCH)))
