"""A summary as tables for people; `mil.report.summarize` holds the same numbers with every digit."""

import math
from collections.abc import Mapping, Sequence

from mil.metrics.across_folds import AcrossFolds
from mil.metrics.classification import LOWER_IS_BETTER, METRICS, RECALL
from mil.metrics.intervals import LEVELS, Estimate, Level
from mil.report.comparisons import Comparison
from mil.report.methods import Method, shots_text, val_score
from mil.report.page import Table
from mil.report.readable import READABLE, fold_text, interval_text, p_text
from mil.report.results_file import provenance
from mil.report.run_figures import RunFigure
from mil.report.summarize import RELIABLE_ECE_PATIENTS, Summary

_SHOWN_COMPARISONS = ("balanced_accuracy", "macro_auc", "nll")
_SHORT_HASH = 8


def by_shots(summary: Summary, *, level: Level) -> Table:
    """Balanced accuracy, a row a method, a column a number of training labels."""
    found = _estimates(summary, level)
    shots = sorted({method.shots for method in summary.methods}, key=lambda n: (n is None, n or 0))
    names = sorted({method.name for method in summary.methods})
    place = {(method.name, method.shots): found[method]["balanced_accuracy"] for method in summary.methods}
    return Table(
        title="Balanced accuracy by number of training labels",
        columns=("method", *(shots_text(n) for n in shots)),
        rows=tuple(
            (name, *(interval_text(place[name, n]) if (name, n) in place else "" for n in shots)) for name in names
        ),
        note=f"{_level_note(level)} Shots are training patients per class.",
    )


def figures_of(summary: Summary, *, level: Level) -> Table:
    """Every figure that is not of one class."""
    found = _estimates(summary, level)
    return Table(
        title=f"Every figure, {level} level",
        columns=("method", "labels", "patients", "slides", "folds", *(READABLE[name] for name in METRICS)),
        rows=tuple(
            (
                *_lead(method),
                *_counts(found[method]["accuracy"]),
                _folds_text(method),
                *(interval_text(found[method][name]) for name in METRICS),
            )
            for method in summary.methods
        ),
        note=f"{_level_note(level)} ↓ less is better.{_ece_note(summary)}{_interval_note(summary, level)}",
        n_text_columns=2,
    )


def figures_of_runs(summary: Summary) -> Table:
    """What pooled class probabilities do not give, as each run computed it."""
    return Table(
        title="Figures of the runs",
        columns=("method", "labels", "figure", "mean over runs", "runs", "pooled slides", "pooled patients"),
        rows=tuple(
            (
                figure.name,
                shots_text(figure.shots),
                figure.metric,
                _spread_text(figure),
                f"{len(figure.values)}",
                *(interval_text(figure.pooled[level]) if level in figure.pooled else "" for level in LEVELS),
            )
            for figure in summary.of_runs
        ),
        note="Mean over runs: slides, each run on its own test part, least and greatest run in brackets. Pooled: "
        "the test slides of all folds, with 95 % intervals from resampled patients; risks are compared within a fold.",
        n_text_columns=3,
    )


def _spread_text(figure: RunFigure) -> str:
    if not figure.values:
        return "not defined"
    if len(figure.values) == 1:
        return f"{figure.mean:.3f}"
    return f"{figure.mean:.3f} ({min(figure.values):.3f} to {max(figure.values):.3f})"


def recalls(summary: Summary, *, level: Level) -> Table:
    """Recall of each class."""
    found = _estimates(summary, level)
    classes = sorted({name for method in summary.methods for name in method.predictions.classes})
    return Table(
        title="Recall of each class",
        columns=("method", "labels", *classes),
        rows=tuple(
            (*_lead(method), *(_cell(found[method], f"{RECALL}{name}") for name in classes))
            for method in summary.methods
        ),
        note=f"{_level_note(level)}{_interval_note(summary, level)}",
        n_text_columns=2,
    )


def differences(summary: Summary, *, level: Level) -> Table:
    """Each method minus its reference."""
    found: dict[tuple[Method, Method], dict[str, Comparison]] = {}
    for one in summary.comparisons:
        if one.level == level:
            found.setdefault((one.method, one.reference), {})[one.metric] = one
    rows = tuple(
        (
            *_lead(method),
            reference.title,
            *_counts(by_metric["nll"].difference.estimate),
            *(text for name in _SHOWN_COMPARISONS for text in _difference_text(by_metric[name])),
        )
        for (method, reference), by_metric in found.items()
    )
    heads = [head for name in _SHOWN_COMPARISONS for head in (f"Δ {READABLE[name]}", "p")]
    return Table(
        title="Difference from the reference on the same patients",
        columns=("method", "labels", "reference", "patients", "slides", *heads),
        rows=rows,
        note=f"{_level_note(level)} Method minus reference, both computed on the same drawn patients; p is "
        "two-sided and adjusted for the number of methods (Holm). Of NLL, a negative difference is better.",
        n_text_columns=3,
    )


