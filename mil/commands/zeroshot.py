"""`promptmil zeroshot`: feature files + text bank -> predictions without training."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from feature_extraction.commands.licence import check_licence
from feature_extraction.commands.settings import at_least_one
from feature_extraction.errors import InputError, SlideError
from feature_extraction.files import address, publish, publish_json, publish_text
from feature_extraction.slides import read_slide_table
from feature_extraction.text_bank import TextBank, read_bank, require_match
from mil.bag import Bag
from mil.cohort import CohortRow, read_labels
from mil.commands import settings
from mil.commands.unused import say_unused
from mil.feature_folder import BagSet, FeatureFolder, load_bags
from mil.heatmap.backdrop import backdrop_of
from mil.heatmap.class_map import class_map, class_map_png, class_table
from mil.heatmap.layers import parquet_bytes
from mil.labels import ONE_CLASS
from mil.metrics.classification import Predictions
from mil.parts import Pooling
from mil.predictions import predictions_table
from mil.runs import UNUSED, write_done
from mil.splits.file import PARTS, SplitRow, check_split, read_split
from mil.task import Outcome, Task, Words, build_task
from mil.tasks.classification import Classification
from mil.text import words_of
from mil.zeroshot import choose_top_j, pool_scores, resolve_pooling, tile_scores
from mil.zeroshot_study import (
    figures_with_intervals,
    patient_means,
    stability,
    subset_figures,
    subset_probabilities,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShot:
    """What a zero-shot prediction is made from.

    Attributes:
        features: The feature folder.
        bank: The words.
        space: Of the bags.
        classes: That slides can be of.
        used: The slides that can be predicted, each with its part.
        bags: Theirs, and why others have none.
        pooling: From tiles to the slide.
        task: What the logits mean.
    """

    features: FeatureFolder
    bank: TextBank
    space: str
    classes: list[str]
    used: list[tuple[CohortRow | SplitRow, str]]
    bags: BagSet
    pooling: Pooling
    task: Task

    @property
    def reference(self) -> int | None:
        """Where the class stands that the margin rule counts from."""
        name = self.task.reference(self.classes, _words(self.bank))
        return None if name is None else self.classes.index(name)

    def chosen(self) -> dict[str, Bag]:
        """The bags of the used slides, in their order."""
        return {row.slide_id: self.bags.bags[row.slide_id] for row, _ in self.used}


def run(config: DictConfig) -> int:
    """Predict every slide from words; returns the exit code."""
    console = Console(stderr=True)
    study = _read(config, console)
    out = Path(config.out)
    logits = np.stack(
        [
            pool_scores(tile_scores(bag, study.bank, study.classes), study.reference, study.pooling)
            for bag in study.chosen().values()
        ]
    )
    metrics = _write_task(out, study, logits, config)
    if config.maps:
        _write_maps(out, study, config, console)
    summary = {"command": "zeroshot", "slides": len(study.used), "metrics": metrics, "unused": study.bags.unused}
    publish_json(out / "summary.json", {**summary, **_cell(study, config)})
    _say(console, study.pooling, len(study.used), metrics, out)
    return say_unused(console, study.bags.unused)


def _read(config: DictConfig, console: Console) -> ZeroShot:
    """Read and match what the configuration names."""
    features = FeatureFolder(Path(config.features))
    bank = read_bank(Path(config.bank))
    header = features.header
    check_licence(config.licence_profile, header, console)
    space = "joint" if "joint" in features.spaces else header.space
    require_match(bank, encoder=header.encoder, encoder_fingerprint=header.encoder_fingerprint, space=space)
    task = build_task(settings.plain(config.task))
    if config.subsets and not isinstance(task, Classification):
        raise InputError("subsets=…: figures of prompt subsets are of task=classification; leave subsets out")
    listed = _listed(config, features, task)
    labels = [row.label for row, _ in listed if row.label]
    words = _words(bank)
    classes = task.classes(labels or bank.class_names(), words)
    ids = [row.slide_id for row, _ in listed]
    bags = load_bags([features], ids, space=space, nontask_of=bank if config.filter_nontask else None)
    used = [(row, part) for row, part in listed if row.slide_id in bags.bags]
    if not used:
        raise InputError(f"features={config.features}: no slide of the labels has a usable feature file")
    pooling = _pooling(config, bank, bags, [row for row, part in used if part == "val"], classes, task)
    task.start(classes, words, is_margin=pooling.rule == "margin", is_text=True)
    return ZeroShot(
        features=features, bank=bank, space=space, classes=classes, used=used, bags=bags, pooling=pooling, task=task
    )


def _words(bank: TextBank) -> Words:
    words = words_of(bank)
    if words is None:
        raise TypeError("a text bank has words")
    return words


def _cell(study: ZeroShot, config: DictConfig) -> dict[str, object]:
    """What `promptmil summarize` groups the predictions by."""
    header = study.features.header
    return {
        "aggregator": "zeroshot",
        "init": "text",
        "space": study.space,
        "encoder": header.encoder,
        "encoder_fingerprint": header.encoder_fingerprint,
        "features_folder": study.features.path.name,
        "prompt_set": study.bank.prompt_set,
        "prompt_set_sha256": study.bank.prompt_set_sha256,
        "split_name": "" if config.split is None else Path(config.split).stem,
        "shots": 0,
        "labels": study.task.labels.name,
        "task": type(study.task).__name__,
        "fold": int(config.fold or 0),
        "seed": 0,
        "pooling": {"rule": study.pooling.rule, "top_j": study.pooling.top_j},
        "filter_nontask": bool(config.filter_nontask),
        "max_epochs": 0,
        "licence": header.licence,
        "licence_ancestry": ", ".join(json.loads(header.licence_ancestry)),
    }


def _listed(config: DictConfig, features: FeatureFolder, task: Task) -> list[tuple[CohortRow | SplitRow, str]]:
    """The slides with their parts: those of a fold, else every slide of the labels or the folder, all test."""
    cohort = None
    if config.labels is not None:
        cohort = read_labels(Path(config.labels), slide_is_patient=config.slide_is_patient, kind=task.labels)
    if config.split is not None:
        if config.fold is None:
            raise InputError("split=… needs fold=…: predictions are listed by the parts of one fold")
        table = read_split(Path(config.split), kind=task.labels)
        check_split(table, cohort=cohort, kind=task.labels)
        return [(row, part) for part in PARTS for row in table.part(config.fold, part)]
    if cohort is not None:
        return [(row, "test") for row in cohort.rows]
    blank = [CohortRow(slide_id=slide_id, patient_id="", label="", site=None) for slide_id in features.slide_ids()]
    return [(row, "test") for row in blank]


def _pooling(
    config: DictConfig, bank: TextBank, bags: BagSet, val: list[CohortRow | SplitRow], classes: list[str], task: Task
) -> Pooling:
    """The rule; J from the validation part of a fold when asked for."""
    background = task.reference(classes, _words(bank))
    wanted = settings.top_j(config.pooling.top_j)
    pooling = resolve_pooling(config.pooling.rule, 1 if wanted == "auto" else int(wanted), background=background)
    if wanted != "auto":
        return pooling
    if task.labels is not ONE_CLASS or background not in (None, bank.background()):
        raise InputError("pooling.top_j=auto chooses for task=classification; give a number")
    if not val:
        raise InputError("pooling.top_j=auto chooses on a validation part: give split=… and fold=… with slides in val")
    chosen = [bags.bags[row.slide_id] for row in val]
    labels = np.array([classes.index(row.label) for row in val])
    return Pooling(rule=pooling.rule, top_j=choose_top_j(chosen, labels, bank, classes, pooling))


def _write_task(
    out: Path, study: ZeroShot, logits: Float64[np.ndarray, "slide class"], config: DictConfig
) -> dict[str, object]:
    """Write predictions and figures as a run folder has them; returns the figures of the test part."""
    task, classes = study.task, study.classes
    outcome = task.predict(torch.from_numpy(logits))
    _write_predictions(out, study, outcome, classes, int(config.fold or 0))
    is_test = np.array([part == "test" for _, part in study.used])
    rows = [row for row, part in study.used if part == "test"]
    metrics: dict[str, object] = {}
    published: dict[str, object] = {"test": metrics}
    if rows and all(row.label for row in rows):
        targets = task.targets([row.label for row in rows], classes)
        score = None if outcome.score is None else outcome.score[is_test]
        tested = Outcome(probabilities=outcome.probabilities[is_test], score=score)
        metrics |= task.metrics(targets, tested, classes)
        if task.labels is ONE_CLASS:
            predictions = Predictions(
                slide_ids=tuple(row.slide_id for row in rows),
                patient_ids=tuple(row.patient_id or row.slide_id for row in rows),
                classes=tuple(classes),
                labels=np.array([classes.index(row.label) for row in rows]),
                probabilities=tested.probabilities,
            )
            published["test_intervals"] = figures_with_intervals(predictions)
    if config.subsets:
        published["subsets"] = _write_subsets(out, study, outcome.probabilities, config)
    publish_json(out / "metrics.json", published)
    cell = _cell(study, config)
    content = address(dict(study.bags.content))
    publish_json(out / "cell.json", {"cell": address({**cell, "features": content})[:12], **cell})
    publish_json(out / UNUSED, study.bags.unused)
    write_done(out, ("cell.json", "metrics.json", "predictions.csv", UNUSED))
    return metrics


def _write_predictions(
    out: Path,
    study: ZeroShot,
    outcome: Outcome,
    classes: list[str],
    fold: int,
) -> None:
    """Write ``predictions.csv``, and ``patients.csv`` where patients are known."""
    parts = np.array([part for _, part in study.used])
    tables: list[pd.DataFrame] = []
    for part in dict.fromkeys(parts.tolist()):
        rows, chosen = [row for row, found in study.used if found == part], parts == part
        name = study.task.score_name
        score = None if outcome.score is None or name is None else (name, outcome.score[chosen])
        probabilities = outcome.probabilities[chosen]
        tables.append(predictions_table(rows, probabilities, classes, fold=fold, part=str(part), score=score))
    table = pd.concat(tables)
    publish_text(out / "predictions.csv", table.to_csv(index=False))
    if all(row.patient_id for row, _ in study.used):
        publish_text(out / "patients.csv", patient_means(table).to_csv(index=False))


def _write_subsets(
    out: Path, study: ZeroShot, probabilities: Float64[np.ndarray, "slide class"], config: DictConfig
) -> dict[str, object]:
    """Predict from random subsets of the prompts; returns median and quartiles of the figures of the test part."""
    n_subsets = at_least_one("subsets", config.subsets)
    drawn = subset_probabilities(
        study.chosen(), study.bank, study.classes, study.pooling, n_subsets=n_subsets, seed=int(config.seed)
    )
    ids = [row.slide_id for row, _ in study.used]
    publish_text(out / "stability.csv", stability(drawn, probabilities, ids).to_csv(index=False))
    rows = [row for row, part in study.used if part == "test"]
    if not rows or not all(row.label for row in rows):
        return {}
    is_test = np.array([part == "test" for _, part in study.used])
    labels = np.array([study.classes.index(row.label) for row in rows])
    table, spreads = subset_figures(drawn[:, is_test], labels, study.classes)
    publish_text(out / "subsets.csv", table.to_csv(index_label="subset"))
    return {name: asdict(spread) for name, spread in spreads.items()}


def _write_maps(out: Path, study: ZeroShot, config: DictConfig, console: Console) -> None:
    """Write a table and a picture of each slide's tiles by what they look like."""
    paths = {} if config.slides is None else {r.slide_id: r.path for r in read_slide_table(Path(config.slides)).records}
    note = f"prompts {study.bank.prompt_set}, encoder {study.bank.encoder}"
    for slide_id, bag in track(study.chosen().items(), "maps", console=console, transient=True):
        tiles = class_map(bag, study.bank, study.classes)
        header = study.features.open(slide_id).header
        try:
            backdrop = backdrop_of(slide_id, paths.get(slide_id), header)
        except SlideError as error:
            console.print(f"map without its slide: {error}", soft_wrap=True, markup=False)
            backdrop = backdrop_of(slide_id, None, header)
        publish(out / "maps" / f"{slide_id}.classes.parquet", parquet_bytes(class_table(tiles)))
        publish(out / "maps" / f"{slide_id}.classes.png", class_map_png(tiles, backdrop, note))


def _say(console: Console, pooling: Pooling, n_slides: int, metrics: dict[str, object], out: Path) -> None:
    figures = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if isinstance(value, float))
    rule = f"{pooling.rule}, J = {pooling.n_chosen or 'all'}"
    console.print(f"zero-shot ({rule}) of {n_slides} slides -> {out}  {figures}", soft_wrap=True, markup=False)
