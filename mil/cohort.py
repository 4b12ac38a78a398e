"""The labels table: which slide is of which patient and what it is called."""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from feature_extraction.errors import InputError
from mil.labels import ONE_CLASS, LabelKind

NOT_A_VALUE = frozenset({"", "#n/a", "<na>", "[not available]", "n/a", "na", "nan", "none", "null"})
"""Cells (lower case) that spreadsheets and scripts leave where a value is missing; never an id or a class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortRow:
    """One slide.

    Attributes:
        slide_id: Unique in the table.
        patient_id: The unit that folds and intervals respect.
        label: As `mil.labels` reads it, the same for all slides of a patient.
        site: Where it comes from, None when the table does not say.
    """

    slide_id: str
    patient_id: str
    label: str
    site: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """The labelled slides, in the order of the table.

    Attributes:
        rows: One a slide.
    """

    rows: tuple[CohortRow, ...]

    def labels_of_patients(self) -> dict[str, str]:
        """Patient to label, in the order of the patient ids, whatever the order of the table."""
        return dict(sorted((row.patient_id, row.label) for row in self.rows))


def read_labels(path: Path, *, slide_is_patient: bool = False, kind: LabelKind = ONE_CLASS) -> Cohort:
    """Read a CSV with the columns ``slide_id, patient_id, label`` and optionally ``site``; others are ignored.

    Cells are text and lose the blanks around them: ``007`` stays ``007``.

    Args:
        path: The table.
        slide_is_patient: Each slide is its own patient; only for a table without a ``patient_id`` column.
        kind: What a label is, and which columns hold it.

    Raises:
        InputError: A column is missing, a value is missing or cannot be read, a slide is there twice, or a patient has
            two labels.
    """
    columns, lines = read_rows(path)
    _require_columns(path, columns, kind.columns(columns), slide_is_patient=slide_is_patient)
    patient_column = "slide_id" if slide_is_patient else "patient_id"
    _require_values(path, lines, dict.fromkeys(("slide_id", patient_column, *kind.columns(columns))))
    rows = tuple(
        CohortRow(
            slide_id=line["slide_id"],
            patient_id=line[patient_column],
            label=kind.cell(line),
            site=None if is_missing(line.get("site", "")) else line["site"],
        )
        for line in lines.values()
    )
    _require_once(path, [row.slide_id for row in rows])
    require_readable(str(path), ((row.slide_id, row.label) for row in rows), kind)
    _require_one_label(path, rows)
    return Cohort(rows=rows)


def read_patients(path: Path, *, slide_is_patient: bool = False) -> dict[str, str]:
    """Slide to patient, of a CSV with the columns ``slide_id, patient_id``; it need not have labels.

    Args:
        path: The table.
        slide_is_patient: Each slide is its own patient; only for a table without a ``patient_id`` column.

    Raises:
        InputError: A column or a value is missing, or a slide is there twice.
    """
    columns, lines = read_rows(path)
    _require_columns(path, columns, (), slide_is_patient=slide_is_patient)
    patient_column = "slide_id" if slide_is_patient else "patient_id"
    _require_values(path, lines, ("slide_id", patient_column))
    _require_once(path, [line["slide_id"] for line in lines.values()])
    return {line["slide_id"]: line[patient_column] for line in lines.values()}


def read_rows(path: Path, *, delimiter: str = ",") -> tuple[tuple[str, ...], dict[int, dict[str, str]]]:
    """The column names of a CSV, and line number to cells; every cell is text without blanks around it.

    Args:
        path: The table.
        delimiter: Between cells.

    Raises:
        InputError: No such file, not a UTF-8 CSV, no row, or a row of another length than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            header = tuple(cell.strip() for cell in next(reader, []))
            lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a UTF-8 CSV ({error}); give a comma-separated table") from error
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise InputError(f"{path}: column {listed(twice)} is there twice; rename one")
    uneven = [str(number) for number, line in lines if len(line) != len(header)]
    if uneven:
        raise InputError(f"{path}: line {listed(uneven)}: expected {len(header)} cells; quote text with commas")
    if not lines:
        raise InputError(f"{path}: expected a header and at least one row, got no row; fill the table")
    return header, {number: dict(zip(header, line, strict=True)) for number, line in lines}


def is_missing(cell: str) -> bool:
    """Whether a cell is empty or one of the words that stand for that."""
    return cell.strip().lower() in NOT_A_VALUE


def listed(items: Iterable[str], *, most: int = 12) -> str:
    """The first items for a message, and how many more there are."""
    names = list(items)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def require_readable(name: str, pairs: Iterable[tuple[str, str]], kind: LabelKind) -> None:
    """Refuse labels that this kind cannot read, from (slide, label) pairs.

    Raises:
        InputError: With the slides, what they hold and what was expected.
    """
    faults = [(slide_id, label, kind.fault(label)) for slide_id, label in pairs]
    said = [f"slide {slide_id}: {label!r}" for slide_id, label, fault in faults if fault]
    if said:
        expected = next(fault for _, _, fault in faults if fault)
        raise InputError(f"{name}: expected {expected}, got {listed(said)}; correct them, or choose another task=…")


def _require_columns(path: Path, columns: Sequence[str], of_label: Sequence[str], *, slide_is_patient: bool) -> None:
    missing = [name for name in ("slide_id", *of_label) if name not in columns]
    if missing:
        raise InputError(f"{path}: no column {listed(missing)}; got {listed(columns)}; add it")
    has_patients = "patient_id" in columns
    if not has_patients and not slide_is_patient:
        raise InputError(
            f"{path}: no column patient_id; got {listed(columns)}; add it, or set slide_is_patient=true if no two "
            "slides are of one patient"
        )
    if has_patients and slide_is_patient:
        raise InputError(f"{path}: has a column patient_id; leave slide_is_patient=true out")


def _require_values(path: Path, lines: Mapping[int, Mapping[str, str]], columns: Iterable[str]) -> None:
    faults = [
        f"line {number} (slide {line['slide_id'] or '?'}): {name}={line[name]!r}"
        for number, line in lines.items()
        for name in columns
        if is_missing(line[name])
    ]
    if faults:
        raise InputError(f"{path}: a value is missing in {listed(faults)}; fill it in, or remove the row")


def _require_once(path: Path, slide_ids: Sequence[str]) -> None:
    twice = [slide_id for slide_id, count in Counter(slide_ids).items() if count > 1]
    if twice:
        raise InputError(f"{path}: slide {listed(twice)} is there more than once; keep one row a slide")


def _require_one_label(path: Path, rows: Sequence[CohortRow]) -> None:
    faults = conflicting_labels((row.patient_id, row.label) for row in rows)
    if faults:
        raise InputError(f"{path}: expected one label a patient, got {listed(faults)}; correct them")


def conflicting_labels(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Patients with more than one label, each with its labels, from (patient, label) pairs."""
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for patient_id, label in pairs:
        labels[patient_id].add(label)
    return [f"patient {name}: {', '.join(sorted(found))}" for name, found in sorted(labels.items()) if len(found) > 1]
