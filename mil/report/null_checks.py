"""Runs on permuted labels as a check of the whole: without signal every figure must be what chance gives."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from feature_extraction.files import read_json
from mil.cell import PERMUTE_LABELS
from mil.cohort import listed
from mil.labels import NUMBER, ONE_CLASS, SEVERAL_CLASSES, TIME_TO_EVENT
from mil.metrics.across_folds import across_folds
from mil.metrics.bootstrap import RESAMPLES
from mil.metrics.intervals import Estimate, bootstrap_interval
from mil.report.methods import named_groups, shots_text
from mil.report.page import Table
from mil.report.pooled import pool, read_predictions
from mil.report.readable import READABLE
from mil.report.tested import pooled_figures
from mil.runs import Run

CHANCE: Mapping[str, tuple[str, float]] = {
    ONE_CLASS.name: ("macro_auc", 0.5),
    SEVERAL_CLASSES.name: ("macro_auc", 0.5),
    TIME_TO_EVENT.name: ("c_index", 0.5),
    NUMBER.name: ("spearman", 0.0),
}
"""Kind of label to the figure that is looked at, and its value without signal."""
TOLERANCE = 0.02
"""A mean this near to chance is no fault, however many permutations there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NullCheck:
    """One method on permuted labels.

    Attributes:
        name: Of the method, as it is called on the true labels.
        shots: Training patients per class, None for all labels.
        metric: The figure, of patients.
        chance: Its value without signal.
        permutations: Their seeds.
        estimates: The figure of the pooled test patients of each permutation with its interval, in that order.
        uneven: Permutations that lack a fold or a seed which others have.
    """

    name: str
    shots: int | None
    metric: str
    chance: float
    permutations: tuple[int, ...]
    estimates: tuple[Estimate, ...]
    uneven: tuple[int, ...]

    @property
    def title(self) -> str:
        """The method with its shots."""
        return f"{self.name}, {shots_text(self.shots)}"

    @property
    def mean(self) -> tuple[float, float, float]:
        """Mean over the permutations that define the figure, and the t interval of it; nan where undefined."""
        values = np.array([estimate.value for estimate in self.estimates])
        found = across_folds(values, n_train=1, n_test=0)
        return found.mean, found.low, found.high

    @property
    def covering(self) -> tuple[int, int]:
        """How many of the intervals over patients hold chance, and how many there are."""
        ends = [(one.low, one.high) for one in self.estimates if not math.isnan(one.low)]
        return sum(low <= self.chance <= high for low, high in ends), len(ends)

    @property
    def is_suspicious(self) -> bool:
        """Whether the mean differs from chance by more than the permutations explain, and by more than a little."""
        mean, low, high = self.mean
        return abs(mean - self.chance) > TOLERANCE and not low <= self.chance <= high and not math.isnan(low)


