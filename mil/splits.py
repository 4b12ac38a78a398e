"""The split file: who is train, val and test in each fold, and every rule that a table must keep.

One row a slide, ``patient_id,slide_id,label,site,fold_0,fold_1,…``, cells ``train``, ``val``, ``test`` or empty (not
used in that fold). How a split is drawn is in `mil.schemes`.
"""

import csv
import hashlib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from feature_extraction.errors import InputError
from feature_extraction.files import publish_text
from mil.cohort import Cohort, conflicting_labels, is_missing, listed, read_rows, require_readable
from mil.labels import ONE_CLASS, LabelKind

PARTS = ("train", "val", "test")
KFOLD = "kfold"
FEW_SHOT = "few_shot"
LEAVE_ONE_SITE_OUT = "leave_one_site_out"
FIXED_COLUMNS = ("patient_id", "slide_id", "label", "site")
_FEW_SHOT_STEM = re.compile(rf"{FEW_SHOT}_(\d+)(?:[_-].*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRow:
    """One slide and its part in every fold.

    Attributes:
        patient_id: All slides of a patient are in one part of a fold.
        slide_id: The slide.
        label: As `mil.labels` reads it.
        site: Where it comes from, None when unknown.
        parts: Its part in fold 0, 1, …; empty where it is not used.
    """

    patient_id: str
    slide_id: str
    label: str
    site: str | None
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitTable:
    """A split, its rows ordered by patient, then slide.

    Attributes:
        rows: One a slide.
        scheme: ``kfold``, ``few_shot``, or the file's stem when somebody else made it.
        shots: Training patients per class, None for all.
    """

    rows: tuple[SplitRow, ...]
    scheme: str
    shots: int | None

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return len(self.rows[0].parts)

    @property
    def classes(self) -> tuple[str, ...]:
        """The different labels, sorted."""
        return tuple(sorted({row.label for row in self.rows}))

    def part(self, fold: int, part: str) -> tuple[SplitRow, ...]:
        """The slides of one part (train, val, test) of a fold, ordered by patient, then slide.

        Raises:
            InputError: No such fold or part.
        """
        if part not in PARTS:
            raise InputError(f"part={part}: expected one of {', '.join(PARTS)}")
        if not 0 <= fold < self.n_folds:
            raise InputError(f"fold={fold}: this split has folds 0 to {self.n_folds - 1}; choose one of them")
        return tuple(row for row in self.rows if row.parts[fold] == part)

    def unused(self, fold: int) -> tuple[SplitRow, ...]:
        """The slides that a fold does not use."""
        return tuple(row for row in self.rows if row.parts[fold] == "")

    def to_csv(self) -> str:
        """The file's text."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow((*FIXED_COLUMNS, *(f"fold_{fold}" for fold in range(self.n_folds))))
        writer.writerows((row.patient_id, row.slide_id, row.label, row.site or "", *row.parts) for row in self.rows)
        return stream.getvalue()

    def sha256(self) -> str:
        """Hex SHA-256 of the file as `write_split` writes it, whatever the order of rows it was read in."""
        return hashlib.sha256(self.to_csv().encode()).hexdigest()


def make_table(rows: Iterable[SplitRow], *, scheme: str, shots: int | None) -> SplitTable:
    """A table with its rows in the one order."""
    ordered = sorted(rows, key=lambda row: (row.patient_id, row.slide_id))
    return SplitTable(rows=tuple(ordered), scheme=scheme, shots=shots)


def read_split(path: Path, *, kind: LabelKind = ONE_CLASS) -> SplitTable:
    """Read a split file and check what can be checked without the labels table.

    The scheme is in the file's name, as `split_name` gives it: ``few_shot_4.csv`` trains on 4 patients a class.

    Args:
        path: The file.
        kind: What a label is.

    Raises:
        InputError: Not such a file, or `check_split` refuses it.
    """
    columns, lines = read_rows(path)
    folds = [name for name in columns if name.startswith("fold_")]
    missing = [name for name in FIXED_COLUMNS if name not in columns]
    if missing or not folds or folds != [f"fold_{number}" for number in range(len(folds))]:
        expected = ", ".join(FIXED_COLUMNS)
        raise InputError(f"{path}: expected columns {expected}, fold_0, fold_1, …; got {listed(columns)}")
    faults = [
        f"line {number}: {name}={line[name]!r}"
        for number, line in lines.items()
        for name in columns
        if (name in folds and line[name] not in (*PARTS, "")) or (name in FIXED_COLUMNS[:3] and is_missing(line[name]))
    ]
    if faults:
        raise InputError(f"{path}: expected ids, a label, and {', '.join(PARTS)} or nothing; got {listed(faults)}")
    scheme, shots = _scheme_of(path.stem)
    rows = (
        SplitRow(
            patient_id=line["patient_id"],
            slide_id=line["slide_id"],
            label=line["label"],
            site=None if is_missing(line["site"]) else line["site"],
            parts=tuple(line[name] for name in folds),
        )
        for line in lines.values()
    )
    table = make_table(rows, scheme=scheme, shots=shots)
    require_readable(str(path), ((row.slide_id, row.label) for row in table.rows), kind)
    _refuse(find_faults(table, kind=kind), str(path))
    return table


def write_split(table: SplitTable, path: Path) -> None:
    """Write a split file, readable by people and by `read_split`.

    Raises:
        InputError: The file's name would make `read_split` see another scheme.
    """
    if _scheme_of(path.stem)[1] != table.shots:
        raise InputError(f"out={path}: the name says how many shots there are; expected {split_name(table)}.csv")
    publish_text(path, table.to_csv())


def split_name(table: SplitTable) -> str:
    """The stem of the file: the scheme, with the shots of a few-shot split."""
    return table.scheme if table.shots is None else f"{table.scheme}_{table.shots}"


def check_split(table: SplitTable, *, cohort: Cohort | None = None, kind: LabelKind = ONE_CLASS) -> None:
    """Refuse a split that would make a number dishonest.

    Args:
        table: The split.
        cohort: The labels table it must agree with; None checks the split alone.
        kind: What a label is.

    Raises:
        InputError: Every fault found, with the ids.
    """
    _refuse(find_faults(table, cohort=cohort, kind=kind), "split")


def find_faults(table: SplitTable, *, cohort: Cohort | None = None, kind: LabelKind = ONE_CLASS) -> tuple[str, ...]:
    """Every broken rule of a split, one sentence each with the ids; empty for a sound table."""
    faults = [*_duplicates(table), *_conflicts(table), *_classes(table, kind)]
    for fold in range(table.n_folds):
        faults += [*_two_sided(table, fold), *_absent(table, fold, kind)]
    return (*faults, *(() if cohort is None else _disagreements(table, cohort)))


def _refuse(faults: tuple[str, ...], name: str) -> None:
    if faults:
        raise InputError(f"{name}: {'; '.join(faults)}; correct the file, or make it anew with `promptmil split`")


def _scheme_of(stem: str) -> tuple[str, int | None]:
    found = _FEW_SHOT_STEM.fullmatch(stem)
    if found:
        return FEW_SHOT, int(found[1])
    return (KFOLD if stem.startswith(KFOLD) else stem), None


def _duplicates(table: SplitTable) -> Iterator[str]:
    twice = [name for name, count in Counter(row.slide_id for row in table.rows).items() if count > 1]
    if twice:
        yield f"slide {listed(twice)} is there more than once"


def _conflicts(table: SplitTable) -> Iterator[str]:
    faults = conflicting_labels((row.patient_id, row.label) for row in table.rows)
    if faults:
        yield f"more than one label: {listed(faults)}"


def _required(rows: Iterable[SplitRow], kind: LabelKind) -> set[str]:
    return {name for row in rows for name in kind.required(row.label)}


def _classes(table: SplitTable, kind: LabelKind) -> Iterator[str]:
    found = sorted(_required(table.rows, kind))
    if len(found) < kind.fewest_names:
        at_least = "at least two classes" if kind.fewest_names > 1 else "at least one class or event"
        yield f"expected {at_least}, got {listed(found) or 'none'}"


def _two_sided(table: SplitTable, fold: int) -> Iterator[str]:
    parts: defaultdict[str, set[str]] = defaultdict(set)
    for row in table.rows:
        if row.parts[fold]:
            parts[row.patient_id].add(row.parts[fold])
    faults = [f"{name} ({', '.join(sorted(found))})" for name, found in sorted(parts.items()) if len(found) > 1]
    if faults:
        yield f"fold {fold}: on two sides: patient {listed(faults)}"


def _absent(table: SplitTable, fold: int, kind: LabelKind) -> Iterator[str]:
    """A class is never missing from train; from val or test only where the scheme may leave it out (nan there)."""
    may_lack = table.scheme.startswith((FEW_SHOT, LEAVE_ONE_SITE_OUT))
    for part in PARTS[:1] if may_lack else kind.parts:
        missing = sorted(_required(table.rows, kind) - _required(table.part(fold, part), kind))
        if missing:
            yield f"fold {fold}: no {part} slide {'of class ' if kind.is_class else ''}{listed(missing)}"


def _disagreements(table: SplitTable, cohort: Cohort) -> Iterator[str]:
    known = {row.slide_id: row for row in cohort.rows}
    unknown = [row.slide_id for row in table.rows if row.slide_id not in known]
    if unknown:
        yield f"slide {listed(unknown)} is not in the labels table"
    pairs = [(row, known[row.slide_id]) for row in table.rows if row.slide_id in known]
    labels = [f"slide {a.slide_id} ({a.label}, expected {b.label})" for a, b in pairs if a.label != b.label]
    if labels:
        yield f"another label than in the labels table: {listed(labels)}"
    moved = [(a, b.patient_id) for a, b in pairs if a.patient_id != b.patient_id]
    patients = [f"slide {row.slide_id} ({row.patient_id}, expected {name})" for row, name in moved]
    if patients:
        yield f"another patient than in the labels table: {listed(patients)}"
