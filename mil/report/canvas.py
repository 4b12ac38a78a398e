"""What every picture of a report shares: colours, empty axes, a panel a method, and PNG bytes."""

import io
import math
import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mil.metrics.classification import Predictions, by_patient
from mil.metrics.intervals import Level
from mil.palette import INK, LINE, SOFT
from mil.report.methods import Method, shots_text
from mil.report.page import Figure

MARKERS = "osD^vPX*"
PANELS_A_ROW = 4
MOST_PANELS = 12
TITLE_LETTERS = 34
"""That fit above a panel."""
DPI = 200


def shown_methods(methods: Sequence[Method]) -> list[Method]:
    """Each name once, with the most labels it has; the first ones by name."""
    most: dict[str, Method] = {}
    for method in methods:  # ordered by shots, so the last of a name has the most
        most[method.name] = method
    return [most[name] for name in sorted(most)][:MOST_PANELS]


def at_level(predictions: Predictions, level: Level) -> Predictions:
    """Of slides, or of patients by the mean of their slides."""
    return by_patient(predictions) if level == "patient" else predictions


def panels(methods: Sequence[Method], draw: Callable[[Axes, Method], None], *, title: str, caption: str) -> Figure:
    """One picture with a panel a method."""
    columns = min(PANELS_A_ROW, len(methods))
    rows = math.ceil(len(methods) / columns)
    canvas, grid = empty_canvas(columns=columns, rows=rows, size=(2.6 * columns, 2.7 * rows))
    for axes, method in zip(grid, methods, strict=False):
        draw(axes, method)
        axes.set_title(f"{title_lines(method.name)}\n{shots_text(method.shots)}", fontsize=9, color=INK)
    for axes in grid[len(methods) :]:
        axes.set_axis_off()
    return Figure(title=title, png=png_of(canvas), caption=caption)


def title_lines(name: str) -> str:
    """A method's name in lines that are no wider than a panel: a longer one would be cut, or run into the next."""
    return "\n".join(textwrap.wrap(name, TITLE_LETTERS, break_long_words=False, break_on_hyphens=False))


def empty_canvas(*, columns: int, rows: int, size: tuple[float, float]) -> tuple[Canvas, list[Axes]]:
    """An empty picture in the report's style; no global state of matplotlib is touched."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1)  # inches; with less the labels of square axes are cut
    canvas = Canvas(figsize=size, dpi=DPI, layout=layout)
    FigureCanvasAgg(canvas)
    grid = list(np.atleast_1d(canvas.subplots(rows, columns)).ravel())
    for axes in grid:
        axes.tick_params(labelsize=8, colors=SOFT, length=3)
        axes.xaxis.label.set(color=SOFT, fontsize=8.5)
        axes.yaxis.label.set(color=SOFT, fontsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LINE)
    return canvas, grid


def unit_square(axes: Axes, x: str, y: str) -> None:
    """Both axes from 0 to 1, with these labels."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y, aspect="equal")
    axes.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))


def png_of(canvas: Canvas) -> bytes:
    """The picture as a file, the same bytes each time."""
    stream = io.BytesIO()
    canvas.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
