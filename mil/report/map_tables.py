"""What is known of the maps, as tables for people and as ``maps.csv`` with every digit."""

import csv
import io
import math
from collections.abc import Iterator, Sequence

from mil.metrics.differences import Difference
from mil.metrics.intervals import Estimate
from mil.report.map_figures import LayerFigures, MethodMaps
from mil.report.map_lines import FIGURES
from mil.report.methods import shots_text
from mil.report.page import Table
from mil.report.readable import interval_text, p_text
from mil.report.results_file import safe_text

COLUMNS = (
    *("method", "shots", "layer", "is_shown", "figure", "value", "low", "high", "p", "p_holm"),
    *("n_patients", "n_slides", "reason"),
)
_LABELS = {
    "aopc": "AOPC",
    "gain": "relevance gain",
    "sufficiency": "sufficiency",
    "necessity": "necessity",
    "smallest_k": "smallest K ↓",
}


def map_tables(maps: Sequence[MethodMaps]) -> list[Table]:
    """Faithfulness, localisation and agreement, a row a method and layer; those with nothing to show are left out."""
    pairs = [(one, layer) for one in maps for layer in one.layers]
    measured = [(one, layer) for one, layer in pairs if layer.less_chance]
    located = [(one, layer) for one, layer in pairs if layer.auc is not None]
    agreeing = [one for one in maps if one.agreement is not None]
    found = [_faithfulness(measured)] if measured else []
    found += [_localisation(located)] if located else []
    return [*found, _agreement(agreeing)] if agreeing else found


def _faithfulness(pairs: Sequence[tuple[MethodMaps, LayerFigures]]) -> Table:
    fewest, most = min(one.n_random[0] for one, _ in pairs), max(one.n_random[1] for one, _ in pairs)
    n_random = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return Table(
        title="Do the maps show what the model goes by?",
        columns=("method", "labels", "layer", "patients", "slides", *_LABELS.values(), "no better than random"),
        rows=tuple(
            (
                *_lead(one, layer),
                *_counts(layer.less_chance["aopc"].estimate),
                *(_difference_text(layer.less_chance[name], layer.p_holm[name]) for name in FIGURES),
                f"{layer.n_no_better} of {layer.n_measured}",
            )
            for one, layer in pairs
        ),
        note="Tiles are dropped in the order of the layer, and the probability of the explained class is looked at; "
        f"each figure less that of {n_random} random orders or sets of tiles of the same slide. Means over patients, "
        "with 95 % intervals from resampled patients; p is of no difference from random, adjusted for the number of "
        "methods (Holm). "
        "AOPC: how far the probability falls; relevance gain: weakest first less strongest first; sufficiency and "
        "necessity: keeping and dropping the strongest tiles alone; smallest K: how many of them give .95 of the "
        "probability, ↓ less is better. No better than random: slides whose AOPC random orders reach (p above .05).",
        n_text_columns=3,
    )


def _localisation(pairs: Sequence[tuple[MethodMaps, LayerFigures]]) -> Table:
    return Table(
        title="Do the maps find the true regions?",
        columns=("method", "labels", "layer", "patients", "slides", "tile AUC", "top 20 inside", "tiles inside"),
        rows=tuple(
            (*_lead(one, layer), *_counts(layer.auc), *map(_text, (layer.auc, layer.top20, one.positive_share)))
            for one, layer in pairs
        ),
        note="Slides with a known region, for their true class. Tile AUC: tiles with at least half of their area "
        "inside against the others. Top 20 inside: share of the 20 strongest tiles; beside it the share of all tiles, "
        "which is chance. Means over patients with 95 % intervals from resampled patients.",
        n_text_columns=3,
    )


def _agreement(maps: Sequence[MethodMaps]) -> Table:
    return Table(
        title="Do the maps of other folds and seeds agree?",
        columns=("method", "labels", "patients", "slides", "other runs", "rank correlation"),
        rows=tuple(
            (one.name, shots_text(one.shots), *_counts(one.agreement), f"{one.n_others}", _text(one.agreement))
            for one in maps
        ),
        note="Mean Spearman correlation of a slide's map with those that the method's other runs make of it, most of "
        "which were trained on that slide; 1 is the same order of tiles. Means over patients with 95 % intervals.",
        n_text_columns=2,
    )


def maps_csv(maps: Sequence[MethodMaps]) -> str:
    """One line a figure; ``p`` and ``p_holm`` where it is a difference from random."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for one in maps:
        lead = {"method": safe_text(one.name), "shots": "all" if one.shots is None else str(one.shots)}
        writer.writerows({**lead, **cells} for cells in _lines(one))
    return stream.getvalue()


def _lines(one: MethodMaps) -> Iterator[dict[str, str]]:
    for layer in one.layers:
        lead = {"layer": layer.layer, "is_shown": str(layer.is_shown).lower()}
        for name, found in layer.less_chance.items():
            p = {"p": _number(found.p), "p_holm": _number(layer.p_holm[name])}
            yield {**lead, "figure": f"{name}_less_random", **_cells(found.estimate), **p}
        for name, estimate in (("tile_auc", layer.auc), ("top20", layer.top20)):
            if estimate is not None:
                yield {**lead, "figure": name, **_cells(estimate)}
    for name, estimate in (("tiles_inside", one.positive_share), ("rank_correlation", one.agreement)):
        if estimate is not None:
            yield {"figure": name, **_cells(estimate)}


def _cells(estimate: Estimate) -> dict[str, str]:
    return {
        "value": _number(estimate.value),
        "low": _number(estimate.low),
        "high": _number(estimate.high),
        "n_patients": str(estimate.n_patients),
        "n_slides": str(estimate.n_slides),
        "reason": estimate.reason,
    }


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))


def _lead(one: MethodMaps, layer: LayerFigures) -> tuple[str, str, str]:
    return one.name, shots_text(one.shots), f"{layer.layer} (shown)" if layer.is_shown else layer.layer


def _counts(estimate: Estimate | None) -> tuple[str, str]:
    return ("", "") if estimate is None else (f"{estimate.n_patients}", f"{estimate.n_slides}")


def _text(estimate: Estimate | None) -> str:
    return "" if estimate is None else interval_text(estimate)


def _difference_text(found: Difference, p_holm: float) -> str:
    one = found.estimate
    if one.reason:
        return f"{one.value:+z.2f} (no interval)"
    return f"{one.value:+z.2f} ({one.low:+z.2f} to {one.high:+z.2f}), p {p_text(p_holm)}"
