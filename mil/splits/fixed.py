"""A split that somebody else made: its parts checked against the labels table, val drawn where it has none."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from feature_extraction.errors import InputError
from mil.cohort import Cohort, is_missing, listed, read_rows
from mil.labels import ONE_CLASS, LabelKind
from mil.splits.draws import VAL, share
from mil.splits.guards import find_faults, refuse
from mil.splits.ids import unknown_ids
from mil.splits.table import OFFICIAL, PARTS, SplitTable, table_of

NAMES_OF_PARTS = {
    **{part: part for part in PARTS},
    **dict.fromkeys(("training",), "train"),
    **dict.fromkeys(("valid", "validation", "tune", "dev"), "val"),
    **dict.fromkeys(("testing",), "test"),
}
"""What official splits call the parts, in lower case."""
COLUMN = "split"
"""Of an official split in a file of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenSplit:
    """Who is in which part, as a file says it, right or wrong.

    Attributes:
        source: The file or folder, for messages.
        folds: For each fold (part, id) pairs; an id is a slide's or, for all of them, a patient's.
        labels: Id to the file's own label; empty where it has none.
        patients: Slide to the file's own patient; empty where it has none.
    """

    source: str
    folds: tuple[tuple[tuple[str, str], ...], ...]
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    patients: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class ValDrawing:
    """How val is drawn where a fold has none.

    Attributes:
        seed: Of the draw.
        fraction: Share of each class's training patients.
    """

    seed: int = 0
    fraction: float = 0.2


def read_official(labels: Path, official: str) -> GivenSplit:
    """An official split: a column of the labels table, or a CSV with ``slide_id`` or ``patient_id`` and ``split``.

    Args:
        labels: The labels table.
        official: Name of the column, or path of the CSV.

    Raises:
        InputError: No such column, or a cell that names no part.
    """
    path, column = (Path(official), COLUMN) if official.lower().endswith(".csv") else (labels, official)
    columns, lines = read_rows(path)
    id_column = next((name for name in ("slide_id", "patient_id") if name in columns), None)
    if id_column is None or column not in columns:
        raise InputError(
            f"{path}: expected slide_id or patient_id, and {column}, got {listed(columns)}; name the column with "
            f"official=…, or give a .csv with a column {COLUMN}"
        )
    cells = {line[id_column]: line[column] for line in lines.values()}
    bad = [
        f"{name}: {cell!r}"
        for name, cell in cells.items()
        if not is_missing(cell) and cell.lower() not in NAMES_OF_PARTS
    ]
    if bad:
        raise InputError(f"{path}: {column}: expected {', '.join(PARTS)} or nothing, got {listed(bad)}; correct them")
    pairs = ((line[column], line[id_column]) for line in lines.values() if not is_missing(line[column]))
    return GivenSplit(source=str(path), folds=(tuple((NAMES_OF_PARTS[cell.lower()], name) for cell, name in pairs),))


def fix_split(
    cohort: Cohort,
    given: GivenSplit,
    *,
    scheme: str = OFFICIAL,
    val: ValDrawing | None = None,
    kind: LabelKind = ONE_CLASS,
) -> tuple[SplitTable, str]:
    """The table of a given split, and what people should know of it (empty for nothing).

    Slides of the labels table that the file does not name are in no part.

    Raises:
        InputError: Every fault found, with the ids.
    """
    slides = _slides_of_ids(cohort, given)
    faults = [fault for fold, pairs in enumerate(given.folds) for fault in _two_parts(pairs, fold)]
    faults += [*_other_patients(cohort, given), *_other_labels(cohort, given, slides)]
    folds = [{slide: part for part, name in pairs for slide in slides[name]} for pairs in given.folds]
    drawn: list[int] = []
    for fold, parts in enumerate(folds):
        if "val" not in parts.values():
            drawn.append(fold)
            chosen = _val_slides(cohort, parts, fold, val or ValDrawing(), kind)
            folds[fold] = {slide: "val" if slide in chosen else part for slide, part in parts.items()}
    table = table_of(cohort, folds, scheme=scheme)
    refuse([*faults, *find_faults(table, cohort=cohort, kind=kind)], given.source)
    said = f"val is drawn from train in fold {listed(map(str, drawn))}: {given.source} has none" if drawn else ""
    return table, said


