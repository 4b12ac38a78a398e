"""Figures that only the runs themselves know: those of tasks that predict no class, and of an order of classes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feature_extraction.files import read_json
from mil.labels import ONE_CLASS
from mil.metrics.across_folds import FEWEST_FOLDS, AcrossFolds, across_folds
from mil.metrics.bootstrap import RESAMPLES
from mil.metrics.classification import METRICS, RECALL
from mil.metrics.intervals import Estimate, Level
from mil.report.methods import folds_of_split, named_groups, shots_text
from mil.report.tested import patients_of_parts, pooled_figures
from mil.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigure:
    """One figure of one method, as its runs computed it on their own test parts.

    Attributes:
        name: Of the method.
        cell: ``cell.json`` of its first run.
        shots: Training patients per class, None for all labels, 0 for none.
        metric: Name of the figure.
        values: One a run that has it.
        folds: Of those runs.
        missing_folds: Those that other methods of the sweep have on this split.
        pooled: The figure of the pooled test slides with its interval, by level; empty where folds cannot be pooled.
        over_folds: Its mean over folds; None for a single fold.
    """

    name: str
    cell: Mapping[str, object]
    shots: int | None
    metric: str
    values: tuple[float, ...]
    folds: tuple[int, ...]
    missing_folds: tuple[int, ...]
    pooled: Mapping[Level, Estimate]
    over_folds: AcrossFolds | None

    @property
    def title(self) -> str:
        """The method with its shots."""
        return f"{self.name}, {shots_text(self.shots)}"

    @property
    def mean(self) -> float:
        """Over the runs; nan without one."""
        return float(np.mean(self.values)) if self.values else math.nan


def predicts_a_class(run: Run) -> bool:
    """Whether its predictions are probabilities of one class a slide, so that they can be pooled."""
    return run.cell.get("labels", ONE_CLASS.name) == ONE_CLASS.name


def run_figures(runs: Sequence[Run], *, resamples: int = RESAMPLES, seed: int = 0) -> list[RunFigure]:
    """The figures of ``metrics.json`` that pooled class probabilities do not give, method by method.

    Args:
        runs: Finished runs.
        resamples: Of the bootstrap of those that can be pooled in another way.
        seed: Of the bootstrap.
    """
    found: list[RunFigure] = []
    for name, group in named_groups(runs):
        tested = [_tested(run) for run in group]
        metrics = dict.fromkeys(key for figures in tested for key in figures)
        shots = group[0].cell.get("shots")
        expected = folds_of_split(runs, group[0])
        pooled = pooled_figures(group, list(metrics), resamples=resamples, seed=seed) if metrics else {}
        sizes = patients_of_parts(group) if metrics else (0.0, 0.0)
        for metric in metrics:
            pairs = [(run, figures[metric]) for run, figures in zip(group, tested, strict=True) if metric in figures]
            folds = {_fold(run) for run, _ in pairs}
            values = tuple(value for _, value in pairs if not math.isnan(value))
            found.append(
                RunFigure(
                    name=name,
                    cell=group[0].cell,
                    shots=shots if isinstance(shots, int) else None,
                    metric=metric,
                    values=values,
                    folds=tuple(sorted(folds)),
                    missing_folds=tuple(sorted(expected - folds)),
                    pooled={
                        level: found_there[metric] for level, found_there in pooled.items() if metric in found_there
                    },
                    over_folds=_over_folds([(_fold(run), value) for run, value in pairs], sizes),
                )
            )
    return sorted(found, key=lambda one: (one.shots is None, one.shots or 0, one.name))


def _fold(run: Run) -> int:
    return int(str(run.cell.get("fold")))


def _over_folds(pairs: Sequence[tuple[int, float]], sizes: tuple[float, float]) -> AcrossFolds | None:
    """Seeds of a fold are averaged first; ``sizes`` are the training and test patients of a fold."""
    folds = sorted({fold for fold, _ in pairs})
    n_train, n_test = sizes
    if len(folds) < FEWEST_FOLDS or n_train == 0:
        return None
    values = np.array([np.mean([value for found, value in pairs if found == fold]) for fold in folds])
    return across_folds(values, n_train=n_train, n_test=n_test)


def _tested(run: Run) -> dict[str, float]:
    """Figures of the test part by name, nan where undefined."""
    path = run.folder / "metrics.json"
    test = read_json(path).get("test") if path.is_file() else None
    if not isinstance(test, Mapping):
        return {}
    is_pooled = predicts_a_class(run)
    return {
        str(name): math.nan if value is None else float(value)
        for name, value in test.items()
        if (value is None or isinstance(value, int | float))
        and not (is_pooled and (name in METRICS or str(name).startswith(RECALL)))
    }
