"""`promptmil summarize`: a sweep -> tables (csv, md, tex) and report.html."""

from pathlib import Path
from typing import cast

from omegaconf import DictConfig
from rich.console import Console

from feature_extraction.errors import InputError
from feature_extraction.files import publish_json, publish_text
from mil.cohort import listed
from mil.commands import settings
from mil.metrics.classification import METRICS
from mil.metrics.intervals import LEVELS, Level
from mil.report.accounts import unused_csv
from mil.report.latex import as_latex
from mil.report.map_tables import maps_csv
from mil.report.methods import shots_text
from mil.report.null_checks import null_lines, null_record
from mil.report.page import as_markdown, write_report
from mil.report.results_file import results_csv
from mil.report.sections import report_sections, tables_of
from mil.report.site_figures import SiteSource, site_record
from mil.report.summarize import Summary, summarize
from mil.report.tables import by_shots
from mil.report.trust_tables import trust_csv

PARTLY_FAILED = 3
FEWEST_RESAMPLES = 100


def run(config: DictConfig) -> int:
    """Summarize a sweep; returns the exit code."""
    _require_settings(config)
    summary = summarize(
        Path(config.runs),
        reference=config.reference,
        resamples=int(config.resamples),
        seed=int(config.seed),
        sites=_site_source(config),
        maps=() if config.maps is None else settings.paths(config.maps),
    )
    _require_complete(summary, is_allowed=bool(config.allow_incomplete))
    level = cast("Level", config.level)
    sections = report_sections(summary, level=level, rank_by=config.rank_by)
    tables = tables_of(sections)
    notes = _notes(summary, resamples=int(config.resamples))
    out = Path(config.out)
    publish_text(out / "results.csv", results_csv(summary.results, summary.of_runs))
    publish_text(out / "unused.csv", unused_csv(summary.accounts))
    publish_text(out / "results.tex", as_latex([one for one in tables if not one.is_record]))
    publish_text(out / "trust.csv", trust_csv(summary.trust))
    publish_text(out / "maps.csv", maps_csv(summary.maps))
    publish_text(out / "results.md", as_markdown("Results", tables, [*summary.warnings, *notes]))
    write_report(
        out / "report.html",
        title="Results of a sweep",
        sections=sections,
        notes=notes,
        warnings=summary.warnings,
    )
    publish_json(out / "summary.json", _record(summary))
    _say(summary, level, out)
    return 0 if summary.is_complete else PARTLY_FAILED


def _site_source(config: DictConfig) -> SiteSource | None:
    if config.features is None and config.labels is None:
        return None
    if config.features is None or config.labels is None:
        raise InputError(
            f"features={config.features}, labels={config.labels}: figures of sites need both, the embeddings and a CSV "
            "with slide_id and site"
        )
    return SiteSource(features=Path(config.features), labels=Path(config.labels))


def _require_complete(summary: Summary, *, is_allowed: bool) -> None:
    if not summary.is_complete and not is_allowed:
        gaps = "\n".join(f"- {gap}" for gap in summary.gaps)
        raise InputError(
            f"runs: the sweep is not complete:\n{gaps}\nfinish it (the same `promptmil train -m …` runs what is "
            "missing), or set allow_incomplete=true for a report of what is there"
        )


def _require_settings(config: DictConfig) -> None:
    if config.level not in LEVELS:
        raise InputError(f"level={config.level}: expected one of {listed(LEVELS)}")
    if config.rank_by not in (None, *METRICS):
        raise InputError(f"rank_by={config.rank_by}: expected one of {listed(METRICS)}, or null")
    if not isinstance(config.resamples, int) or config.resamples < FEWEST_RESAMPLES:
        raise InputError(f"resamples={config.resamples}: expected a whole number of at least {FEWEST_RESAMPLES}")


def _notes(summary: Summary, *, resamples: int) -> list[str]:
    patients = {name for method in summary.methods for name in method.predictions.patient_ids}
    slides = {name for method in summary.methods for name in method.predictions.slide_ids}
    if not summary.methods:
        return [f"{summary.n_runs} runs; nothing is sorted or chosen by a test result."]
    return [
        f"{len(summary.methods)} methods, {summary.n_runs} runs, {len(patients)} patients, {len(slides)} slides",
        "Figures are of test slides that the run had not seen, pooled over folds; seeds are averaged per slide.",
        f"Intervals are 95 % BCa intervals at the levels of t, of {resamples} resamples of patients within each class.",
        "Of shares that are 0 or 1 they are score intervals of as many patients.",
        "Methods stand in the order of shots, then name. Nothing is sorted or chosen by a test result.",
    ]


def _record(summary: Summary) -> dict[str, object]:
    return {
        "command": "summarize",
        "runs": summary.n_runs,
        "unfinished": list(summary.unfinished),
        "warnings": list(summary.warnings),
        "permuted_labels": [null_record(check) for check in summary.null_checks],
        "sites": site_record(summary.sites),
        "methods": [
            {
                "method": method.name,
                "shots": method.shots,
                "folds": list(method.folds),
                "missing_folds": list(method.missing_folds),
                "seeds": list(method.seeds),
                "patients": len(set(method.predictions.patient_ids)),
                "slides": len(method.predictions.slide_ids),
                "unlabelled": list(method.unlabelled),
                "never_tested": list(method.never_tested),
            }
            for method in summary.methods
        ],
    }


def _say(summary: Summary, level: Level, out: Path) -> None:
    console = Console(stderr=True)
    for warning in summary.warnings:
        console.print(f"warning: {warning}", soft_wrap=True, markup=False, style="yellow")
    table = by_shots(summary, level=level)
    for row in table.rows:
        cells = [f"{column}: {cell}" for column, cell in zip(table.columns[1:], row[1:], strict=True) if cell]
        console.print(f"{row[0]}  balanced accuracy  {'; '.join(cells)}", soft_wrap=True, markup=False)
    for figure in summary.of_runs:
        line = f"{figure.title}  {figure.metric} {figure.mean:.3f} (mean of {len(figure.values)} runs)"
        console.print(line, soft_wrap=True, markup=False)
    for line in null_lines(summary.null_checks):
        console.print(line, soft_wrap=True, markup=False)
    n_methods = len({method.title for method in (*summary.methods, *summary.of_runs)})
    shots = ", ".join(dict.fromkeys(shots_text(method.shots) for method in summary.methods))
    console.print(
        f"{summary.n_runs} runs, {n_methods} methods{f' ({shots})' if shots else ''} -> {out / 'report.html'}",
        soft_wrap=True,
        markup=False,
    )
