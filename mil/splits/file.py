"""The split file: who is train, val and test in each fold.

One row a slide, ``patient_id,slide_id,label,site,fold_0,fold_1,…``, cells ``train``, ``val``, ``test`` or empty (not
used in that fold). The table is in `mil.splits.table`, its rules in `mil.splits.guards`, the draws in
`mil.splits.schemes`.
"""

import re
from pathlib import Path

from feature_extraction.errors import InputError
from feature_extraction.files import publish_text
from mil.cohort import is_missing, listed, read_rows, require_readable
from mil.labels import ONE_CLASS, LabelKind
from mil.splits.guards import check_split, find_faults, refuse
from mil.splits.table import FEW_SHOT, FIXED_COLUMNS, PARTS, SCHEME_NAMES, SplitRow, SplitTable, make_table

__all__ = [
    "PARTS",
    "SplitRow",
    "SplitTable",
    "check_split",
    "find_faults",
    "make_table",
    "read_split",
    "split_name",
    "write_split",
]

_FEW_SHOT_STEM = re.compile(rf"{FEW_SHOT}_(\d+)(?:[_-].*)?")


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
        f"line {number} (slide {line['slide_id'] or '?'}): {name}={line[name]!r}"
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
    refuse(find_faults(table, kind=kind), str(path))
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


def _scheme_of(stem: str) -> tuple[str, int | None]:
    found = _FEW_SHOT_STEM.fullmatch(stem)
    if found:
        return FEW_SHOT, int(found[1])
    return next((name for name in SCHEME_NAMES if name != FEW_SHOT and stem.startswith(name)), stem), None
