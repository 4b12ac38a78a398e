"""Every rule that a split must keep: what would make a number dishonest is found and named."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from feature_extraction.errors import InputError
from mil.cohort import Cohort, conflicting_labels, is_missing, listed
from mil.labels import ONE_CLASS, LabelKind
from mil.splits.ids import alike, unknown_ids
from mil.splits.table import FEW_SHOT, LEAVE_ONE_SITE_OUT, PARTS, SplitRow, SplitTable


def check_split(table: SplitTable, *, cohort: Cohort | None = None, kind: LabelKind = ONE_CLASS) -> None:
    """Refuse a split that would make a number dishonest.

    Args:
        table: The split.
        cohort: The labels table it must agree with; None checks the split alone.
        kind: What a label is.

    Raises:
        InputError: Every fault found, with the ids.
    """
    refuse(find_faults(table, cohort=cohort, kind=kind), "split")


def find_faults(table: SplitTable, *, cohort: Cohort | None = None, kind: LabelKind = ONE_CLASS) -> tuple[str, ...]:
    """Every broken rule of a split, one sentence each with the ids; empty for a sound table."""
    faults = [*_missing(table), *_duplicates(table), *_alike(table), *_conflicts(table), *_classes(table, kind)]
    for fold in range(table.n_folds):
        faults += [*_two_sided(table, fold), *_val_is_test(table, fold), *_absent(table, fold, kind)]
    return (*faults, *(() if cohort is None else _disagreements(table, cohort)))


def refuse(faults: Sequence[str], name: str) -> None:
    """Stop where there are faults.

    Raises:
        InputError: With all of them.
    """
    if faults:
        raise InputError(f"{name}: {'; '.join(faults)}; correct the file, or make it anew with `promptmil split`")


def _missing(table: SplitTable) -> Iterator[str]:
    faults = [
        f"slide {row.slide_id or '?'}: {name}={value!r}"
        for row in table.rows
        for name, value in (("patient_id", row.patient_id), ("slide_id", row.slide_id), ("label", row.label))
        if is_missing(value)
    ]
    if faults:
        yield f"a value is missing in {listed(faults)}"


def _alike(table: SplitTable) -> Iterator[str]:
    """One patient under two names is on two sides without anybody noticing."""
    for what, names in (
        ("patient", {row.patient_id for row in table.rows}),
        ("slide", {row.slide_id for row in table.rows}),
    ):
        faults = alike(names)
        if faults:
            yield f"two names of probably one {what}: {listed(faults)}; write one of them, or rename if they are two"


def _duplicates(table: SplitTable) -> Iterator[str]:
    twice = [name for name, count in Counter(row.slide_id for row in table.rows).items() if count > 1]
    if twice:
        yield f"slide {listed(twice)} is there more than once"


def _conflicts(table: SplitTable) -> Iterator[str]:
    faults = conflicting_labels((row.patient_id, row.label) for row in table.rows)
    if faults:
        yield f"more than one label: {listed(faults)}"


def _required(rows: Iterable[SplitRow], kind: LabelKind) -> set[str]:
    return {name for label in {row.label for row in rows} for name in kind.required(label)}


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


def _val_is_test(table: SplitTable, fold: int) -> Iterator[str]:
    val, test = ({row.slide_id for row in table.rows if row.parts[fold] == part} for part in ("val", "test"))
    if val and val == test:
        yield f"fold {fold}: val and test are the same slides: {listed(sorted(val))}"


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
        yield f"slide {listed(unknown_ids(unknown, known))} is not in the labels table"
    there = {row.slide_id for row in table.rows}
    absent = [slide_id for slide_id in known if slide_id not in there]
    if absent:
        yield f"slide {listed(absent)} is in the labels table and has no row in the split"
    pairs = [(row, known[row.slide_id]) for row in table.rows if row.slide_id in known]
    labels = [f"slide {a.slide_id} ({a.label}, expected {b.label})" for a, b in pairs if a.label != b.label]
    if labels:
        yield f"another label than in the labels table: {listed(labels)}"
    moved = [(a, b.patient_id) for a, b in pairs if a.patient_id != b.patient_id]
    patients = [f"slide {row.slide_id} ({row.patient_id}, expected {name})" for row, name in moved]
    if patients:
        yield f"another patient than in the labels table: {listed(patients)}"
