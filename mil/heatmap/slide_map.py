"""Everything about one slide's map: tables, pictures, regions, and how far the map can be trusted."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float64

from feature_extraction.errors import DamagedFileError
from feature_extraction.files import address, is_valid, publish, publish_json, read_json, sha256_of_file
from feature_extraction.slide import fingerprint_file
from mil.bag import Bag
from mil.checkpoint import TENSORS, ModelCard
from mil.feature_folder import FeatureFolder, load_bags
from mil.heatmap.about import map_metadata
from mil.heatmap.agreement import agreement
from mil.heatmap.backdrop import backdrop_of
from mil.heatmap.concept_table import add_counterfactuals, concept_table
from mil.heatmap.contributions import Explanation, auc_against, explain, share_inside
from mil.heatmap.explain import LoadedRun, require_stored_prediction
from mil.heatmap.exports.chosen import export_files
from mil.heatmap.exports.mapped import Mapped
from mil.heatmap.exports.placement import place_of
from mil.heatmap.faithfulness import FaithfulnessReport, Said, measure, trust_line
from mil.heatmap.kept_tiles import Reader, reader_of
from mil.heatmap.layers import parquet_bytes, tile_table
from mil.heatmap.picture import Caption, overview_png
from mil.heatmap.prediction_set import prediction_set
from mil.heatmap.truth import covered_fraction, read_regions
from mil.runs import DONE

POSITIVE_FRACTION = 0.5
"""A tile counts as inside a true region when at least this share of it lies there."""
Occlusion = Float64[np.ndarray, "tile class"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRequest:
    """What is wanted of every slide.

    Attributes:
        out: Where the maps go.
        truth: Folder of ``<slide_id>.geojson`` with the true regions, None without.
        region_share: Share of the tiles with the strongest support: a region, and the evidence of the figures.
        is_measured: Whether faithfulness and stability are measured.
        exports: Names of the exports beside table and picture.
    """

    out: Path
    truth: Path | None
    region_share: float
    is_measured: bool
    exports: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideSource:
    """What one slide's map is made from.

    Attributes:
        slide_id: The slide.
        run: That explains it.
        others: Runs of the same method, whose maps are compared with this one's.
        features: Of each magnification.
        path: Of the slide, None when it is not at hand.
    """

    slide_id: str
    run: LoadedRun
    others: Sequence[LoadedRun]
    features: Sequence[FeatureFolder]
    path: Path | None

    def bag(self, run: LoadedRun) -> Bag:
        """The slide as a run sees it.

        Raises:
            DamagedFileError: It cannot be used.
        """
        bags = load_bags(self.features, [self.slide_id], space=run.card.space, nontask_of=run.nontask_bank())
        if self.slide_id in bags.unused:
            raise DamagedFileError(f"slide={self.slide_id}: {bags.unused[self.slide_id]}")
        return bags.bags[self.slide_id]

    def label(self) -> str:
        """As the run knows it, empty when it does not."""
        labels = self.run.predictions.loc[self.run.predictions["slide_id"] == self.slide_id, "label"]
        return "" if labels.empty or labels.isna().any() else str(labels.iloc[0])


def map_slide(source: SlideSource, request: MapRequest) -> dict[str, object]:
    """Write the files of one slide, unless they are there already; returns its line of the summary.

    Raises:
        DamagedFileError: The slide cannot be used, or the prediction differs from the one that the run stored.
        SlideError: The slide cannot be opened or read.
    """
    slide_id, wanted = source.slide_id, _address(source, request)
    record = request.out / ".work" / f"{slide_id}.json"
    if is_valid(record, lambda file: _check_map(file, wanted)):
        return dict(cast("dict[str, object]", read_json(record)["line"]))
    run, card = source.run, source.run.card
    bag = source.bag(run)
    explanations = explain(run.aggregator, run.task, bag, run.words())
    fine = explanations[0]
    require_stored_prediction(run, slide_id, dict(zip(card.classes, fine.probabilities.tolist(), strict=True)))
    shown = shown_class(fine, card)
    line: dict[str, object] = {
        "slide_id": slide_id,
        "run": run.folder.name,
        "label": source.label(),
        "learned_from": run.has_learned_from(slide_id),
        "shown": card.classes[shown],
        "layer": map_layer_name(fine),
        "predicted": prediction(run, fine),
        "logits": dict(zip(card.classes, fine.logits.tolist(), strict=True)),
        "probabilities": dict(zip(card.classes, fine.probabilities.tolist(), strict=True)),
    }
    if request.is_measured:
        others = ((one, source.bag(one) if one.card.filter_nontask else bag) for one in source.others)
        line["stability"] = agreement(fine, shown, others)
        tables = [one.predictions for one in (run, *source.others)]
        line["prediction_set"] = prediction_set(tables, card.classes, slide_id)
    files: dict[str, str] = {}
    for scale, explanation in enumerate(explanations):
        reader = reader_of(run.aggregator, bag, scale)
        about, content = _of_scale(source, request, explanation, reader, line, scale)
        if scale == 0:
            line |= about
        for suffix, data in content.items():
            name = f"{slide_id}{'.coarse' if scale else ''}{suffix}"
            publish(request.out / name, data)
            files[name] = sha256_of_file(request.out / name)
    _remove_others(record, files)
    publish_json(record, {"address": wanted, "files": files, "line": line})
    return line


def _of_scale(
    source: SlideSource,
    request: MapRequest,
    explanation: Explanation,
    reader: Reader,
    line: Mapping[str, object],
    scale: int,
) -> tuple[dict[str, object], dict[str, bytes]]:
    """What is new for the summary's line, and the files of one magnification."""
    run, card = source.run, source.run.card
    shown = card.classes.index(str(line["shown"]))
    said = Said(reader, run.task, shown)
    concepts = concept_table(explanation, card.classes, card.concepts)
    occlusion = reader.occlusion() if request.is_measured else None
    about = _localisation(source, explanation, request.truth, occlusion)
    report: FaithfulnessReport | None = None
    if request.is_measured:
        report = measure(said, relevance(explanation, shown, card, occlusion), request.region_share)
        about["faithfulness"] = None if report is None else asdict(report)
        concepts = add_counterfactuals(concepts, explanation, said, card.classes[shown])
    caption = Caption(
        class_name=card.classes[shown],
        prediction=_title(str(line["predicted"]), str(line["label"])),
        model=f"{card.aggregator.get('name')} {run.folder.name}",
        trust=trust_line(report, map_layer_name(explanation), line.get("stability")),
    )
    backdrop = backdrop_of(source.slide_id, source.path, source.features[0].open(source.slide_id).header)
    table = tile_table(explanation, card.classes, card.concepts, occlusion)
    metadata = map_metadata(run, explanation, reader, {**line, **about})
    mapped = Mapped(
        explanation=explanation,
        classes=card.classes,
        shown=shown,
        place=place_of(source.features[scale].open(source.slide_id).header),
        region_share=request.region_share,
        backdrop=backdrop,
        path=source.path,
        concept_names=card.concepts,
        concepts=concepts,
        about=metadata,
    )
    content = {
        ".tiles.parquet": parquet_bytes(table, metadata),
        ".png": overview_png(explanation, shown, backdrop, caption),
        **export_files(request.exports, mapped),
    }
    if len(concepts):
        content[".concepts.csv"] = concepts.to_csv(index=False, float_format="%.6g").encode()
    return about, content


