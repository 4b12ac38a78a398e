"""One slide's tile tables as the data of its page: every number with all its bits."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from feature_extraction.errors import DamagedFileError
from feature_extraction.header import FeatureHeader
from mil.heatmap.faithfulness import Faithfulness, FaithfulnessReport, Figure, trust_line
from mil.heatmap.layers import METADATA_KEY
from mil.palette import AGAINST, COLOURS, SUPPORT
from mil.viewer.layout import FORMAT
from mil.viewer.script import as_base64

LAYERS = ("contribution", "evidence", "attention", "similarity", "occlusion")
ABOUT = (
    *("slide_id", "label", "run", "shown", "layer", "predicted", "logits", "probabilities", "use"),
    *("model", "classes", "background", "bias", "encoder", "space", "licence"),
)
"""What a page shows of what a table says of itself."""
SHARE = "share "
"""Begins the name of a concept's column."""
TABLE, COARSE, CONCEPTS = ".tiles.parquet", ".coarse", ".concepts.csv"
NUMBERS, PLACES = "<f8", "<i4"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleTable:
    """A slide's tiles at one magnification.

    Attributes:
        tiles: The tile table of `promptmil heatmap`.
        about: What it says of itself.
        concepts: The concept table, None where there are no concepts.
        header: Of the feature file that the tiles are from.
    """

    tiles: pd.DataFrame
    about: Mapping[str, object]
    concepts: pd.DataFrame | None
    header: FeatureHeader


def table_paths(maps: Path, slide_id: str, n_scales: int) -> list[Path]:
    """The tile table of each magnification, the finest first."""
    return [maps / f"{slide_id}{COARSE if scale else ''}{TABLE}" for scale in range(n_scales)]


def read_scales(maps: Path, slide_id: str, headers: Sequence[FeatureHeader]) -> list[ScaleTable]:
    """Read what `promptmil heatmap` wrote of a slide.

    Args:
        maps: Its ``out``.
        slide_id: The slide.
        headers: Of the feature file of each magnification, the finest first.

    Raises:
        DamagedFileError: A table does not say what it is.
        OSError: A table is missing.
    """
    scales: list[ScaleTable] = []
    for path, header in zip(table_paths(maps, slide_id, len(headers)), headers, strict=True):
        content = pq.read_table(path)
        about = json.loads((content.schema.metadata or {}).get(METADATA_KEY, b"{}"))
        if not set(ABOUT) <= set(about):
            raise DamagedFileError(
                f"slide={slide_id}: {path.name} is no tile table of promptmil heatmap; make it again"
            )
        concepts = path.with_name(path.name.removesuffix(TABLE) + CONCEPTS)
        scales.append(
            ScaleTable(
                tiles=content.to_pandas(),
                about=cast("dict[str, object]", about),
                concepts=pd.read_csv(concepts) if concepts.is_file() else None,
                header=header,
            )
        )
    return scales


def slide_data(scales: Sequence[ScaleTable]) -> dict[str, object]:
    """Everything that a slide's page shows but the picture, as plain data."""
    about, header = scales[0].about, scales[0].header
    return {
        "format": FORMAT,
        **{name: about[name] for name in ABOUT},
        "decision": decision(about),
        "bounds_lv0": json.loads(header.bounds_lv0),
        "slide_mpp": [header.slide_mpp_x, header.slide_mpp_y],
        "colours": {"for": list(SUPPORT), "against": list(AGAINST), "amount": COLOURS[0]},
        "scales": [_scale(one) for one in scales],
    }


def index_row(scales: Sequence[ScaleTable]) -> dict[str, object]:
    """A slide's line in the table of the cohort.

    ``agrees`` is whether the decision is the label, None where one of them is unknown; ``gain`` and ``p`` are the
    symmetric relevance gain of the shown layer and its permutation p, None where they were not measured.
    """
    about = scales[0].about
    decided, label = decision(about), str(about["label"])
    probabilities = cast("dict[str, float]", about["probabilities"])
    report = _report(about)
    gain = None if report is None else report.layers[str(about["layer"])].gain
    stability = about.get("stability")
    return {
        "slide_id": about["slide_id"],
        "label": label,
        "predicted": decided or about["predicted"],
        "probability": probabilities.get(decided),
        "agrees": decided == label if decided and label else None,
        "tiles": sum(one.tiles["class"].eq(one.tiles["class"].iloc[0]).sum().item() for one in scales),
        "gain": None if gain is None else gain.value,
        "p": None if gain is None else gain.p,
        "stability": stability.get("rank_correlation") if isinstance(stability, dict) else None,
        "run": about["run"],
    }


def decision(about: Mapping[str, object]) -> str:
    """The predicted class (``A;B`` where there are several), empty for a task that decides nothing."""
    said = re.fullmatch(r"predicted (.*?)(?: \(p = \d\.\d\d\))?", str(about["predicted"]), re.DOTALL)
    return "" if said is None else said[1]


def _scale(one: ScaleTable) -> dict[str, object]:
    tiles, classes = one.tiles, cast("list[str]", one.about["classes"])
    of_class = {name: cast("pd.DataFrame", tiles[tiles["class"] == name]) for name in classes}
    first = of_class[classes[0]]
    shares = [column for column in tiles.columns if column.startswith(SHARE)]
    return {
        "tile_um": one.header.tile_mpp * one.header.tile_size_px,
        "tile_mpp": one.header.tile_mpp,
        "size_lv0": list(one.header.size_lv0()),
        "step_lv0": list(one.header.tile_step_lv0()),
        "x": as_base64(first["x_lv0"].to_numpy(), PLACES),
        "y": as_base64(first["y_lv0"].to_numpy(), PLACES),
        "layers": {name: _columns(rows, LAYERS) for name, rows in of_class.items()},
        "shares": {
            name: {column.removeprefix(SHARE): values for column, values in _columns(rows, shares).items()}
            for name, rows in of_class.items()
        },
        "concepts": [] if one.concepts is None else one.concepts.astype(object).to_dict("records"),
        "trust": trust_line(_report(one.about), str(one.about["layer"]), one.about.get("stability")),
    }


def _columns(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, str]:
    """The columns that hold numbers, by name."""
    found = {name: rows[name].to_numpy(np.float64) for name in names}
    return {name: as_base64(values, NUMBERS) for name, values in found.items() if not np.isnan(values).any()}


def _report(about: Mapping[str, object]) -> FaithfulnessReport | None:
    """The figures of faithfulness as the table's metadata holds them."""
    said = about.get("faithfulness")
    if not isinstance(said, dict):
        return None
    layers = {
        name: Faithfulness(**{figure: Figure(**values) for figure, values in figures.items()})
        for name, figures in said["layers"].items()
    }
    return FaithfulnessReport(layers=layers, how=said["how"], n_evidence=said["n_evidence"], n_random=said["n_random"])
