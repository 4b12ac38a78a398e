"""Trust as pictures: probabilities against what came true, and how many are wrong among the surest patients."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from mil.metrics.classification import Predictions
from mil.metrics.shares import share_interval
from mil.palette import COLOURS, INK, LINE, SOFT
from mil.report.canvas import (
    MARKERS,
    empty_canvas,
    panels,
    png_of,
    shown_methods,
    unit_square,
)
from mil.report.methods import Method
from mil.report.page import Figure
from mil.report.trusted import MethodTrust, Trusted
from mil.trust.referral import COVERAGE, risk_coverage

RELIABILITY_GROUPS = 5
LEAST_COVERAGE = 0.2


def trust_figures(trust: Sequence[MethodTrust]) -> list[Figure]:
    """Reliability and risk-coverage of the methods that have them."""
    found = {one.method: one.found for one in trust if one.found is not None}
    shown = shown_methods(list(found))
    if not shown:
        return []
    return [
        panels(
            shown,
            lambda axes, method: _draw_reliability(axes, found[method]),
            title="Reliability",
            caption=f"Patients; how often the likeliest class is right, in {RELIABILITY_GROUPS} groups of equal size "
            "by the probability given to it, with 95 % intervals. Blue: under a temperature fitted on other "
            "patients. Grey: as predicted. On the line, probabilities can be taken at their word; below it, the "
            "model is too sure.",
        ),
        _risk_coverage(shown, found),
    ]


def _draw_reliability(axes: Axes, found: Trusted) -> None:
    axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
    _draw_groups(axes, found.before, colour="#a8b0b8", marker="s", has_bars=False)
    _draw_groups(axes, found.after, colour=COLOURS[0], marker="o", has_bars=True)
    unit_square(axes, "probability given", "share right")


def _draw_groups(axes: Axes, rows: Predictions, *, colour: str, marker: str, has_bars: bool) -> None:
    """Groups of equal size: every point rests on as many patients, which bins of equal width do not give."""
    confidence = rows.probabilities.max(axis=1)
    is_right = rows.probabilities.argmax(axis=1) == rows.labels
    order = np.argsort(confidence, kind="stable")
    groups = [group for group in np.array_split(order, RELIABILITY_GROUPS) if len(group)]
    x, y = [confidence[group].mean() for group in groups], [is_right[group].mean() for group in groups]
    axes.plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.3)
    if has_bars:
        ends = np.array([share_interval(int(is_right[group].sum()), len(group)) for group in groups])
        axes.vlines(x, ends[:, 0], ends[:, 1], color=colour, linewidth=1, alpha=0.6)


def _risk_coverage(methods: Sequence[Method], found: dict[Method, Trusted]) -> Figure:
    canvas, grid = empty_canvas(columns=1, rows=1, size=(8.4, 3.6))
    axes = grid[0]
    for place, method in enumerate(methods):
        curve = risk_coverage(found[method].after)
        is_shown = curve.coverage >= LEAST_COVERAGE
        axes.plot(
            curve.coverage[is_shown],
            curve.risk[is_shown],
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            markevery=0.2,
            markersize=5,
            linewidth=1.5,
            label=method.title,
        )
    axes.axvline(COVERAGE, color=SOFT, linewidth=0.9, linestyle=":")
    axes.set(
        xlabel="share of patients kept, the surest first",
        ylabel="share wrong among them",
        xlim=(LEAST_COVERAGE - 0.02, 1.02),
    )
    axes.set_ylim(bottom=-0.01)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, labelcolor=INK, fontsize=8.5)
    return Figure(
        title="Fewer patients, fewer mistakes",
        png=png_of(canvas),
        caption="The risk-coverage curve. A model that knows when it does not know rises to the right: leaving its "
        f"unsure patients to a pathologist lowers the share that is wrong. Dotted: {COVERAGE:.0%} kept. Below "
        f"{LEAST_COVERAGE:.0%} one patient is the whole figure, and it is not drawn.",
    )
