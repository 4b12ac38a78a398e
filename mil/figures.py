"""A summary as pictures: figures by training labels, ROC curves, reliability and confusion of each method."""

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from sklearn.metrics import confusion_matrix, roc_curve

from mil.intervals import Estimate, Level
from mil.methods import Method, shots_text
from mil.metrics import Predictions, by_patient
from mil.report import Figure
from mil.summarize import ZEROSHOT, Summary

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A")
"""Okabe and Ito's, told apart with any colour vision; markers differ too."""
MARKERS = "osD^vPX*"
PANELS_A_ROW = 4
MOST_PANELS = 12
INK, SOFT, LINE = "#1c2530", "#5c6773", "#dfe4e9"
RELIABILITY_BINS = 5
DPI = 150


def summary_figures(summary: Summary, *, level: Level) -> list[Figure]:
    """The pictures of the report, in its order; every curve at ``level``."""
    shown = _shown(summary.methods)
    cut = f" Shown: {len(shown)} of {len(summary.methods)} methods." if len(shown) < len(summary.methods) else ""
    unit = "Patients" if level == "patient" else "Slides"
    rows = {method: _at(method.predictions, level) for method in shown}
    return [
        _by_shots(summary, level=level),
        _panels(
            shown,
            lambda axes, method: _draw_roc(axes, rows[method]),
            title="ROC curves",
            caption=f"{unit}; one class against the rest, pooled out-of-fold test predictions.{cut}",
        ),
        _panels(
            shown,
            lambda axes, method: _draw_reliability(axes, rows[method]),
            title="Reliability",
            caption=f"{unit}; how often the predicted class is right, in {RELIABILITY_BINS} groups of equal size by "
            f"the probability given to it. On the line: probabilities can be taken at their word.{cut}",
        ),
        _panels(
            shown,
            lambda axes, method: _draw_confusion(axes, rows[method]),
            title="Confusion",
            caption=f"{unit}; counts, shaded by share of the true class.{cut}",
        ),
    ]


def _shown(methods: Sequence[Method]) -> list[Method]:
    """Each name once, with the most labels it has; the first ones by name."""
    most: dict[str, Method] = {}
    for method in methods:  # ordered by shots, so the last of a name has the most
        most[method.name] = method
    return [most[name] for name in sorted(most)][:MOST_PANELS]


def _at(predictions: Predictions, level: Level) -> Predictions:
    return by_patient(predictions) if level == "patient" else predictions


def _by_shots(summary: Summary, *, level: Level) -> Figure:
    metric = "balanced_accuracy"
    found = {r.method: r.estimate for r in summary.results if r.level == level and r.metric == metric}
    shots = sorted({method.shots for method in found}, key=lambda n: (n is None, n or 0))
    names = sorted({method.name for method in found})
    canvas, grid = _canvas(columns=1, rows=1, size=(8.4, 4.0))
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
        title="Balanced accuracy by number of training labels",
        png=_png(canvas),
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
            axes.plot(false_share, true_share, color=COLOURS[index % len(COLOURS)], linewidth=1.6, label=name)
    _unit_square(axes, "false positive rate", "true positive rate")
    axes.legend(loc="lower right", frameon=False, fontsize=7.5, labelcolor=INK)


def _draw_reliability(axes: Axes, rows: Predictions) -> None:
    """Groups of equal size: every point rests on as many slides, which bins of equal width do not give."""
    confidence = rows.probabilities.max(axis=1)
    is_right = rows.probabilities.argmax(axis=1) == rows.labels
    groups = [group for group in np.array_split(np.argsort(confidence, kind="stable"), RELIABILITY_BINS) if len(group)]
    axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
    axes.plot(
        [confidence[group].mean() for group in groups],
        [is_right[group].mean() for group in groups],
        color=COLOURS[0],
        marker="o",
        markersize=5,
        linewidth=1.4,
    )
    _unit_square(axes, "probability given", "share right")


def _draw_confusion(axes: Axes, rows: Predictions) -> None:
    n_classes = len(rows.classes)
    counts = confusion_matrix(rows.labels, rows.probabilities.argmax(axis=1), labels=range(n_classes))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for true in range(n_classes):
        for said in range(n_classes):
            colour = "white" if shares[true, said] > 0.55 else INK
            axes.text(said, true, str(counts[true, said]), ha="center", va="center", color=colour, fontsize=9)
    names = [name if len(name) <= 12 else f"{name[:11]}…" for name in rows.classes]
    axes.set_xticks(range(n_classes), names, rotation=30 if n_classes > 3 else 0)
    axes.set_yticks(range(n_classes), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")


def _panels(methods: Sequence[Method], draw: Callable[[Axes, Method], None], *, title: str, caption: str) -> Figure:
    columns = min(PANELS_A_ROW, len(methods))
    rows = math.ceil(len(methods) / columns)
    canvas, grid = _canvas(columns=columns, rows=rows, size=(2.6 * columns, 2.7 * rows))
    for axes, method in zip(grid, methods, strict=False):
        draw(axes, method)
        axes.set_title(f"{method.name}\n{shots_text(method.shots)}", fontsize=9, color=INK)
    for axes in grid[len(methods) :]:
        axes.set_axis_off()
    return Figure(title=title, png=_png(canvas), caption=caption)


def _canvas(*, columns: int, rows: int, size: tuple[float, float]) -> tuple[Canvas, list[Axes]]:
    """An empty picture in the report's style; no global state of matplotlib is touched."""
    canvas = Canvas(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(canvas)
    grid = list(np.atleast_1d(canvas.subplots(rows, columns)).ravel())
    for axes in grid:
        axes.tick_params(labelsize=8, colors=SOFT, length=3)
        axes.xaxis.label.set(color=SOFT, fontsize=8.5)
        axes.yaxis.label.set(color=SOFT, fontsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LINE)
    return canvas, grid


def _unit_square(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y, aspect="equal")
    axes.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))


def _png(canvas: Canvas) -> bytes:
    stream = io.BytesIO()
    canvas.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
