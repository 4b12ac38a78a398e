"""What `promptmil heatmap` found of each slide's map, read back from its ``summary.json``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from feature_extraction.errors import DamagedFileError, InputError
from feature_extraction.files import read_json

SUMMARY = "summary.json"
FIGURES = ("aopc", "gain", "sufficiency", "necessity", "smallest_k")
LESS_CHANCE = ("sufficiency", "necessity")
"""Figures whose value is less that of random tiles already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapLine:
    """One slide's map.

    Attributes:
        slide_id: The slide.
        run: Name of the folder of the run that explains it.
        shown: The layer that the map shows.
        less_chance: For each layer each of `FIGURES` less random; empty where nothing was measured.
        is_no_better: For each layer whether random orders reach its AOPC (permutation p above .05).
        n_random: Random orders it was held against.
        auc: For each layer the tile AUC against the true regions; empty where these are not known.
        top20: For each layer the share of the 20 strongest tiles inside.
        positive_share: Share of all tiles inside, None where it is not known.
        agreement: Mean rank correlation with the maps of the other runs, None without any.
        n_others: How many those are.
    """

    slide_id: str
    run: str
    shown: str
    less_chance: Mapping[str, Mapping[str, float]]
    is_no_better: Mapping[str, bool]
    n_random: int
    auc: Mapping[str, float]
    top20: Mapping[str, float]
    positive_share: float | None
    agreement: float | None
    n_others: int


def read_map_lines(folders: Sequence[Path]) -> list[MapLine]:
    """The maps of every folder.

    Raises:
        InputError: A folder is none that `promptmil heatmap` wrote, or holds no map.
        DamagedFileError: A line lacks what every map has.
    """
    return [line for folder in folders for line in _of_folder(folder)]


def _of_folder(folder: Path) -> list[MapLine]:
    path = folder / SUMMARY
    if not path.is_file():
        raise InputError(f"maps={folder}: no {SUMMARY} in it; give the folder that was `out` of `promptmil heatmap`")
    content = read_json(path)
    slides = content.get("slides")
    if content.get("command") != "heatmap" or not isinstance(slides, list) or not slides:
        raise InputError(f"maps={folder}: its {SUMMARY} lists no map; give the folder that was `out` of `heatmap`")
    return [_line(path, slide) for slide in slides]


def _line(path: Path, slide: object) -> MapLine:
    given = _mapping(slide)
    try:
        report = _mapping(given.get("faithfulness"))
        layers = {name: _mapping(figures) for name, figures in _mapping(report.get("layers")).items()}
        tiles, stability = given.get("tiles"), _mapping(given.get("stability"))
        return MapLine(
            slide_id=str(given["slide_id"]),
            run=str(given["run"]),
            shown=str(given["layer"]),
            less_chance={
                name: {one: _less_chance(one, figures[one]) for one in FIGURES} for name, figures in layers.items()
            },
            is_no_better={name: _number(_mapping(figures["aopc"])["p"]) > 0.05 for name, figures in layers.items()},
            n_random=int(_number(report.get("n_random", 0))),
            auc=dict(_starting(given, "auc_")),
            top20=dict(_starting(given, "top20_")),
            positive_share=None if tiles is None else _number(given["positive_tiles"]) / _number(tiles),
            agreement=_optional(stability.get("rank_correlation")),
            n_others=int(_number(stability.get("runs", 0))),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{path}: slide {given.get('slide_id')}: not a line of `promptmil heatmap` ({error}); make the maps again"
        ) from error


def _less_chance(name: str, figure: object) -> float:
    given = _mapping(figure)
    value = _number(given["value"])
    return value if name in LESS_CHANCE else value - _number(given["random"])


def _starting(given: Mapping[str, object], prefix: str) -> Iterator[tuple[str, float]]:
    """What is known of the layers under such a key; a layer that cannot be told is null there."""
    for name, value in given.items():
        if name.startswith(prefix) and value is not None:
            yield name.removeprefix(prefix), _number(value)


def _mapping(value: object) -> Mapping[str, object]:
    return {str(name): one for name, one in value.items()} if isinstance(value, Mapping) else {}


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def _optional(value: object) -> float | None:
    return None if value is None else _number(value)
