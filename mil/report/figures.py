"""A summary as pictures: figures by training labels and by fold, curves and confusion of each method."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from sklearn.metrics import auc, average_precision_score, confusion_matrix, precision_recall_curve, roc_curve

from mil.metrics.classification import Predictions
from mil.metrics.intervals import Estimate, Level
from mil.palette import COLOURS, INK, LINE, SOFT
from mil.report.canvas import (
    MARKERS,
    at_level,
    empty_canvas,
    panels,
    png_of,
    shown_methods,
    unit_square,
)
from mil.report.fold_figures import figures_by_fold
from mil.report.methods import Method, shots_text
from mil.report.page import Figure
from mil.report.summarize import ZEROSHOT, Summary

LONGEST_NAME = 12
_DOTTED = (("balanced_accuracy", "balanced accuracy"), ("macro_auc", "macro-AUC"))


def curves(summary: Summary, *, level: Level) -> list[Figure]:
    """ROC, precision-recall and confusion of each method."""
    shown = shown_methods(summary.methods)
    cut = f" Shown: {len(shown)} of {len(summary.methods)} methods." if len(shown) < len(summary.methods) else ""
    is_repeated = any(len(method.repeats) > 1 for method in shown)
    first = " Of the first drawing of folds where there are several." if is_repeated else ""
    unit = "Patients" if level == "patient" else "Slides"
    rows = {method: at_level(method.repeats[0].predictions, level) for method in shown}
    return [
        panels(
            shown,
            lambda axes, method: _draw_roc(axes, rows[method]),
            title="ROC curves",
            caption=f"{unit}; one class against the rest, pooled out-of-fold test predictions, with the area under "
            f"each. Grey: chance.{first}{cut}",
        ),
        panels(
            shown,
            lambda axes, method: _draw_precision_recall(axes, rows[method]),
            title="Precision and recall",
            caption=f"{unit}; one class against the rest, pooled out-of-fold test predictions, with the average "
            f"precision of each. Dotted: the share of the class, which is chance.{first}{cut}",
        ),
        panels(
            shown,
            lambda axes, method: _draw_confusion(axes, rows[method]),
            title="Confusion",
            caption=f"{unit}; counts, shaded by share of the true class.{first}{cut}",
        ),
    ]


def fold_dots(methods: Sequence[Method], *, level: Level) -> Figure:
    """Every fold of every method as a dot, on that fold's own test part; the line is their mean."""
    canvas, grid = empty_canvas(columns=2, rows=1, size=(9.6, 1.3 + 0.42 * len(methods)))
    found = [figures_by_fold(method, level) for method in methods]
    for axes, (metric, name) in zip(grid, _DOTTED, strict=True):
        for row, of_fold in enumerate(found):
            values = np.array([figures[metric] for figures in of_fold.values()])
            defined = values[np.isfinite(values)]
            if len(defined):
                axes.plot([defined.mean()] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=1.4)
            axes.plot(defined, np.full(len(defined), row), "o", color=COLOURS[0], alpha=0.55, markersize=6)
        axes.set_yticks(range(len(methods)), [method.title for method in methods] if axes is grid[0] else [])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_xlabel(name)
        axes.grid(axis="x", color=LINE, linewidth=0.8)
    return Figure(
        title="Every fold",
        png=png_of(canvas),
        caption=f"Level: {level}. A dot is one fold on its own test part, seeds averaged; the line is the mean. "
        "Folds in which the figure is not defined have no dot.",
    )


