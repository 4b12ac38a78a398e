"""`promptmil heatmap`: run + features (+ slides) -> contributions per tile, PNG overview, GeoJSON for QuPath."""

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import shapely
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from feature_extraction.commands.licence import check_licence
from feature_extraction.errors import DamagedFileError, InputError, SlideError
from feature_extraction.files import address, is_valid, publish, publish_json, read_json, sha256_of_file
from feature_extraction.pseudonyms import redact
from feature_extraction.slide import fingerprint_file
from feature_extraction.slides import read_slide_table
from mil.backdrop import backdrop_of
from mil.checkpoint import TENSORS, ModelCard
from mil.commands import settings
from mil.contributions import Explanation, auc_against, explain
from mil.explain import (
    LoadedRun,
    load_runs,
    open_features,
    require_one_method,
    require_stored_prediction,
    runs_by_slide,
)
from mil.feature_folder import FeatureFolder, load_bags
from mil.heatmap import Caption, overview_png
from mil.layers import parquet_bytes, regions_geojson, tile_table, tiles_geojson
from mil.truth import covered_fraction, read_regions

PARTLY_FAILED = 3
POSITIVE_FRACTION = 0.5
"""A tile counts as inside a true region when at least this share of it lies there."""


def run(config: DictConfig) -> int:
    """Map every slide asked for; returns the exit code."""
    console = Console(stderr=True)
    runs = load_runs(settings.optional_path(config.run), settings.optional_path(config.runs))
    require_one_method(runs)
    check_licence(config.licence_profile, runs[0].card, console)
    features = open_features(settings.paths(config.features), runs)
    chosen = _chosen(config, runs, features)
    paths = {} if config.slides is None else {r.slide_id: r.path for r in read_slide_table(Path(config.slides)).records}
    out = Path(config.out)
    done: list[dict[str, object]] = []
    failures: list[str] = []
    for slide_id, loaded in track(chosen.items(), "maps", console=console, transient=True):
        try:
            done.append(_map_slide(slide_id, loaded, features, paths.get(slide_id), config))
        except (DamagedFileError, SlideError) as error:
            failures.append(_without_names(str(error), slide_id, paths.get(slide_id)))
        except OSError as error:
            failures.append(
                f"slide={slide_id}: a file could not be read or written: {error.strerror or type(error).__name__}"
            )
    summary: dict[str, object] = {"command": "heatmap", "maps": len(done), "failures": failures, "slides": done}
    if config.truth is not None:
        summary["tile_auc"] = _mean_aucs(done)
    publish_json(out / "summary.json", summary)
    console.print(f"{len(done)} maps -> {out}", soft_wrap=True, markup=False)
    if config.truth is not None:
        console.print(f"tile AUC against the truth: {json.dumps(summary['tile_auc'])}", soft_wrap=True, markup=False)
    for line in failures:
        console.print(f"failed: {line}", soft_wrap=True, markup=False)
    return PARTLY_FAILED if failures else 0


def _without_names(text: str, slide_id: str, path: Path | None) -> str:
    """A message about a slide without the names of its file and folders."""
    return text if path is None else redact(text, path, slide_id)


def _chosen(config: DictConfig, runs: list[LoadedRun], features: Sequence[FeatureFolder]) -> dict[str, LoadedRun]:
    """Each slide with the run that explains it."""
    is_single = config.run is not None
    chosen = dict.fromkeys(features[0].slide_ids(), runs[0]) if is_single else runs_by_slide(runs)
    if config.slide_ids is None:
        return chosen
    unknown = [slide_id for slide_id in config.slide_ids if slide_id not in chosen]
    if unknown:
        raise InputError(f"slide_ids: {', '.join(unknown)} not among the slides of features=… and the runs' test parts")
    return {slide_id: chosen[slide_id] for slide_id in config.slide_ids}


