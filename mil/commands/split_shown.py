"""What `promptmil split` shows of a split: its parts, its sites, and how site and label go together."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mil.confounding import Confounding
from mil.labels import LabelKind
from mil.splits.table import LEAVE_ONE_SITE_OUT, PARTS, SITE_PRESERVED, SplitRow, SplitTable


def part_counts(table: SplitTable, kind: LabelKind) -> list[dict[str, object]]:
    """For each part of each fold, and for what a fold leaves out: patients, slides, and its patients of each class."""
    names = sorted({name for row in table.rows for name in kind.required(row.label)})
    return [
        {"fold": fold, "part": part or "unused", **_counts(rows, names, kind)}
        for fold in range(table.n_folds)
        for part in (*PARTS, "")
        for rows in (table.part(fold, part) if part else table.unused(fold),)
    ]


def association_shown(association: Confounding) -> dict[str, object]:
    """For ``summary.json``."""
    return {
        "cramers_v": association.cramers_v,
        "p_value": association.p_value,
        "sites_with_one_class": association.one_class_sites,
    }


def say_parts(console: Console, counts: Sequence[dict[str, object]]) -> None:
    """One row for each part that has slides."""
    shown = Table("fold", "part", "patients", "slides", "patients of each class", box=None)
    for row in counts:
        if row["slides"]:
            shown.add_row(str(row["fold"]), str(row["part"]), str(row["patients"]), str(row["slides"]), _classes(row))
    console.print(shown)


def say_sites(console: Console, table: SplitTable, association: Confounding, kind: LabelKind) -> None:
    """How site and label go together; with whole sites in one fold one row a site, else what that could mean."""
    keeps_sites = table.scheme in (SITE_PRESERVED, LEAVE_ONE_SITE_OUT)
    if keeps_sites:
        names = sorted({name for row in table.rows for name in kind.required(row.label)})
        shown = Table("site", "tested in fold", "patients", "slides", "patients of each class", box=None)
        for site in sorted({row.site for row in table.rows if row.site is not None}):
            rows = [row for row in table.rows if row.site == site]
            folds = [str(fold) for fold in range(table.n_folds) if any(row.parts[fold] == "test" for row in rows)]
            row = _counts(rows, names, kind)
            shown.add_row(Text(site), ", ".join(folds), str(row["patients"]), str(row["slides"]), _classes(row))
        console.print(shown)
    alone = ", ".join(f"{site} ({label})" for site, label in association.one_class_sites.items())
    said = f"site and label: Cramér's V {association.cramers_v:.2f} (p = {association.p_value:.2g})"
    said += f"; sites with one class only: {alone}" if alone else ""
    said += "; confounded: a model may know the label by the site" if association.reason else ""
    if not keeps_sites:
        said += (
            "; this split mixes sites: scheme=site_preserved or scheme=leave_one_site_out test on sites not seen in "
            "training"
        )
    console.print(said, soft_wrap=True, markup=False)


def _counts(rows: Sequence[SplitRow], names: Sequence[str], kind: LabelKind) -> dict[str, object]:
    patients = {row.patient_id: row.label for row in rows}
    of_class = Counter(name for label in patients.values() for name in kind.required(label))
    return {"patients": len(patients), "slides": len(rows), "classes": {name: of_class[name] for name in names}}


def _classes(row: dict[str, object]) -> Text:
    classes = row["classes"]
    return Text(", ".join(f"{name} {count}" for name, count in classes.items()) if isinstance(classes, dict) else "")
