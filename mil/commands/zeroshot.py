"""`promptmil zeroshot`: feature files + text bank -> predictions without training."""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64
from omegaconf import DictConfig
from rich.console import Console

from feature_extraction.commands.licence import check_licence
from feature_extraction.errors import InputError
from feature_extraction.files import address, publish_json, publish_text
from feature_extraction.text_bank import TextBank, read_bank, require_match
from mil.bag import BagSet, FeatureFolder, load_bags
from mil.cohort import CohortRow, read_labels
from mil.commands import settings
from mil.commands.unused import say_unused
from mil.metrics import classification_metrics
from mil.parts import Pooling
from mil.predictions import predictions_table
from mil.runs import write_done
from mil.splits import PARTS, SplitRow, check_split, read_split
from mil.text import order_classes
from mil.zeroshot import choose_top_j, resolve_pooling, slide_logits, softmax


def run(config: DictConfig) -> int:
    """Predict every slide from words; returns the exit code."""
    features = FeatureFolder(Path(config.features))
    bank = read_bank(Path(config.bank))
    header = features.header
    console = Console(stderr=True)
    check_licence(config.licence_profile, header, console)
    space = "joint" if "joint" in features.spaces else header.space
    require_match(bank, encoder=header.encoder, encoder_fingerprint=header.encoder_fingerprint, space=space)
    listed = _listed(config, features)
    labels = [row.label for row, _ in listed if row.label]
    classes = order_classes(labels, bank) if labels else list(bank.class_names())
    ids = [row.slide_id for row, _ in listed]
    bags = load_bags(features, ids, space=space, nontask_of=bank if config.filter_nontask else None)
    used = [(row, part) for row, part in listed if row.slide_id in bags.bags]
    if not used:
        raise InputError(f"features={config.features}: no slide of the labels has a usable feature file")
    pooling = _pooling(config, bank, bags, [row for row, part in used if part == "val"], classes)
    logits = np.stack([slide_logits(bags.bags[row.slide_id], bank, classes, pooling) for row, _ in used])
    out = Path(config.out)
    metrics = _write(out, used, softmax(logits), classes, int(config.fold or 0))
    cell: dict[str, object] = {
        "aggregator": "zeroshot",
        "init": "text",
        "space": space,
        "encoder": header.encoder,
        "encoder_fingerprint": header.encoder_fingerprint,
        "features_folder": features.path.name,
        "prompt_set": bank.prompt_set,
        "prompt_set_sha256": bank.prompt_set_sha256,
        "split_name": "" if config.split is None else Path(config.split).stem,
        "shots": 0,
        "fold": int(config.fold or 0),
        "seed": 0,
        "pooling": {"rule": pooling.rule, "top_j": pooling.top_j},
        "filter_nontask": bool(config.filter_nontask),
        "max_epochs": 0,
    }
    publish_json(out / "cell.json", {"cell": address({**cell, "features": address(dict(bags.content))})[:12], **cell})
    write_done(out, ("cell.json", "metrics.json", "predictions.csv"))
    summary = {"command": "zeroshot", "slides": len(used), "metrics": metrics, "unused": bags.unused, **cell}
    publish_json(out / "summary.json", summary)
    _say(console, pooling, len(used), metrics, out)
    return say_unused(console, bags.unused)


def _listed(config: DictConfig, features: FeatureFolder) -> list[tuple[CohortRow | SplitRow, str]]:
    """The slides with their parts: those of a fold, else every slide of the labels or the folder, all test."""
    cohort = None
    if config.labels is not None:
        cohort = read_labels(Path(config.labels), slide_is_patient=config.slide_is_patient)
    if config.split is not None:
        if config.fold is None:
            raise InputError("split=… needs fold=…: predictions are listed by the parts of one fold")
        table = read_split(Path(config.split))
        check_split(table, cohort=cohort)
        return [(row, part) for part in PARTS for row in table.part(config.fold, part)]
    if cohort is not None:
        return [(row, "test") for row in cohort.rows]
    blank = [CohortRow(slide_id=slide_id, patient_id="", label="", site=None) for slide_id in features.slide_ids()]
    return [(row, "test") for row in blank]


def _pooling(
    config: DictConfig, bank: TextBank, bags: BagSet, val: list[CohortRow | SplitRow], classes: list[str]
) -> Pooling:
    """The rule; J from the validation part of a fold when asked for."""
    background = bank.background() if bank.background() in classes else None
    wanted = settings.top_j(config.pooling.top_j)
    pooling = resolve_pooling(config.pooling.rule, 1 if wanted == "auto" else int(wanted), background=background)
    if wanted != "auto":
        return pooling
    if not val:
        raise InputError("pooling.top_j=auto chooses on a validation part: give split=… and fold=… with slides in val")
    chosen = [bags.bags[row.slide_id] for row in val]
    labels = np.array([classes.index(row.label) for row in val])
    return Pooling(rule=pooling.rule, top_j=choose_top_j(chosen, labels, bank, classes, pooling))


def _write(
    out: Path,
    used: list[tuple[CohortRow | SplitRow, str]],
    probabilities: Float64[np.ndarray, "slide class"],
    classes: list[str],
    fold: int,
) -> dict[str, object]:
    """Write the predictions; returns the metrics of the test part, empty when a label is unknown."""
    parts = np.array([part for _, part in used])
    tables: list[pd.DataFrame] = []
    for part in dict.fromkeys(parts.tolist()):
        rows = [row for row, found in used if found == part]
        tables.append(predictions_table(rows, probabilities[parts == part], classes, fold=fold, part=str(part)))
    publish_text(out / "predictions.csv", pd.concat(tables).to_csv(index=False))
    test = [row for row, part in used if part == "test"]
    metrics: dict[str, object] = {}
    if test and all(row.label for row in test):
        labels = np.array([classes.index(row.label) for row in test])
        metrics = dict(classification_metrics(labels, probabilities[parts == "test"], classes))
    publish_json(out / "metrics.json", {"test": metrics})
    return metrics


def _say(console: Console, pooling: Pooling, n_slides: int, metrics: dict[str, object], out: Path) -> None:
    figures = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if isinstance(value, float))
    rule = f"{pooling.rule}, J = {pooling.n_chosen or 'all'}"
    console.print(f"zero-shot ({rule}) of {n_slides} slides -> {out}  {figures}", soft_wrap=True, markup=False)