def shown_class(explanation: Explanation, card: ModelCard) -> int:
    """The predicted class; the strongest rival of the background, whose logit is 0 by definition and map empty."""
    is_background = np.array([name == card.background for name in card.classes])
    if not is_background[explanation.probabilities.argmax()]:
        return int(explanation.probabilities.argmax())
    return int(np.where(is_background, -np.inf, explanation.logits).argmax())


def map_layer_name(explanation: Explanation) -> str:
    """Name of the layer that the map shows."""
    return "evidence" if explanation.is_sparse else "contribution"


def relevance(
    explanation: Explanation, column: int, card: ModelCard, dropped: Occlusion = None
) -> dict[str, Float64[np.ndarray, " tile"]]:
    """What each layer says of the tiles for one class; similarity counts from the background, where there is one."""
    layers = {
        "evidence": explanation.evidence[:, column],
        "contribution": explanation.contribution[:, column],
        "attention": explanation.attention[:, column],
    }
    if explanation.similarity is not None:
        background = card.classes.index(card.background) if card.background in card.classes else None
        of_class = explanation.similarity[:, column]
        is_rival = background is not None and background != column
        layers["similarity"] = of_class - explanation.similarity[:, background] if is_rival else of_class
    return layers if dropped is None else {**layers, "occlusion": dropped[:, column]}


