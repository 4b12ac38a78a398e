"""`promptmil split`: labels -> patient-disjoint folds."""

from collections import Counter
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from feature_extraction.files import publish_json
from mil.cohort import read_labels
from mil.schemes import make_split
from mil.splits import PARTS, SplitTable, split_name, write_split


def run(config: DictConfig) -> int:
    """Write a split; returns the exit code."""
    cohort = read_labels(Path(config.labels), slide_is_patient=config.slide_is_patient)
    table = make_split(
        cohort,
        scheme=config.scheme,
        folds=config.folds,
        seed=config.seed,
        shots=config.shots,
        val_fraction=config.val_fraction,
    )
    out = Path(config.out)
    path = out if out.suffix == ".csv" else out / f"{split_name(table)}.csv"
    write_split(table, path)
    counts = _counts(table)
    summary = {"command": "split", "split": path.name, "sha256": table.sha256(), "seed": config.seed, "folds": counts}
    publish_json(path.parent / "summary.json", summary)
    _print(counts, path)
    return 0


def _counts(table: SplitTable) -> list[dict[str, str]]:
    """Slides and patients of each class in each part of each fold."""
    lines: list[dict[str, str]] = []
    for fold in range(table.n_folds):
        line = {"fold": str(fold)}
        for part in PARTS:
            rows = table.part(fold, part)
            classes = Counter(label for _, label in {(row.patient_id, row.label) for row in rows})
            shown = ", ".join(f"{count} {name}" for name, count in sorted(classes.items()))
            line[part] = f"{len(rows)} slides of {sum(classes.values())} patients ({shown})"
        lines.append(line)
    return lines


def _print(counts: list[dict[str, str]], path: Path) -> None:
    table = Table("fold", *PARTS, box=None)
    for line in counts:
        table.add_row(*line.values())
    console = Console(stderr=True)
    console.print(table)
    console.print(f"-> {path}", soft_wrap=True, markup=False)