def _map_slide(
    slide_id: str, loaded: LoadedRun, features: Sequence[FeatureFolder], path: Path | None, config: DictConfig
) -> dict[str, object]:
    """Write the files of one slide; returns its line of the summary."""
    card = loaded.card
    wanted = _address(slide_id, loaded, features, path, config)
    record = Path(config.out) / ".work" / f"{slide_id}.json"
    if is_valid(record, lambda file: _check_map(file, wanted)):
        return dict(cast("dict[str, object]", read_json(record)["line"]))
    bags = load_bags(features, [slide_id], space=card.space, nontask_of=loaded.nontask_bank())
    if slide_id in bags.unused:
        raise DamagedFileError(f"slide={slide_id}: {bags.unused[slide_id]}")
    explanations = explain(loaded.aggregator, loaded.task, bags.bags[slide_id])
    fine = explanations[0]
    require_stored_prediction(loaded, slide_id, dict(zip(card.classes, fine.probabilities.tolist(), strict=True)))
    label, shown = _label(loaded, slide_id), _shown(fine, card)
    caption = Caption(
        class_name=card.classes[shown],
        classes=card.classes,
        label=label,
        model=f"{card.aggregator.get('name')} {loaded.folder.name}",
    )
    backdrop = backdrop_of(slide_id, path, features[0].open(slide_id).header)
    files: dict[str, str] = {}
    for explanation, infix in zip(explanations, ("", ".coarse"), strict=False):
        content = {
            ".tiles.parquet": parquet_bytes(tile_table(explanation, card.classes, card.concepts)),
            ".tiles.geojson.gz": tiles_geojson(explanation, card.classes),
            ".regions.geojson": regions_geojson(explanation, shown, card.classes[shown], config.region_share),
            ".png": overview_png(explanation, shown, backdrop, caption),
        }
        for suffix, data in content.items():
            name = f"{slide_id}{infix}{suffix}"
            publish(Path(config.out) / name, data)
            files[name] = sha256_of_file(Path(config.out) / name)
    line: dict[str, object] = {
        "slide_id": slide_id,
        "run": loaded.folder.name,
        "label": label,
        "shown": card.classes[shown],
        "layer": "evidence" if fine.is_sparse else "contribution",
        "logits": dict(zip(card.classes, fine.logits.tolist(), strict=True)),
        "probabilities": dict(zip(card.classes, fine.probabilities.tolist(), strict=True)),
    }
    if config.truth is not None and label in card.classes and label != card.background:
        region = read_regions(Path(config.truth) / f"{slide_id}.geojson")
        line |= _aucs(fine, card.classes.index(label), region)
    publish_json(record, {"address": wanted, "files": files, "line": line})
    return line


def _shown(explanation: Explanation, card: ModelCard) -> int:
    """The predicted class; the strongest rival of the background, whose logit is 0 by definition and map empty."""
    is_background = np.array([name == card.background for name in card.classes])
    if not is_background[explanation.probabilities.argmax()]:
        return int(explanation.probabilities.argmax())
    return int(np.where(is_background, -np.inf, explanation.logits).argmax())


def _address(
    slide_id: str, loaded: LoadedRun, features: Sequence[FeatureFolder], path: Path | None, config: DictConfig
) -> str:
    """What determines a map; a map that has this address already is not made again."""
    truth = None if config.truth is None else Path(config.truth) / f"{slide_id}.geojson"
    return address(
        {
            "model": sha256_of_file(loaded.folder / TENSORS),
            "features": [folder.open(slide_id).content_sha256 for folder in features],
            "slide": None if path is None else fingerprint_file(path),
            "truth": None if truth is None or not truth.is_file() else sha256_of_file(truth),
            "region_share": config.region_share,
            "version": importlib.metadata.version("promptmil"),
        }
    )


def _check_map(record: Path, wanted: str) -> None:
    """Raise unless this record is of the wanted map and its files are as they were written."""
    content = read_json(record)
    files = content.get("files")
    if content.get("address") != wanted or not isinstance(files, dict):
        raise DamagedFileError(f"{record.name}: of another map")
    for name, expected in files.items():
        if sha256_of_file(record.parent.parent / str(name)) != expected:
            raise DamagedFileError(f"{name}: not as it was written")


def _aucs(explanation: Explanation, column: int, region: shapely.Geometry) -> dict[str, object]:
    """How well the layers of the true class find the true regions."""
    bag = explanation.bag
    is_inside = covered_fraction(region, bag.coords_lv0, bag.size_lv0) >= POSITIVE_FRACTION
    return {
        "auc_evidence": auc_against(explanation.evidence[:, column], is_inside),
        "auc_contribution": auc_against(explanation.contribution[:, column], is_inside),
        "auc_attention": auc_against(explanation.attention[:, column], is_inside),
        "positive_tiles": int(is_inside.sum()),
        "tiles": len(is_inside),
    }


def _mean_aucs(lines: list[dict[str, object]]) -> dict[str, object]:
    """Mean over the slides where the AUC is defined."""
    means: dict[str, object] = {}
    for name in ("auc_evidence", "auc_contribution", "auc_attention"):
        values = np.array([line[name] for line in lines if name in line], dtype=float)
        values = values[np.isfinite(values)]
        means[name] = round(float(values.mean()), 4) if len(values) else None
        means["slides"] = len(values)
    return means


def _label(loaded: LoadedRun, slide_id: str) -> str:
    labels = loaded.predictions.loc[loaded.predictions["slide_id"] == slide_id, "label"]
    return "" if labels.empty or labels.isna().any() else str(labels.iloc[0])
