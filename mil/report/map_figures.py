"""Whether the maps of each method show what it goes by, find what they should, and agree: means over patients."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from feature_extraction.errors import InputError
from mil.cohort import listed, read_rows
from mil.metrics.bootstrap import Figures
from mil.metrics.differences import Difference, bootstrap_differences, holm
from mil.metrics.intervals import Estimate
from mil.report.map_lines import FIGURES, MapLine, read_map_lines
from mil.report.methods import named_groups, shots_text
from mil.report.pooled import PREDICTIONS
from mil.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFigures:
    """One layer of the maps of a method.

    Attributes:
        layer: Its name.
        is_shown: Whether it is what the maps show.
        less_chance: Each of `FIGURES`, less that of random tiles, with its p; empty where nothing was measured.
        p_holm: Those p, adjusted for the methods that have the layer.
        n_no_better: Slides whose AOPC random orders reach.
        n_measured: Of so many.
        auc: Against the true regions; None where these are not known.
        top20: Share of the 20 strongest tiles inside.
    """

    layer: str
    is_shown: bool
    less_chance: Mapping[str, Difference]
    p_holm: Mapping[str, float]
    n_no_better: int
    n_measured: int
    auc: Estimate | None
    top20: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodMaps:
    """The maps of one method.

    Attributes:
        name: Of the method.
        shots: Training patients per class, None for all labels, 0 for none.
        n_slides: Test slides with a map.
        left_out: Maps of slides that their run was not tested on; in no figure.
        n_random: Fewest and most random orders of a slide.
        layers: In the order of the maps.
        positive_share: Share of the tiles inside the true regions: what chance would give as the top-20 share.
        agreement: Mean rank correlation of a map with those of the other runs; None with a single run.
        n_others: How many other runs.
    """

    name: str
    shots: int | None
    n_slides: int
    left_out: int
    n_random: tuple[int, int]
    layers: tuple[LayerFigures, ...]
    positive_share: Estimate | None
    agreement: Estimate | None
    n_others: int

    @property
    def title(self) -> str:
        """The method with its shots."""
        return f"{self.name}, {shots_text(self.shots)}"


def maps_of(folders: Sequence[Path], runs: Sequence[Run], *, resamples: int, seed: int) -> list[MethodMaps]:
    """The maps of each method of a sweep, in the order of shots, then name.

    Every figure is the mean over patients of the mean over their slides, its interval from resampled patients.

    Args:
        folders: Where `promptmil heatmap` wrote maps of these runs.
        runs: Of the sweep.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: A folder holds no map, a map is of another run, none is of a test slide, or a slide has two maps of
            one method.
    """
    groups = named_groups(runs)
    group_of = {run.folder.name: place for place, (_, group) in enumerate(groups) for run in group}
    lines = read_map_lines(folders)
    strange = sorted({line.run for line in lines} - set(group_of))
    if strange:
        raise InputError(
            f"maps: made from runs that are not among those of runs=…: {listed(strange)}; give maps of these runs, or "
            "make them again with `promptmil heatmap`"
        )
    tested = {run.folder.name: _tested(run) for run in runs if run.folder.name in {line.run for line in lines}}
    by_group: defaultdict[int, list[MapLine]] = defaultdict(list)
    for line in lines:
        by_group[group_of[line.run]].append(line)
    found: list[MethodMaps] = []
    for place, (name, group) in enumerate(groups):
        counted = [line for line in by_group[place] if line.slide_id in tested[line.run]]
        if counted:
            shots = group[0].cell.get("shots")
            ids = [tested[line.run][line.slide_id] for line in counted]
            maps = _Maps(lines=counted, patient_ids=ids, resamples=resamples, seed=seed)
            left_out = len(by_group[place]) - len(counted)
            found.append(_of_method(name, shots if isinstance(shots, int) else None, left_out, maps))
    if not found:
        raise InputError(
            "maps: none is of a slide that its run was tested on; make them with `promptmil heatmap runs=…`"
        )
    return sorted(_adjusted(found), key=lambda one: (one.shots is None, one.shots or 0, one.name))


def map_warnings(maps: Sequence[MethodMaps]) -> list[str]:
    """Maps that are not counted, and methods whose maps are not shown to tell what they go by."""
    said: list[str] = []
    for one in maps:
        if one.left_out:
            said.append(
                f"{one.title}: {one.left_out} maps are of slides that their run was not tested on, and are not counted."
            )
        for layer in one.layers:
            if layer.is_shown and layer.less_chance and not _is_faithful(layer):
                values = ", ".join(
                    f"{label} {layer.less_chance[name].estimate.value:+.2f}"
                    for name, label in (("aopc", "AOPC"), ("gain", "relevance gain"))
                )
                said.append(
                    f"{one.title}: its maps ({layer.layer}) are not shown to do better than random orders of the tiles "
                    f"({values} less random): do not read them as what the model goes by."
                )
    return said


def _is_faithful(layer: LayerFigures) -> bool:
    """Whether the intervals are above zero; a p has no room for many methods, as resamples end its digits."""
    return all(layer.less_chance[name].estimate.low > 0 for name in ("aopc", "gain"))


def _tested(run: Run) -> dict[str, str]:
    """Each test slide of a run with its patient."""
    _, rows = read_rows(run.folder / PREDICTIONS)
    return {row["slide_id"]: row["patient_id"] for row in rows.values() if row["part"] == "test"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maps:
    """The maps of one method and how their figures are drawn again."""

    lines: Sequence[MapLine]
    patient_ids: Sequence[str]
    resamples: int
    seed: int

    def mean(self, values: Sequence[float | None]) -> Difference | None:
        """Over patients of the mean over their slides, where there is a value; None where no slide has one."""
        rows = [place for place, value in enumerate(values) if value is not None]
        if not rows:
            return None
        ids = [self.patient_ids[row] for row in rows]
        figures = _mean_over_patients(np.array([values[row] for row in rows], dtype=float), ids)
        return bootstrap_differences(figures, ids, [""] * len(ids), resamples=self.resamples, seed=self.seed)["mean"]

    def estimate(self, values: Sequence[float | None]) -> Estimate | None:
        """The same without p."""
        found = self.mean(values)
        return None if found is None else found.estimate

    def layer(self, name: str, shown: str) -> LayerFigures:
        """The figures of one layer."""
        lines = self.lines
        figures = {one: self.mean([line.less_chance.get(name, {}).get(one) for line in lines]) for one in FIGURES}
        return LayerFigures(
            layer=name,
            is_shown=name == shown,
            less_chance={one: found for one, found in figures.items() if found is not None},
            p_holm={},
            n_no_better=sum(line.is_no_better.get(name, False) for line in lines),
            n_measured=sum(name in line.is_no_better for line in lines),
            auc=self.estimate([line.auc.get(name) for line in lines]),
            top20=self.estimate([line.top20.get(name) if name in line.auc else None for line in lines]),
        )


def _mean_over_patients(values: Float64[np.ndarray, " slide"], patient_ids: Sequence[str]) -> Figures:
    n_slides = Counter(patient_ids)
    share = np.array([1 / n_slides[patient] for patient in patient_ids])

    def figures(weights: Float64[np.ndarray, "resample slide"]) -> dict[str, Float64[np.ndarray, " resample"]]:
        return {"mean": weights @ (share * values) / (weights @ share)}

    return figures


def _of_method(name: str, shots: int | None, left_out: int, maps: _Maps) -> MethodMaps:
    lines = maps.lines
    twice = [slide_id for slide_id, times in Counter(line.slide_id for line in lines).items() if times > 1]
    if twice:
        raise InputError(f"maps: {name} has two maps of slide {listed(sorted(twice))}; give each slide's map once")
    shown = Counter(line.shown for line in lines).most_common(1)[0][0]
    n_random = [line.n_random for line in lines if line.less_chance]
    return MethodMaps(
        name=name,
        shots=shots,
        n_slides=len(lines),
        left_out=left_out,
        n_random=(min(n_random, default=0), max(n_random, default=0)),
        layers=tuple(
            maps.layer(layer, shown)
            for layer in dict.fromkeys(layer for line in lines for layer in (*line.less_chance, *line.auc))
        ),
        positive_share=maps.estimate([line.positive_share if line.auc else None for line in lines]),
        agreement=maps.estimate([line.agreement for line in lines]),
        n_others=max(line.n_others for line in lines),
    )


def _adjusted(maps: Sequence[MethodMaps]) -> list[MethodMaps]:
    """With each figure's p adjusted for the methods that have the layer."""
    families: defaultdict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for number, one in enumerate(maps):
        for layer in one.layers:
            for figure, found in layer.less_chance.items():
                families[layer.layer, figure][number] = found.p
    p_holm = {key: dict(zip(of, holm(list(of.values())), strict=True)) for key, of in families.items()}
    return [
        replace(
            one,
            layers=tuple(
                replace(layer, p_holm={name: p_holm[layer.layer, name][number] for name in layer.less_chance})
                for layer in one.layers
            ),
        )
        for number, one in enumerate(maps)
    ]