def real_and_null(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs on the labels as they are, and those on permuted ones."""
    nulls = [run for run in runs if run.cell.get(PERMUTE_LABELS)]
    return [run for run in runs if not run.cell.get(PERMUTE_LABELS)], nulls


def null_checks(runs: Sequence[Run], *, resamples: int = RESAMPLES, seed: int = 0) -> list[NullCheck]:
    """A check for each method that was trained on permuted labels, ordered by shots, then name.

    Args:
        runs: All of a sweep; those on true labels only give the methods their names.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: Predictions that cannot be read or do not belong together.
    """
    real, nulls = real_and_null(runs)
    permutation_of = {run.folder: int(str(run.cell[PERMUTE_LABELS])) for run in nulls}
    found: list[NullCheck] = []
    for name, group in named_groups([*real, *map(_as_real, nulls)]):
        by_permutation: defaultdict[int, list[Run]] = defaultdict(list)
        for run in group:
            if run.folder in permutation_of:
                by_permutation[permutation_of[run.folder]].append(run)
        if by_permutation:
            found.append(_check(name, dict(sorted(by_permutation.items())), resamples=resamples, seed=seed))
    return sorted(found, key=lambda one: (one.shots is None, one.shots or 0, one.name))


def null_table(checks: Sequence[NullCheck]) -> Table:
    """The control as a table of its own."""
    return Table(
        title="Control: permuted labels",
        columns=("method", "labels", "figure", "permutations", "mean", "chance", "intervals that hold chance"),
        rows=tuple(
            (
                one.name,
                shots_text(one.shots),
                READABLE.get(one.metric, one.metric),
                str(len(one.permutations)),
                _mean_text(one),
                f"{one.chance:g}",
                _covering_text(one),
            )
            for one in checks
        ),
        note="The same training on labels without signal, the patients' labels permuted over the whole split; never "
        "pooled with or compared to the methods. Patients, test predictions pooled over folds. Mean over permutations "
        "with its 95 % interval; last, how many permutations' own 95 % intervals over patients hold chance. They all "
        "have the same patients, so this count varies more than that of independent cohorts would.",
        n_text_columns=3,
    )


def null_lines(checks: Sequence[NullCheck]) -> list[str]:
    """The same for a terminal, one line a method."""
    return [
        f"{one.title}  permuted labels  {one.metric} {_mean_text(one)}, mean of {len(one.permutations)} permutations; "
        f"intervals that hold {one.chance:g}: {_covering_text(one)}"
        for one in checks
    ]


def null_warnings(checks: Sequence[NullCheck]) -> list[str]:
    """What a reader must not overlook."""
    said = [
        f"{one.title}: on permuted labels {one.metric} is {_mean_text(one)}, not {one.chance:g}: something tells the "
        "labels that should not; distrust the other figures until it is found."
        for one in checks
        if one.is_suspicious
    ]
    uneven = [(one, listed(map(str, one.uneven))) for one in checks if one.uneven]
    return said + [f"{one.title}: permutation {names} lacks a fold or seed that others have." for one, names in uneven]


def null_record(check: NullCheck) -> dict[str, object]:
    """The check as plain data for ``summary.json``; None where undefined."""
    mean, low, high = (None if math.isnan(value) else value for value in check.mean)
    n_covering, n_intervals = check.covering
    return {
        "method": check.name,
        "shots": check.shots,
        "metric": check.metric,
        "chance": check.chance,
        "permutations": list(check.permutations),
        "values": [None if math.isnan(one.value) else one.value for one in check.estimates],
        "mean": mean,
        "low": low,
        "high": high,
        "intervals": n_intervals,
        "intervals_with_chance": n_covering,
    }


def _as_real(run: Run) -> Run:
    """The run as if its labels were the true ones, so that permutations of one method are one group."""
    details = run.cell.get("determined_by")
    plain = {**details, PERMUTE_LABELS: 0} if isinstance(details, Mapping) else details
    return replace(run, cell={**run.cell, PERMUTE_LABELS: 0, "determined_by": plain})


def _check(name: str, groups: Mapping[int, Sequence[Run]], *, resamples: int, seed: int) -> NullCheck:
    cell = next(iter(groups.values()))[0].cell
    metric, chance = CHANCE[str(cell.get("labels", ONE_CLASS.name))]
    places = {number: {(run.cell.get("fold"), run.cell.get("seed")) for run in runs} for number, runs in groups.items()}
    every = set[tuple[object, object]]().union(*places.values())
    shots = cell.get("shots")
    return NullCheck(
        name=name,
        shots=shots if isinstance(shots, int) else None,
        metric=metric,
        chance=chance,
        permutations=tuple(groups),
        estimates=tuple(_estimate(runs, metric, resamples=resamples, seed=seed) for runs in groups.values()),
        uneven=tuple(number for number, there in places.items() if there != every),
    )


def _estimate(runs: Sequence[Run], metric: str, *, resamples: int, seed: int) -> Estimate:
    """The figure of one permutation; nan where there is none."""
    nothing = Estimate(value=math.nan, low=math.nan, high=math.nan, n_patients=0, n_slides=0, reason="no test slide")
    if runs[0].cell.get("labels", ONE_CLASS.name) == ONE_CLASS.name:
        tested = pool([read_predictions(run) for run in runs]).test
        if tested is None:
            return nothing
        return bootstrap_interval(tested, level="patient", resamples=resamples, seed=seed)[metric]
    names = {name for run in runs for name in _figures_of(run)}
    return pooled_figures(runs, sorted(names), resamples=resamples, seed=seed).get("patient", {}).get(metric, nothing)


def _figures_of(run: Run) -> Mapping[str, object]:
    """Figures that the run computed of its test part."""
    test = read_json(run.folder / "metrics.json").get("test")
    return test if isinstance(test, Mapping) else {}


def _mean_text(check: NullCheck) -> str:
    mean, low, high = check.mean
    if math.isnan(mean):
        return "not defined"
    return f"{mean:.3f} (no interval)" if math.isnan(low) else f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _covering_text(check: NullCheck) -> str:
    n_covering, n_intervals = check.covering
    return f"{n_covering} of {n_intervals} ({n_covering / n_intervals:.0%})" if n_intervals else "none defined"
