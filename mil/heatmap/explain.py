"""Which run explains which slide, and everything a map of that slide is made of."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from feature_extraction.errors import DamagedFileError, InputError, MismatchError
from feature_extraction.files import read_json
from feature_extraction.text_bank import TextBank, read_bank
from mil.aggregator import Aggregator
from mil.checkpoint import BANK, ModelCard, read_model
from mil.feature_folder import FeatureFolder, open_folders, require_space
from mil.heatmap.contributions import Words
from mil.runs import check_run, find_runs
from mil.task import Task, build_task

PREDICTION_TOLERANCE = 1e-4
"""Stored and recomputed probability of a slide may differ by this much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRun:
    """A finished run, ready to predict.

    Attributes:
        folder: The run folder.
        aggregator: In evaluation mode.
        task: Turns logits into probabilities.
        card: What it was trained for.
        predictions: Its ``predictions.csv``.
    """

    folder: Path
    aggregator: Aggregator
    task: Task
    card: ModelCard
    predictions: pd.DataFrame

    def has_learned_from(self, slide_id: str) -> bool:
        """Whether the slide was in its training or validation part."""
        parts = self.predictions.loc[self.predictions["slide_id"] == slide_id, "part"]
        return bool(parts.isin(["train", "val"]).any())

    def nontask_bank(self) -> TextBank | None:
        """The words of the non-task things that this run leaves out, None when it keeps every tile."""
        return read_bank(self.folder / BANK) if self.card.filter_nontask else None

    def words(self) -> Words | None:
        """The words of the run's classes and concepts before any training, None for a run without text."""
        path = self.folder / BANK
        if not path.is_file():
            return None
        bank, card = read_bank(path), self.card
        rows = [bank.concept_vector(owner, name) for owner, name in card.concepts]
        membership = [[float(owner == name) for name in card.classes] for owner, _ in card.concepts]
        classes = np.stack([bank.class_vector(name) for name in card.classes])
        return Words(
            classes=torch.from_numpy(classes),
            concepts=torch.from_numpy(np.array(rows).reshape(-1, classes.shape[1])),
            membership=torch.tensor(membership).reshape(-1, len(card.classes)),
            scale=math.exp(bank.logit_scale),
            is_start=card.init == "text",
            is_joint=card.space == "joint",
        )


def load_run(folder: Path) -> LoadedRun:
    """Load a finished run.

    Raises:
        InputError: There is no finished run in this folder.
        DamagedFileError: A file differs from what was written.
    """
    try:
        check_run(folder)
    except OSError as error:
        raise InputError(
            f"run={folder}: no finished run in it ({Path(str(error.filename)).name} is missing); give a folder with a "
            "done.json, or the sweep itself with runs=…"
        ) from error
    aggregator, card = read_model(folder)
    task = build_task(card.task)
    task.load(card.learned)
    return LoadedRun(
        folder=folder,
        aggregator=aggregator,
        task=task,
        card=card,
        predictions=pd.read_csv(folder / "predictions.csv", dtype={"slide_id": str, "patient_id": str, "label": str}),
    )


def load_runs(run: Path | None, runs: Path | None) -> list[LoadedRun]:
    """The run, or every trained run of the sweep.

    Raises:
        InputError: Neither or both are given, or the sweep has no finished run with a model.
    """
    if (run is None) == (runs is None):
        raise InputError("give either run=… (a run folder) or runs=… (a sweep)")
    if run is not None:
        return [load_run(run)]
    if runs is None:
        return []
    folders = [found.folder for found in find_runs(runs) if (found.folder / "model.json").is_file()]
    if not folders:
        raise InputError(f"runs={runs}: no finished run with a model in it")
    return [load_run(folder) for folder in folders]


def require_one_method(runs: Sequence[LoadedRun]) -> None:
    """Refuse runs whose predictions must not be averaged or mixed: they may differ in fold and seed only.

    Raises:
        InputError: They differ in aggregator, task, classes, space, filter or prompts.
    """
    methods = sorted({json.dumps(_method(run), ensure_ascii=False) for run in runs})
    if len(methods) > 1:
        raise InputError(f"runs=…: holds several methods: {'; '.join(methods)}; name one with run=… or another folder")


def _method(run: LoadedRun) -> dict[str, object]:
    card, cell = run.card, read_json(run.folder / "cell.json")
    return {
        "aggregator": card.aggregator.get("name"),
        "task": card.task.get("_target_"),
        "classes": card.classes,
        "space": card.space,
        "filter_nontask": card.filter_nontask,
        "prompts": str(cell.get("prompt_set_sha256"))[:8],
        "permute_labels": cell.get("permute_labels", 0),
    }


def runs_by_slide(runs: Sequence[LoadedRun]) -> dict[str, LoadedRun]:
    """Each slide with the run in which it is test, so that no slide is explained by a model that was trained on it."""
    return {slide_id: run for run in runs for slide_id in run.predictions.query("part == 'test'")["slide_id"].tolist()}


def require_fit(card: ModelCard, folders: Sequence[FeatureFolder]) -> None:
    """Refuse features of another encoder or tiling than the run was trained on.

    Raises:
        MismatchError: They differ.
    """
    header, tile_mpp = folders[0].header, [folder.header.tile_mpp for folder in folders]
    if (card.encoder_fingerprint, card.tile_mpp) != (header.encoder_fingerprint, tile_mpp):
        expected = f"{card.encoder} ({card.encoder_fingerprint[:8]}) tiles at {_listed(card.tile_mpp)} µm"
        got = f"{header.encoder} ({header.encoder_fingerprint[:8]}) at {_listed(tile_mpp)}"
        order = ", and give features=[fine,coarse]" if len(card.tile_mpp) > 1 else ""
        raise MismatchError(
            f"the run was trained on {expected}, the features are of {got}; extract with the same encoder and "
            f"tiling{order}"
        )


def require_stored_prediction(run: LoadedRun, slide_id: str, probabilities: Mapping[str, float]) -> None:
    """Check a recomputed prediction against the one the run stored, if it stored one for this slide.

    Raises:
        DamagedFileError: They differ by more than `PREDICTION_TOLERANCE`.
    """
    stored = run.predictions[run.predictions["slide_id"] == slide_id]
    if stored.empty:
        return
    gap = max(abs(float(stored.iloc[0][f"p_{name}"]) - value) for name, value in probabilities.items())
    if not np.isfinite(gap) or gap > PREDICTION_TOLERANCE:
        raise DamagedFileError(
            f"slide={slide_id}: the map's prediction differs from the run's by {gap:.2g}; "
            "are these the features it was trained on?"
        )


def open_features(paths: Sequence[Path], runs: Sequence[LoadedRun]) -> tuple[FeatureFolder, ...]:
    """The features of each magnification, checked against every run."""
    folders = open_folders(paths)
    for run in runs:
        require_fit(run.card, folders)
        for folder in folders:
            require_space(run.card.space, folder)
    return folders


def _listed(values: Sequence[float]) -> str:
    return " and ".join(map(str, values))
