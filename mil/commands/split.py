"""`promptmil split`: a labels table -> patient-disjoint folds, as a file to review and commit."""

from collections import Counter
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from feature_extraction.errors import InputError
from feature_extraction.files import publish_json
from mil.cohort import read_labels
from mil.commands import settings
from mil.labels import LabelKind
from mil.schemes import make_split
from mil.splits import PARTS, SplitTable, split_name, write_split
from mil.task import build_task


def run(config: DictConfig) -> int:
    """Draw a split and write it; returns the exit code."""
    kind = build_task(settings.plain(config.task)).labels
    cohort = read_labels(Path(config.labels), slide_is_patient=bool(config.slide_is_patient), kind=kind)
    table = make_split(
        cohort,
        scheme=str(config.scheme),
        folds=int(config.folds),
        seed=int(config.seed),
        shots=None if config.shots is None else int(config.shots),
        val_fraction=float(config.val_fraction),
        kind=kind,
    )
    path = _target(Path(config.out), table)
    _require_same(path, table)
    write_split(table, path)
    counts = [_counts(table, fold, part, kind) for fold in range(table.n_folds) for part in (*PARTS, "")]
    publish_json(
        path.parent / "summary.json",
        {
            "command": "split",
            "split": path.name,
            "sha256": table.sha256(),
            "scheme": table.scheme,
            "shots": table.shots,
            "seed": int(config.seed),
            "slide_is_patient": bool(config.slide_is_patient),
            "patients": len({row.patient_id for row in table.rows}),
            "slides": len(table.rows),
            "parts": counts,
        },
    )
    _say(table, path, counts)
    return 0


def _target(out: Path, table: SplitTable) -> Path:
    """The file: ``out`` itself when it is a CSV, else ``<out>/<scheme>.csv``."""
    return out if out.suffix == ".csv" else out / f"{split_name(table)}.csv"


def _require_same(path: Path, table: SplitTable) -> None:
    """Refuse to replace a split by another one: results that were made with it would lose their folds."""
    try:
        present = path.read_bytes()
    except FileNotFoundError:
        return
    if present != table.to_csv().encode():
        raise InputError(
            f"out={path}: holds another split than this one ({table.sha256()[:12]}…); give another out=…, or "
            "delete the file if nothing was trained with it"
        )


def _counts(table: SplitTable, fold: int, part: str, kind: LabelKind) -> dict[str, object]:
    """Patients and slides of a part, and its patients of each class; the part is empty for what a fold leaves out."""
    named = {row.patient_id: kind.required(row.label) for row in table.rows}
    rows = table.part(fold, part) if part else table.unused(fold)
    patients = {row.patient_id for row in rows}
    of_class = Counter(name for patient in patients for name in named[patient])
    return {
        "fold": fold,
        "part": part or "unused",
        "patients": len(patients),
        "slides": len(rows),
        "classes": {name: of_class[name] for name in sorted({n for names in named.values() for n in names})},
    }


def _say(table: SplitTable, path: Path, counts: list[dict[str, object]]) -> None:
    console = Console(stderr=True)
    shown = Table("fold", "part", "patients", "slides", "patients of each class", box=None)
    for row in counts:
        classes = row["classes"]
        if row["slides"] and isinstance(classes, dict):
            per_class = ", ".join(f"{name} {count}" for name, count in classes.items())
            shown.add_row(str(row["fold"]), str(row["part"]), str(row["patients"]), str(row["slides"]), Text(per_class))
    console.print(shown)
    console.print(f"{table.n_folds} folds, sha256 {table.sha256()[:12]} -> {path}", soft_wrap=True, markup=False)
