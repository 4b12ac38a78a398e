"""``results.csv``: every figure of a summary with every digit and everything that says where it comes from."""

import csv
import io
import math
from collections.abc import Mapping, Sequence

from mil.metrics.across_folds import AcrossFolds
from mil.metrics.intervals import Estimate
from mil.report.methods import Method
from mil.report.run_figures import RunFigure
from mil.report.summarize import Result

_PROVENANCE = (
    *("aggregator", "init", "encoder", "encoder_fingerprint", "space", "features_folder", "prompt_set"),
    *("prompt_set_sha256", "split_name", "split_sha256", "scheme", "max_epochs", "licence"),
    *("licence_ancestry", "version"),
)


def results_csv(results: Sequence[Result], of_runs: Sequence[RunFigure] = ()) -> str:
    """One line a figure, with everything that says where it comes from."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    rows = [{**provenance(result.method), **_result_cells(result)} for result in results]
    rows += [{**provenance(figure), **cells} for figure in of_runs for cells in _run_cells(figure)]
    writer.writerow(rows[0] if rows else ())
    writer.writerows(row.values() for row in rows)
    return stream.getvalue()


def provenance(method: Method | RunFigure) -> dict[str, str]:
    """Where a method's figures come from, as cells of a table."""
    cell = method.cell
    pooling = cell.get("pooling")
    rule = pooling if isinstance(pooling, Mapping) else {}
    return {
        "method": safe_text(method.name),
        **{name: safe_text(cell.get(name)) for name in _PROVENANCE},
        "shots": "all" if method.shots is None else str(method.shots),
        "pooling_rule": safe_text(rule.get("rule")),
        "pooling_top_j": safe_text(rule.get("top_j")),
    }


def _result_cells(result: Result) -> dict[str, str]:
    estimate = result.estimate
    return {
        "level": result.level,
        "metric": safe_text(result.metric),
        "value": _number(estimate.value),
        "low": _number(estimate.low),
        "high": _number(estimate.high),
        "n_patients": str(estimate.n_patients),
        "n_slides": str(estimate.n_slides),
        "folds": " ".join(map(str, result.method.folds)),
        "missing_folds": " ".join(map(str, result.method.missing_folds)),
        "seeds": " ".join(map(str, result.method.seeds)),
        "reason": safe_text(estimate.reason),
        **_fold_cells(result.over_folds),
    }


def _run_cells(figure: RunFigure) -> list[dict[str, str]]:
    """Pooled slides and patients, or the mean over runs where they cannot be pooled."""
    mean = "mean over runs, each on its own test part; no interval" if figure.values else "not defined in any run"
    nothing = Estimate(value=figure.mean, low=math.nan, high=math.nan, n_patients=0, n_slides=0, reason=mean)
    return [
        {
            "level": level,
            "metric": safe_text(figure.metric),
            "value": _number(estimate.value),
            "low": _number(estimate.low),
            "high": _number(estimate.high),
            "n_patients": str(estimate.n_patients or ""),
            "n_slides": str(estimate.n_slides or ""),
            "folds": " ".join(map(str, figure.folds)),
            "missing_folds": " ".join(map(str, figure.missing_folds)),
            "seeds": "",
            "reason": safe_text(estimate.reason),
            **_fold_cells(figure.over_folds if level == "slide" else None),
        }
        for level, estimate in (figure.pooled or {"slide": nothing}).items()
    ]


def _fold_cells(across: AcrossFolds | None) -> dict[str, str]:
    """The mean over folds with its corrected interval; empty cells where there is a single fold."""
    if across is None:
        return {"fold_mean": "", "fold_low": "", "fold_high": ""}
    return {"fold_mean": _number(across.mean), "fold_low": _number(across.low), "fold_high": _number(across.high)}


def _number(value: float) -> str:
    """All digits that count; ``nan`` where undefined."""
    return f"{value:.6g}"


def safe_text(value: object) -> str:
    """A cell that a spreadsheet will not run as a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