def prediction(run: LoadedRun, explanation: Explanation) -> str:
    """What the run predicts, in the words of its task: a class with its probability, several classes, or a number."""
    classes = run.card.classes
    decided = run.task.decisions(explanation.probabilities[None], classes)
    if decided is not None:
        known = decided[0] in classes
        chance = f" (p = {explanation.probabilities[classes.index(decided[0])]:.2f})" if known else ""
        return f"predicted {decided[0]}{chance}"
    score = run.task.scores(torch.from_numpy(explanation.logits).unsqueeze(0))
    return "" if score is None else f"{run.task.score_name} {float(score[0]):.4g}"


def _title(predicted: str, label: str) -> str:
    return f"{predicted}, label {label}" if label else predicted


def _localisation(
    source: SlideSource, explanation: Explanation, truth: Path | None, dropped: Occlusion
) -> dict[str, object]:
    """How well the layers of the true class find the true regions."""
    card, label = source.run.card, source.label()
    if truth is None or label not in card.classes or label == card.background:
        return {}
    bag = explanation.bag
    region = read_regions(truth / f"{source.slide_id}.geojson")
    is_inside: Bool[np.ndarray, " tile"] = covered_fraction(region, bag.coords_lv0, bag.size_lv0) >= POSITIVE_FRACTION
    found: dict[str, object] = {"positive_tiles": int(is_inside.sum()), "tiles": len(is_inside)}
    for name, values in relevance(explanation, card.classes.index(label), card, dropped).items():
        found[f"auc_{name}"] = _finite(auc_against(values, is_inside))
        found[f"top20_{name}"] = share_inside(values, is_inside)
    return found


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _address(source: SlideSource, request: MapRequest) -> str:
    """What determines a map; a map that has this address already is not made again."""
    truth = None if request.truth is None else request.truth / f"{source.slide_id}.geojson"
    others = source.others if request.is_measured else ()
    return address(
        {
            "model": sha256_of_file(source.run.folder / TENSORS),
            "others": sorted(sha256_of_file(other.folder / DONE) for other in others),
            "features": [folder.open(source.slide_id).content_sha256 for folder in source.features],
            "slide": None if source.path is None else fingerprint_file(source.path),
            "truth": None if truth is None or not truth.is_file() else sha256_of_file(truth),
            "region_share": request.region_share,
            "is_measured": request.is_measured,
            "exports": list(request.exports),
            "version": importlib.metadata.version("promptmil"),
        }
    )


def _remove_others(record: Path, files: Mapping[str, str]) -> None:
    """Remove files of the map that was here before, which nobody must take for parts of this one."""
    if is_valid(record, read_json):
        before = read_json(record).get("files")
        for name in before if isinstance(before, dict) else ():
            if name not in files and Path(name).name == name:
                (record.parent.parent / name).unlink(missing_ok=True)


def _check_map(record: Path, wanted: str) -> None:
    """Raise unless this record is of the wanted map and its files are as they were written."""
    content = read_json(record)
    files = content.get("files")
    if content.get("address") != wanted or not isinstance(files, dict):
        raise DamagedFileError(f"{record.name}: of another map")
    for name, expected in files.items():
        if sha256_of_file(record.parent.parent / str(name)) != expected:
            raise DamagedFileError(f"{name}: not as it was written")