def over_folds(summary: Summary, *, level: Level) -> Table:
    """Mean over folds of the shown figures and of their differences from the reference."""
    found: dict[Method, dict[str, AcrossFolds | None]] = {}
    for result in summary.results:
        if result.level == level:
            found.setdefault(result.method, {})[result.metric] = result.over_folds
    compared = {(one.method, one.metric): one for one in summary.comparisons if one.level == level}
    rows = tuple(
        (
            *_lead(method),
            str(len(method.folds)),
            *(
                text
                for name in _SHOWN_COMPARISONS
                for text in (fold_text(by_metric.get(name)), *_fold_difference(compared.get((method, name))))
            ),
        )
        for method, by_metric in found.items()
        if any(by_metric.values())
    )
    heads = [text for name in _SHOWN_COMPARISONS for text in (READABLE[name], f"Δ {READABLE[name]}", "p")]
    return Table(
        title="Means over folds",
        columns=("method", "labels", "folds", *heads),
        rows=rows,
        note=f"{level.capitalize()} level; each fold's own test part, seeds averaged, with the corrected 95 % interval "
        "and test of Nadeau and Bengio: folds share training patients, so the usual t is too sure. With two or "
        "three folds it says next to nothing, and a t interval may leave 0 to 1. Δ is method minus reference.",
        n_text_columns=2,
    )


def _fold_difference(one: Comparison | None) -> tuple[str, str]:
    if one is None or one.over_folds is None:
        return "", ""
    p = one.p_holm_over_folds
    return fold_text(one.over_folds, "+"), "" if math.isnan(p) else p_text(p)


def ranking(methods: Sequence[Method], metric: str) -> Table:
    """Methods by a figure on validation slides, the best first; those without a validation part last."""
    scores = [(val_score(method, metric), method) for method in methods]
    sign = 1 if metric in LOWER_IS_BETTER else -1
    ordered = sorted(scores, key=lambda pair: (math.isnan(pair[0]), sign * pair[0] if not math.isnan(pair[0]) else 0))
    return Table(
        title=f"Ranking by {READABLE[metric].removesuffix(' ↓')} on validation slides",
        columns=("method", "labels", "mean over runs"),
        rows=tuple(
            (*_lead(method), "no val part" if math.isnan(score) else f"{score:.3f}") for score, method in ordered
        ),
        note="Test slides have no part in this order.",
        n_text_columns=2,
    )


def provenances(summary: Summary) -> list[Table]:
    """What every figure above was made from: what all methods share, and what tells them apart."""
    rows = [{**provenance(method), "seeds": " ".join(map(str, method.seeds))} for method in summary.methods]
    columns = [name for name in rows[0] if name not in ("method", "aggregator", "shots")]
    shared = [name for name in columns if len({row[name] for row in rows}) == 1]
    own = [name for name in columns if name not in shared]
    return [
        Table(
            title="The same for every method",
            columns=("what", "value"),
            rows=tuple((name.replace("_", " "), rows[0][name] or "none") for name in shared),
            n_text_columns=2,
            is_record=True,
        ),
        Table(
            title="What differs",
            columns=("method", "labels", *(name.replace("_", " ") for name in own)),
            rows=tuple(
                (*_lead(method), *(_short(row[name]) for name in own))
                for method, row in zip(summary.methods, rows, strict=True)
            ),
            note=f"Hashes are cut to {_SHORT_HASH} digits here and whole in results.csv.",
            n_text_columns=2 + len(own),
            is_record=True,
        ),
    ]


def _cell(estimates: Mapping[str, Estimate], name: str) -> str:
    return interval_text(estimates[name]) if name in estimates else ""


def _difference_text(comparison: Comparison) -> tuple[str, str]:
    estimate = comparison.difference.estimate
    if math.isnan(estimate.value):
        return "not defined", ""
    if math.isnan(estimate.low):
        return f"{estimate.value:+z.2f} (no interval)", ""
    text = f"{estimate.value:+z.2f} ({estimate.low:+z.2f} to {estimate.high:+z.2f})"
    return text, p_text(comparison.p_holm)


def _estimates(summary: Summary, level: Level) -> Mapping[Method, dict[str, Estimate]]:
    found: dict[Method, dict[str, Estimate]] = {method: {} for method in summary.methods}
    for result in summary.results:
        if result.level == level:
            found[result.method][result.metric] = result.estimate
    return found


def _lead(method: Method) -> tuple[str, str]:
    return method.name, shots_text(method.shots)


def _counts(estimate: Estimate) -> tuple[str, str]:
    return str(estimate.n_patients), str(estimate.n_slides)


def _folds_text(method: Method) -> str:
    missing = f" (MISSING {', '.join(map(str, method.missing_folds))})" if method.missing_folds else ""
    return f"{len(method.folds)}{missing}"


def _level_note(level: Level) -> str:
    unit = "Patients, by the mean of their slides" if level == "patient" else "Slides"
    return f"{unit}; out-of-fold test predictions pooled over folds, with 95 % intervals from resampled patients."


def _ece_note(summary: Summary) -> str:
    n_patients = max(len(set(method.predictions.patient_ids)) for method in summary.methods)
    if n_patients >= RELIABLE_ECE_PATIENTS:
        return ""
    return f" With fewer than {RELIABLE_ECE_PATIENTS} patients ECE is biased upward: read NLL and Brier first."


def _interval_note(summary: Summary, level: Level) -> str:
    reasons = dict.fromkeys(result.estimate.reason for result in summary.results if result.level == level)
    said = [reason for reason in reasons if reason]
    is_point = any(result.estimate.low == result.estimate.high for result in summary.results if result.level == level)
    point = " An interval of one point says that no drawn patient changes the figure, not that it is certain."
    return (f" Not defined: {'; '.join(said)}." if said else "") + (point if is_point else "")


def _short(cell: str) -> str:
    return cell[:_SHORT_HASH] if len(cell) == 64 else cell
