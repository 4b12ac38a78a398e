"""A case on one page: what is predicted, what it rests on, and how far the map can be trusted.

The page is filled from the JSON beside it and from nothing else: each number and name on it stands in an element whose
``data-key`` says where in the JSON it is from. Numbers are rounded to the digits shown.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from typing import cast, get_args

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from feature_extraction.slide import Slide
from mil.heatmap.about import USE
from mil.heatmap.exports.mapped import Mapped
from mil.heatmap.exports.regions import Side
from mil.heatmap.exports.top_tiles import TopTile, open_slide, top_tiles
from mil.heatmap.picture import bare_png

TEMPLATE = "case_report.html.j2"
TILES = 7
"""Of each side: a row of the page."""
CONCEPTS = 5
"""Rows of the concept table on the page; the JSON has all."""
CLASSES = 6
"""Rows of the table of classes on the page; the JSON has all."""
MINUS = "\N{MINUS SIGN}"
FIGURES = {
    "aopc": "AOPC: fall of the probability, strongest tiles dropped first",
    "gain": "Symmetric relevance gain: weakest dropped first, less strongest first",
    "sufficiency": "Sufficiency: the strongest tiles alone, less as many at random",
    "necessity": "Necessity: without them, beside as many dropped at random",
    "smallest_k": "Tiles that are enough for the prediction",
}
"""What the figures of `mil.heatmap.faithfulness` are called."""


def case_report(mapped: Mapped) -> tuple[dict[str, object], str]:
    """The JSON's content and the page.

    Args:
        mapped: The map.

    Raises:
        SlideError: The slide cannot be opened or read.
    """
    slide = open_slide(mapped.explanation.bag.slide_id, mapped.path)
    if slide is None:
        tiles = _tiles(mapped, None)
    else:
        with slide:
            tiles = _tiles(mapped, slide)
    picture, limit = bare_png(mapped.explanation, mapped.shown, mapped.backdrop)
    content = _content(mapped, tiles, limit)
    pictures: dict[Side, list[str]] = {side: [tile.data_url for tile in of_side] for side, of_side in tiles.items()}
    return content, _page(content, picture, pictures)


def _tiles(mapped: Mapped, slide: Slide | None) -> dict[Side, list[TopTile]]:
    return {side: top_tiles(mapped, mapped.shown, side, TILES, slide) for side in get_args(Side)}


def _content(mapped: Mapped, tiles: Mapping[Side, Sequence[TopTile]], limit: float) -> dict[str, object]:
    """Everything that the page may say, as plain data."""
    explanation, about, shown = mapped.explanation, mapped.about, mapped.shown
    bag, mpp = explanation.bag, mapped.place.slide_mpp
    return {
        "slide_id": bag.slide_id,
        "use": USE,
        "predicted": about["predicted"],
        "label": about["label"] or None,
        "learned_from": about["learned_from"],
        "classes": [
            {"name": name, "probability": probability, "logit": logit}
            for name, probability, logit in zip(
                mapped.classes, explanation.probabilities.tolist(), explanation.logits.tolist(), strict=True
            )
        ],
        "prediction_set": about.get("prediction_set"),
        "shown": mapped.classes[shown],
        "map": {
            "layer": mapped.layer,
            "tiles": len(bag),
            "tile_um": bag.size_lv0[0] * mpp[0],
            "strongest": limit,
            "contributions": float(explanation.contribution[:, shown].sum()),
            "other_magnification": float(explanation.elsewhere[shown]),
            "bias": float(explanation.bias[shown]),
            "logit": float(explanation.logits[shown]),
        },
        "top_tiles": {side: [_plain(tile) for tile in of_side] for side, of_side in tiles.items()},
        "concepts": _rows(mapped.concepts),
        "faithfulness": _figures(about.get("faithfulness"), mapped.layer),
        "stability": about.get("stability"),
        "model": {
            **cast("dict[str, object]", about["model"]),
            "run": about["run"],
            "encoder": about["encoder"],
            "encoder_fingerprint": about["encoder_fingerprint"],
            "tile_mpp": about["tile_mpp"],
            "licence": about["licence"],
            "promptmil": cast("dict[str, object]", about["versions"])["promptmil"],
        },
        "rounding": "numbers on the page are rounded to the digits shown there",
    }


def _plain(tile: TopTile) -> dict[str, object]:
    return {name: value for name, value in asdict(tile).items() if name != "pixels"}


def _rows(concepts: pd.DataFrame) -> list[dict[str, object]]:
    """The concepts, those that add or take most first; nan, where nothing was dropped, is None."""
    rows = cast("list[dict[str, object]]", concepts.astype(object).where(concepts.notna(), None).to_dict("records"))
    return sorted(rows, key=lambda row: -abs(cast("float", row["contribution"])))


def _figures(report: object, layer: str) -> dict[str, object] | None:
    """The figures of the layer that is shown, None where nothing was measured."""
    if not isinstance(report, dict):
        return None
    return {name: report[name] for name in ("how", "n_evidence", "n_random")} | {"figures": report["layers"][layer]}


def _page(content: Mapping[str, object], picture: bytes, pictures: Mapping[Side, Sequence[str]]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("mil.heatmap.exports") / TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        report=content,
        number=partial(_number, content),
        text=partial(_text, content),
        figures=FIGURES,
        n_concepts=CONCEPTS,
        n_classes=CLASSES,
        order=_by_probability(content),
        picture=base64.b64encode(picture).decode(),
        pictures=pictures,
    )


def _by_probability(content: Mapping[str, object]) -> list[int]:
    """Places of the classes, the likeliest first."""
    rows = cast("list[dict[str, float]]", content["classes"])
    return sorted(range(len(rows)), key=lambda place: -rows[place]["probability"])


def _number(content: Mapping[str, object], key: str, form: str) -> Markup:
    """A number of the JSON, rounded; a dash where there is none.

    Args:
        content: Of the JSON.
        key: Where it is, such as ``classes.0.logit``.
        form: As in Python's format, such as ``+.2f``.
    """
    value = _at(content, key)
    if value is None:
        return Markup("\N{EN DASH}")
    if not isinstance(value, int | float):
        raise TypeError(f"{key}: {value!r} is no number")
    shown = format(value, form)
    if float(shown) == 0:  # neither more nor less than nothing
        shown = shown.lstrip("+-")
    shown = shown.replace("-", MINUS)
    return Markup('<data data-key="{}" value="{}">{}</data>').format(key, repr(value), shown)


def _text(content: Mapping[str, object], key: str, length: int | None = None) -> Markup:
    """Words of the JSON, or as many letters of them."""
    return Markup('<span data-key="{}">{}</span>').format(key, str(_at(content, key))[:length])


def _at(content: Mapping[str, object], key: str) -> object:
    found: object = content
    for step in key.split("."):
        found = cast("list[object]", found)[int(step)] if isinstance(found, list) else _member(found, step)
    return found


def _member(found: object, name: str) -> object:
    return cast("Mapping[str, object]", found)[name]
