"""`promptmil split`: a labels table -> patient-disjoint folds, as a file to review; others' split files in and out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from feature_extraction.errors import InputError
from feature_extraction.files import publish_json, publish_text
from mil.cohort import Cohort, listed, read_labels
from mil.commands import settings
from mil.commands.split_shown import association_shown, part_counts, say_parts, say_sites
from mil.labels import NUMBER, ONE_CLASS, SEVERAL_CLASSES, TIME_TO_EVENT, LabelKind
from mil.splits.draws import SplitSettings
from mil.splits.file import read_split, split_name, write_split
from mil.splits.fixed import ValDrawing, fix_split, read_official
from mil.splits.guards import check_split, refuse
from mil.splits.interop import READERS, WRITERS
from mil.splits.lookalikes import find_lookalikes, read_looks
from mil.splits.schemes import SCHEMES, draw_split
from mil.splits.sites import site_association
from mil.splits.table import OFFICIAL, SplitTable
from mil.splits.twins import feature_folders, find_twins, read_contents

_LABELS_OF_TASKS = {
    "mil.tasks.binary.Binary": ONE_CLASS,
    "mil.tasks.classification.Classification": ONE_CLASS,
    "mil.tasks.cox.Cox": TIME_TO_EVENT,
    "mil.tasks.hazard.DiscreteHazard": TIME_TO_EVENT,
    "mil.tasks.multilabel.Multilabel": SEVERAL_CLASSES,
    "mil.tasks.ordinal.Ordinal": ONE_CLASS,
    "mil.tasks.regression.Regression": NUMBER,
}
"""What our tasks say of their labels. Asking them would load torch, for seconds; a task that is not here is asked."""


def run(config: DictConfig) -> int:
    """Draw a split, or take one over, and write it; returns the exit code."""
    kind = label_kind(settings.plain(config.task))
    cohort = read_labels(Path(config.labels), slide_is_patient=bool(config.slide_is_patient), kind=kind)
    if config.to is not None:
        return _hand_over(config, cohort, kind)
    table, note = _made(config, cohort, kind)
    notes = [note, *_twins(config, cohort), *_unused(table)]
    path = _target(Path(config.out), table)
    _require_same(path, table.to_csv(), "split")
    write_split(table, path)
    counts = part_counts(table, kind)
    association = site_association(cohort, kind)
    publish_json(
        path.parent / "summary.json",
        {
            "command": "split",
            "split": path.name,
            "sha256": table.sha256(),
            "scheme": table.scheme,
            "shots": table.shots,
            "from": config["from"],
            "official": config.official,
            "seed": int(config.seed),
            "slide_is_patient": bool(config.slide_is_patient),
            "patients": len({row.patient_id for row in table.rows}),
            "slides": len(table.rows),
            "parts": counts,
            "notes": [said for said in notes if said],
            "site_and_label": association and association_shown(association),
        },
    )
    console = Console(stderr=True)
    say_parts(console, counts)
    if association is not None:
        say_sites(console, table, association, kind)
    for said in filter(None, notes):
        console.print(said, soft_wrap=True, markup=False)
    console.print(f"{table.n_folds} folds, sha256 {table.sha256()[:12]} -> {path}", soft_wrap=True, markup=False)
    return 0


def label_kind(task: Mapping[str, object]) -> LabelKind:
    """What a label is to a task, without loading torch where that is known."""
    known = _LABELS_OF_TASKS.get(str(task.get("_target_")))
    if known is not None:
        return known
    from mil.task import build_task

    return build_task(task).labels


def _made(config: DictConfig, cohort: Cohort, kind: LabelKind) -> tuple[SplitTable, str]:
    """The table, and what people should know of it."""
    val = ValDrawing(seed=int(config.seed), fraction=float(config.val_fraction))
    _require_known("from", config["from"])
    if config["from"] is not None:
        given = READERS[config["from"]](_source(config))
        return fix_split(cohort, given, scheme=config["from"], val=val, kind=kind)
    if (config.scheme == OFFICIAL) != (config.official is not None):
        raise InputError(
            f"scheme={config.scheme}, official={config.official}: an official split needs both: scheme=official, and "
            "official= the column of the labels table with train, val, test, or a .csv"
        )
    if config.scheme == OFFICIAL:
        return fix_split(cohort, read_official(Path(config.labels), str(config.official)), val=val, kind=kind)
    if config.scheme not in SCHEMES:
        raise InputError(f"scheme={config.scheme}: expected one of {', '.join((*SCHEMES, OFFICIAL))}")
    asked = SplitSettings(
        scheme=str(config.scheme),
        folds=int(config.folds),
        seed=int(config.seed),
        val_fraction=float(config.val_fraction),
        shots=None if config.shots is None else int(config.shots),
        repeats=None if config.repeats is None else int(config.repeats),
        test_fraction=None if config.test_fraction is None else float(config.test_fraction),
    )
    return draw_split(cohort, asked, kind=kind)


def _hand_over(config: DictConfig, cohort: Cohort, kind: LabelKind) -> int:
    """Write our split for another tool; returns the exit code."""
    _require_known("to", config.to)
    if config["from"] is not None:
        raise InputError(f"from={config['from']}, to={config.to}: give one of them; take over first, then hand on")
    if config.to == "six_column" and kind.fewest_names < 2:
        raise InputError("to=six_column: it numbers the classes, and these labels are not one class; use patho_bench")
    source = _source(config)
    table = read_split(source, kind=kind)
    check_split(table, cohort=cohort, kind=kind)
    files = WRITERS[config.to](table)
    folder = Path(config.out)
    for name, text in files.items():
        _require_same(folder / name, text, "split for that tool")
    for name, text in files.items():
        publish_text(folder / name, text)
    publish_json(
        folder / "summary.json",
        {"command": "split", "to": config.to, "split": source.name, "sha256": table.sha256(), "files": sorted(files)},
    )
    said = f"{table.n_folds} folds, sha256 {table.sha256()[:12]} -> {folder} ({', '.join(sorted(files))})"
    Console(stderr=True).print(said, soft_wrap=True, markup=False)
    return 0


def _require_known(key: str, tool: str | None) -> None:
    if tool is not None and tool not in READERS:
        raise InputError(f"{key}={tool}: expected one of {', '.join(READERS)}")


def _source(config: DictConfig) -> Path:
    if config.source is None:
        raise InputError("from=… and to=… need source=…: the file or folder to read")
    return Path(config.source)


def _twins(config: DictConfig, cohort: Cohort) -> list[str]:
    """Refuse one slide under the ids of two patients; what else is worth knowing."""
    if config.check_slides is None:
        return []
    source, slide_ids = Path(config.check_slides), [row.slide_id for row in cohort.rows]
    contents = read_contents(source, slide_ids)
    faults, notes = find_twins(cohort.rows, contents)
    refuse(faults, f"check_slides={config.check_slides}")
    return [*notes, _compared("content", slide_ids, contents.unread), *_lookalikes(source, cohort)]


def _lookalikes(source: Path, cohort: Cohort) -> list[str]:
    """Slides of two patients that people should look at. No refusal: what looks alike need not be one slide."""
    if feature_folders(source):
        return ["not compared by looks: that needs check_slides= with the slides themselves"]
    looks = read_looks(source, (row.slide_id for row in cohort.rows))
    notes = [
        f"warning: slide {' and '.join(pair.slides)} look alike (agreement {pair.agreement:.2f}) and are of patient "
        f"{' and '.join(pair.patients)}: look at them; if they are one glass slide, keep one row of the labels table"
        for pair in find_lookalikes(cohort.rows, looks)
    ]
    slide_ids = [row.slide_id for row in cohort.rows]
    return [*notes, _compared("looks", slide_ids, [name for name in slide_ids if name not in looks])]


def _compared(by: str, slide_ids: Sequence[str], left_out: Sequence[str]) -> str:
    n_compared = len(slide_ids) - len(left_out)
    return f"{n_compared} of {len(slide_ids)} slides compared by {by}{_ids(', not ', left_out)}"


def _unused(table: SplitTable) -> list[str]:
    idle = [row.slide_id for row in table.rows if not any(row.parts)]
    return [f"{len(idle)} slides are in no part of any fold{_ids(': ', idle)}"] if idle else []


def _ids(before: str, slide_ids: Sequence[str]) -> str:
    return before + listed(slide_ids) if slide_ids else ""


def _target(out: Path, table: SplitTable) -> Path:
    """The file: ``out`` itself when it is a CSV, else ``<out>/<scheme>.csv``."""
    return out if out.suffix == ".csv" else out / f"{split_name(table)}.csv"


def _require_same(path: Path, text: str, what: str) -> None:
    """Refuse to replace a split by another one: results that were made with it would lose their folds."""
    try:
        present = path.read_bytes()
    except FileNotFoundError:
        return
    if present != text.encode():
        raise InputError(
            f"out={path}: holds another {what} than this one; give another out=…, or delete the file if nothing was "
            "trained with it"
        )
