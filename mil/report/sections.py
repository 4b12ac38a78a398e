"""A summary as the sections of a report, what matters first."""

from mil.metrics.intervals import Level
from mil.report.accounts import account_table, unused_table
from mil.report.controls import control_table
from mil.report.drift_figures import drift_table
from mil.report.figures import curves, fold_dots, shots_figure
from mil.report.in_short import in_short
from mil.report.map_tables import map_tables
from mil.report.null_checks import null_table
from mil.report.page import Figure, Section, Table
from mil.report.site_figures import site_tables
from mil.report.summarize import Summary
from mil.report.tables import (
    by_shots,
    differences,
    figures_of,
    figures_of_runs,
    over_folds,
    provenances,
    ranking,
    recalls,
)
from mil.report.trust_figures import trust_figures
from mil.report.trust_tables import trust_tables


def report_sections(summary: Summary, *, level: Level, rank_by: str | None) -> list[Section]:
    """The sections of the report, in its order; those with nothing to show are left out.

    Args:
        summary: What to show.
        level: Of the tables and figures that show one level.
        rank_by: Figure to rank methods by on validation slides; None ranks nothing.
    """
    sites = _section("Sites", site_tables(summary.sites, summary.site_gaps))
    found = [*_of_methods(summary, level, rank_by), *_of_runs(summary), sites]
    sources = provenances(summary) if summary.methods else []
    slides = [account_table(summary.accounts), unused_table(summary.accounts)]
    found += [_section("Every slide", slides), _section("Where it comes from", sources)]
    return [section for section in found if section.tables or section.figures]


def tables_of(sections: list[Section]) -> list[Table]:
    """The tables alone, in the order of the report."""
    return [table for section in sections for table in section.tables]


def _of_methods(summary: Summary, level: Level, rank_by: str | None) -> list[Section]:
    if not summary.methods:
        return []
    results = [by_shots(summary, level=level), figures_of(summary, level="patient")]
    results += [differences(summary, level=level)] if summary.comparisons else []
    results += [ranking(summary.methods, rank_by)] if rank_by is not None else []
    has_folds = any(len(method.folds) > 1 for method in summary.methods)
    has_means = any(result.over_folds is not None for result in summary.results)
    trust = [one for one in summary.trust if one.found is not None]
    return [
        _section("In short", [in_short(summary)] if trust else []),
        _section("Results", results, [shots_figure(summary, level=level)]),
        _section(
            "Fold by fold",
            [over_folds(summary, level=level)] if has_means else [],
            [fold_dots(summary.methods, level=level)] if has_folds else [],
        ),
        _section("Classes", [recalls(summary, level=level)], curves(summary, level=level)),
        _section("Can it be trusted?", trust_tables(summary.trust), trust_figures(summary.trust)),
        _section("Controls", [_controls(summary, level)] if summary.controls else []),
        _section("Slide by slide", [figures_of(summary, level="slide")]),
    ]


def _controls(summary: Summary, level: Level) -> Table:
    estimates = {(one.method, one.metric): one.estimate for one in summary.results if one.level == level}
    return control_table(summary.controls, estimates, level=level)


def _of_runs(summary: Summary) -> list[Section]:
    return [
        _section("Other figures", [figures_of_runs(summary)] if summary.of_runs else []),
        _section("The maps", map_tables(summary.maps)),
        _section("The words", [drift_table(summary.drifts)] if summary.drifts else []),
        _section("Labels without signal", [null_table(summary.null_checks)] if summary.null_checks else []),
    ]


def _section(title: str, tables: list[Table], figures: list[Figure] | None = None) -> Section:
    return Section(title=title, tables=tuple(tables), figures=tuple(figures or ()))
