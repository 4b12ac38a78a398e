"""What the words are worth: each method beside the same one with other words or another start."""

from collections.abc import Sequence
from dataclasses import dataclass

from mil.metrics.intervals import Estimate, Level
from mil.report.comparisons import Comparison, compare
from mil.report.methods import Method, identity_of, shots_text
from mil.report.page import Table
from mil.report.readable import interval_text, p_text

_OWN_WORDS = ("", "own", "null")
_WORDS = {
    "shuffled": "words of other classes",
    "nonsense": "words without meaning",
    "names": "names of the classes alone",
}
_SHOWN = "macro_auc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A method and one of its controls.

    Attributes:
        method: With its own words, from text.
        control: The same but for one thing.
        what: That thing, in words.
        comparisons: Method minus control, of each figure and level.
    """

    method: Method
    control: Method
    what: str
    comparisons: tuple[Comparison, ...]


def controls_of(methods: Sequence[Method], *, resamples: int, seed: int) -> list[Control]:
    """The controls that the sweep has of each method that starts from its own words.

    Args:
        methods: Of the sweep.
        resamples: Of the bootstrap of the differences.
        seed: Of the bootstrap.
    """
    cells = {method: _told(method) for method in methods}
    pairs = [
        (method, other, what)
        for method in methods
        if not cells[method][1] and cells[method][2] == "text"
        for other in methods
        if other is not method and cells[other][0] == cells[method][0]
        for what in [cells[other][1] or f"{cells[other][2]} start"]
    ]
    found = compare([(method, other) for method, other, _ in pairs], resamples=resamples, seed=seed) if pairs else []
    return [
        Control(
            method=method,
            control=other,
            what=what,
            comparisons=tuple(one for one in found if one.method is method and one.reference is other),
        )
        for method, other, what in pairs
    ]


def control_table(controls: Sequence[Control], estimates: dict[tuple[Method, str], Estimate], *, level: Level) -> Table:
    """A row a method, then one for each of its controls."""
    rows: list[tuple[str, ...]] = []
    for method in dict.fromkeys(one.method for one in controls):
        rows.append(
            (method.name, shots_text(method.shots), "none: its own words", *_figures(method, estimates), "", "")
        )
        for one in (one for one in controls if one.method is method):
            difference = next(c for c in one.comparisons if c.level == level and c.metric == _SHOWN)
            value = difference.difference.estimate
            text = (
                f"{value.value:+z.2f} ({value.low:+z.2f} to {value.high:+z.2f})" if not value.reason else "not defined"
            )
            p = "" if value.reason else p_text(difference.p_holm)
            rows.append(
                (one.control.name, shots_text(one.control.shots), one.what, *_figures(one.control, estimates), text, p)
            )
    return Table(
        title="What are the words worth?",
        columns=("method", "labels", "control", "balanced accuracy", "macro-AUC", "own words minus control", "p"),
        rows=tuple(rows),
        note="The same training with one thing taken away. Where the control does as well as the words, the words "
        "were of no use. The difference is of macro-AUC on the same patients, "
        "with its 95 % interval; p is adjusted for the number of controls (Holm).",
        n_text_columns=3,
    )


def _figures(method: Method, estimates: dict[tuple[Method, str], Estimate]) -> tuple[str, str]:
    return interval_text(estimates[method, "balanced_accuracy"]), interval_text(estimates[method, _SHOWN])


def _told(method: Method) -> tuple[tuple[tuple[str, str], ...], str, str]:
    """What a method shares with its controls; which words were exchanged; its start."""
    rest: list[tuple[str, str]] = []
    exchanged, init = "", ""
    for name, value in sorted(identity_of(method.cell).items()):
        last = name.rsplit(".", 1)[-1]
        if last == "words":
            exchanged = exchanged or ("" if value in _OWN_WORDS else _WORDS.get(value, value))
        elif last == "init":
            init = value if name == "init" else init
        else:
            rest.append((name, value))
    return tuple(rest), exchanged, init
