"""`promptmil zeroshot`: feature files + text bank -> predictions without training."""

from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from feature_extraction.errors import InputError
from feature_extraction.files import address, publish_json, publish_text
from feature_extraction.text_bank import TextBank, read_bank, require_match
from mil.bag import NO_TISSUE, BagSet, FeatureFolder, load_bags
from mil.cohort import CohortRow, read_labels
from mil.commands import settings
from mil.metrics import classification_metrics
from mil.parts import Pooling
from mil.predictions import predictions_table
from mil.runs import write_done
from mil.splits import read_split
from mil.text import order_classes
from mil.zeroshot import choose_top_j, resolve_pooling, slide_logits, softmax

PARTLY_FAILED = 3


def run(config: DictConfig) -> int:
    """Predict every slide from words; returns the exit code."""
    console = Console(stderr=True)
    features = FeatureFolder(Path(config.features))
    bank = read_bank(Path(config.bank))
    header = features.header
    require_match(bank, encoder=header.encoder, encoder_fingerprint=header.encoder_fingerprint, space=header.space)
    slides = _slides(config, features)
    labels = [slide.label for slide in slides if slide.label]
    classes = order_classes(labels, bank) if labels else list(bank.class_names())
    bags = load_bags(
        features,
        [slide.slide_id for slide in slides],
        space=header.space,
        nontask_of=bank if config.filter_nontask else None,
    )
    used = [slide for slide in slides if slide.slide_id in bags.bags]
    if not used:
        raise InputError(f"features={config.features}: no slide of the labels has a usable feature file")
    pooling = _pooling(config, bank, bags, classes)
    logits = np.stack([slide_logits(bags.bags[slide.slide_id], bank, classes, pooling) for slide in used])
    probabilities = softmax(logits)
    out = Path(config.out)
    table = predictions_table(used, probabilities, classes, fold=0, part="test")
    publish_text(out / "predictions.csv", table.to_csv(index=False))
    cell = {
        "aggregator": "zeroshot",
        "init": "text",
        "space": header.space,
        "encoder": header.encoder,
        "encoder_fingerprint": header.encoder_fingerprint,
        "features_folder": features.path.name,
        "prompt_set": bank.prompt_set,
        "prompt_set_sha256": bank.prompt_set_sha256,
        "split_name": "",
        "split_sha256": "",
        "scheme": "",
        "shots": 0,
        "fold": 0,
        "seed": 0,
        "pooling": {"rule": pooling.rule, "top_j": pooling.top_j},
        "max_epochs": 0,
    }
    publish_json(out / "cell.json", {"cell": address({**cell, "features": address(dict(bags.content))})[:12], **cell})
    metrics = _metrics(used, probabilities, classes)
    publish_json(out / "metrics.json", {"test": metrics})
    publish_json(
        out / "summary.json",
        {
            "command": "zeroshot",
            "slides": len(used),
            "pooling": cell["pooling"],
            "metrics": metrics,
            "unused": bags.unused,
        },
    )
    write_done(out)
    figures = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if isinstance(value, float))
    rule = f"{pooling.rule}, J = {pooling.n_chosen or 'all'}"
    console.print(f"zero-shot ({rule}) of {len(used)} slides -> {out}  {figures}", soft_wrap=True, markup=False)
    for slide_id, reason in bags.unused.items():
        console.print(f"not used: slide={slide_id} {reason}", soft_wrap=True, markup=False)
    return PARTLY_FAILED if any(reason != NO_TISSUE for reason in bags.unused.values()) else 0


def _slides(config: DictConfig, features: FeatureFolder) -> list[CohortRow]:
    """The slides of the labels table, else every slide of the folder."""
    if config.labels is None:
        return [CohortRow(slide_id=slide_id, patient_id="", label="", site=None) for slide_id in features.slide_ids()]
    return list(read_labels(Path(config.labels), slide_is_patient=config.slide_is_patient).rows)


def _pooling(config: DictConfig, bank: TextBank, bags: BagSet, classes: list[str]) -> Pooling:
    """The rule; J from the validation part of a fold when asked for."""
    background = bank.background() if bank.background() in classes else None
    wanted = settings.top_j(config.pooling.top_j)
    pooling = resolve_pooling(config.pooling.rule, 1 if wanted == "auto" else int(wanted), background=background)
    if wanted != "auto":
        return pooling
    if config.split is None or config.fold is None:
        raise InputError("pooling.top_j=auto chooses on a validation part: give split=… and fold=…")
    val = [row for row in read_split(Path(config.split)).part(config.fold, "val") if row.slide_id in bags.bags]
    if not val:
        raise InputError(f"pooling.top_j=auto: fold {config.fold} of {config.split} has no usable validation slide")
    chosen = [bags.bags[row.slide_id] for row in val]
    labels = np.array([classes.index(row.label) for row in val])
    return Pooling(rule=pooling.rule, top_j=choose_top_j(chosen, labels, bank, classes, pooling))


def _metrics(slides: list[CohortRow], probabilities: np.ndarray, classes: list[str]) -> dict[str, object]:
    if not all(slide.label for slide in slides):
        return {}
    labels = np.array([classes.index(slide.label) for slide in slides])
    return dict(classification_metrics(labels, probabilities, classes))