def _slides_of_ids(cohort: Cohort, given: GivenSplit) -> dict[str, list[str]]:
    """Id to its slides: ids of the file are slides, or patients when more of them are known as such."""
    ids = dict.fromkeys(name for pairs in given.folds for _, name in pairs)
    of_patient: defaultdict[str, list[str]] = defaultdict(list)
    for row in cohort.rows:
        of_patient[row.patient_id].append(row.slide_id)
    of_slide = {row.slide_id: [row.slide_id] for row in cohort.rows}
    what, known = max((("slide", of_slide), ("patient", of_patient)), key=lambda pair: sum(n in pair[1] for n in ids))
    unknown = [name for name in ids if name not in known]
    if unknown:
        raise InputError(
            f"{given.source}: {what} {listed(unknown_ids(unknown, known))} is not in the labels table; write ids as "
            "they are there, or take them out of the file"
        )
    return {name: known[name] for name in ids}


def _two_parts(pairs: Sequence[tuple[str, str]], fold: int) -> Iterator[str]:
    parts: defaultdict[str, set[str]] = defaultdict(set)
    for part, name in pairs:
        parts[name].add(part)
    members = {part: {name for name, found in parts.items() if part in found} for part in PARTS}
    if members["val"] and members["val"] == members["test"]:
        yield f"fold {fold}: val and test are the same: {listed(sorted(members['val']))}"
    several = [f"{name} ({', '.join(sorted(found))})" for name, found in sorted(parts.items()) if len(found) > 1]
    if several:
        yield f"fold {fold}: in more than one part: {listed(several)}"
    twice = [f"{name} ({part})" for (part, name), count in sorted(Counter(pairs).items()) if count > 1]
    if twice:
        yield f"fold {fold}: there more than once: {listed(twice)}"


def _other_patients(cohort: Cohort, given: GivenSplit) -> Iterator[str]:
    """One patient of the file must be one of the labels table: as two they may be on two sides."""
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for row in cohort.rows:
        if row.slide_id in given.patients:
            patients[given.patients[row.slide_id]].add(row.patient_id)
    faults = [f"{name} ({', '.join(sorted(found))})" for name, found in sorted(patients.items()) if len(found) > 1]
    if faults:
        yield f"one patient there, several in the labels table: {listed(faults)}; give them one patient_id"


def _other_labels(cohort: Cohort, given: GivenSplit, slides: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Tools number the classes; whatever the names, slides of one label there must be of one label here."""
    label_of = {row.slide_id: row.label for row in cohort.rows}
    pairs = [(given.labels[name], label_of[slide], slide) for name in given.labels for slide in slides.get(name, ())]
    counts = Counter((theirs, ours) for theirs, ours, _ in pairs)
    usual = {theirs: ours for (theirs, ours), _ in sorted(counts.items(), key=lambda item: (item[1], item[0]))}
    faults = [
        f"slide {slide} ({theirs!r} there, which is mostly {usual[theirs]}, and {ours} in the labels table)"
        for theirs, ours, slide in pairs
        if ours != usual[theirs]
    ]
    if faults:
        yield f"another label than in the labels table: {listed(faults)}"


def _val_slides(cohort: Cohort, parts: Mapping[str, str], fold: int, val: ValDrawing, kind: LabelKind) -> set[str]:
    """A share of each class's patients that are in train alone."""
    groups = kind.groups(cohort.labels_of_patients(), 3)
    outside = {row.patient_id for row in cohort.rows if parts.get(row.slide_id) != "train"}
    training = {patient: group for patient, group in groups.items() if patient not in outside}
    chosen = set(share(training, val.fraction, (val.seed, fold), VAL))
    return {row.slide_id for row in cohort.rows if row.patient_id in chosen}