def shots_figure(summary: Summary, *, level: Level) -> Figure:
    """Balanced accuracy by number of training labels: the few-shot curve."""
    metric = "balanced_accuracy"
    found = {r.method: r.estimate for r in summary.results if r.level == level and r.metric == metric}
    shots = sorted({method.shots for method in found}, key=lambda n: (n is None, n or 0))
    names = sorted({method.name for method in found})
    canvas, grid = empty_canvas(columns=1, rows=1, size=(8.4, 4.0))
    axes = grid[0]
    for place, name in enumerate(names):
        shift = (place - (len(names) - 1) / 2) * min(0.09, 0.6 / len(names))
        points = [(shots.index(m.shots) + shift, found[m]) for m in found if m.name == name]
        _draw_points(axes, points, name, place)
    _draw_reference(axes, {method: estimate.value for method, estimate in found.items()})
    axes.set_xticks(range(len(shots)), [shots_text(n) for n in shots])
    axes.set_xlim(-0.6, len(shots) - 0.4)
    axes.set_ylabel("balanced accuracy")
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, labelcolor=INK, fontsize=8.5)
    return Figure(
        title="Few-shot curve",
        png=png_of(canvas),
        caption=f"Level: {level}. Bars are 95 % intervals from resampled patients; the dotted line is chance, the "
        "dashed one zero-shot where the sweep has it. Shots are training patients per class.",
    )


def _draw_points(axes: Axes, points: Sequence[tuple[float, Estimate]], name: str, place: int) -> None:
    defined = [(x, one) for x, one in points if not math.isnan(one.value)]
    colour = COLOURS[place % len(COLOURS)]
    ends = [
        (one.value - one.low, one.high - one.value) if not math.isnan(one.low) else (0.0, 0.0) for _, one in defined
    ]
    axes.errorbar(
        [x for x, _ in defined],
        [one.value for _, one in defined],
        yerr=np.clip(np.array(ends).reshape(-1, 2).T, 0, None),
        color=colour,
        marker=MARKERS[place % len(MARKERS)],
        markersize=6,
        linewidth=1.4,
        elinewidth=1.2,
        capsize=2.5,
        label=name,
    )


def _draw_reference(axes: Axes, values: dict[Method, float]) -> None:
    """Chance, and zero-shot when there is exactly one."""
    classes = {len(method.predictions.classes) for method in values}
    if len(classes) == 1:
        axes.axhline(1 / classes.pop(), color=SOFT, linewidth=1, linestyle=":")
    zeroshot = [value for method, value in values.items() if method.aggregator == ZEROSHOT]
    if len(zeroshot) == 1:
        axes.axhline(zeroshot[0], color=SOFT, linewidth=1, linestyle="--")


def _draw_roc(axes: Axes, rows: Predictions) -> None:
    axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
    for index, name in enumerate(rows.classes):
        is_class = rows.labels == index
        if is_class.any() and not is_class.all():
            false_share, true_share, _ = roc_curve(is_class, rows.probabilities[:, index])
            area = auc(false_share, true_share)
            axes.plot(
                false_share,
                true_share,
                color=COLOURS[index % len(COLOURS)],
                linewidth=1.6,
                label=f"{_short(name)} {area:.2f}",
            )
    unit_square(axes, "false positive rate", "true positive rate")
    axes.legend(loc="lower right", frameon=False, fontsize=7.5, labelcolor=INK)


def _draw_precision_recall(axes: Axes, rows: Predictions) -> None:
    for index, name in enumerate(rows.classes):
        is_class = rows.labels == index
        if is_class.any() and not is_class.all():
            scores, colour = rows.probabilities[:, index], COLOURS[index % len(COLOURS)]
            precision, recall, _ = precision_recall_curve(is_class, scores)
            area = average_precision_score(is_class, scores)
            axes.step(recall, precision, where="post", color=colour, linewidth=1.6, label=f"{_short(name)} {area:.2f}")
            axes.axhline(is_class.mean(), color=colour, linewidth=0.8, linestyle=":")
    unit_square(axes, "recall", "precision")
    axes.legend(loc="lower left", frameon=False, fontsize=7.5, labelcolor=INK)


def _draw_confusion(axes: Axes, rows: Predictions) -> None:
    n_classes = len(rows.classes)
    counts = confusion_matrix(rows.labels, rows.probabilities.argmax(axis=1), labels=range(n_classes))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for true in range(n_classes):
        for said in range(n_classes):
            colour = "white" if shares[true, said] > 0.55 else INK
            axes.text(said, true, str(counts[true, said]), ha="center", va="center", color=colour, fontsize=9)
    names = [_short(name) for name in rows.classes]
    axes.set_xticks(range(n_classes), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n_classes), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
