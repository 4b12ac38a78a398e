"""Split files of other tools, in and out: CLAM, Patho-Bench, STAMP, and the CSV of six columns.

``clam``: ``splits_<k>.csv`` with columns ``train``, ``val``, ``test`` of ids, or ``splits_<k>_bool.csv`` with one row
an id. ``six_column``: the same with a label beside each id (``train_label``, …), ``fold<k>.csv``. ``patho_bench``:
``k=all.tsv``, one row a slide, ``case_id``, ``slide_id``, a label, ``fold_<k>``. ``stamp``: ``splits.json`` with the
training and test patients of each split; STAMP draws its val from the training patients.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from feature_extraction.errors import InputError
from mil.cohort import is_missing, listed, read_rows
from mil.splits.fixed import NAMES_OF_PARTS, GivenSplit
from mil.splits.table import PARTS, SplitTable

_BOOLEANS = {"true": True, "false": False}
Pairs = tuple[tuple[str, str], ...]


def read_clam(source: Path) -> GivenSplit:
    """CLAM: a folder of ``splits_<k>.csv`` or ``splits_<k>_bool.csv``, or one such file.

    Raises:
        InputError: No such files, or a fold is missing.
    """
    paths = _numbered(source, r"splits_(\d+)\.csv", r"splits_(\d+)_bool\.csv")
    return GivenSplit(source=str(source), folds=tuple(_columns(path)[0] for path in paths))


def read_six_column(source: Path) -> GivenSplit:
    """A folder of ``fold<k>.csv`` with ``train,train_label,val,val_label,test,test_label``, or one such file.

    Raises:
        InputError: No such files, or a fold is missing.
    """
    read = [_columns(path) for path in _numbered(source, r"(?:.*\D)?(\d+)\.csv")]
    labels = {name: label for _, given in read for name, label in given.items()}
    return GivenSplit(source=str(source), folds=tuple(pairs for pairs, _ in read), labels=labels)


def read_patho_bench(source: Path) -> GivenSplit:
    """Patho-Bench: ``k=all.tsv`` or a task's folder; rows without a label are not used, as there.

    Raises:
        InputError: No such file, or a cell that names no part.
    """
    path = source / "k=all.tsv" if source.is_dir() else source
    columns, lines = read_rows(path, delimiter="," if path.suffix == ".csv" else "\t")
    folds = sorted((name for name in columns if re.fullmatch(r"fold_\d+", name)), key=lambda name: int(name[5:]))
    if not {"case_id", "slide_id"} <= set(columns) or not folds:
        raise InputError(f"{path}: expected case_id, slide_id and fold_0, got {listed(columns)}; give a k=all.tsv")
    others = [name for name in columns if name not in {*folds, "case_id", "slide_id", ""}]
    rows = [line for line in lines.values() if len(others) != 1 or not is_missing(line[others[0]])]
    bad = [
        f"slide {line['slide_id']}: {name}={line[name]!r}"
        for line in rows
        for name in folds
        if not is_missing(line[name]) and line[name].lower() not in NAMES_OF_PARTS
    ]
    if bad:
        raise InputError(f"{path}: expected train, val, test or nothing, got {listed(bad)}; correct them")
    return GivenSplit(
        source=str(path),
        folds=tuple(
            tuple((NAMES_OF_PARTS[line[name].lower()], line["slide_id"]) for line in rows if not is_missing(line[name]))
            for name in folds
        ),
        labels={line["slide_id"]: line[others[0]] for line in rows} if len(others) == 1 else {},
        patients={line["slide_id"]: line["case_id"] for line in rows},
    )


def read_stamp(source: Path) -> GivenSplit:
    """STAMP: ``splits.json``, or the folder of a cross-validation.

    Raises:
        InputError: No such file.
    """
    path = source / "splits.json" if source.is_dir() else source
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); give the splits.json of STAMP") from error
    splits = cast("Mapping[str, object]", content).get("splits") if isinstance(content, dict) else None
    if not isinstance(splits, list) or not splits:
        raise InputError(f'{path}: expected {{"splits": […]}}; give the splits.json of STAMP')
    return GivenSplit(source=str(path), folds=tuple(_stamp_pairs(one, path) for one in cast("list[object]", splits)))


READERS: Mapping[str, Callable[[Path], GivenSplit]] = {
    "clam": read_clam,
    "patho_bench": read_patho_bench,
    "stamp": read_stamp,
    "six_column": read_six_column,
}


def clam_files(table: SplitTable) -> dict[str, str]:
    """``splits_<k>.csv`` and ``splits_<k>_bool.csv``, name to text."""
    files: dict[str, str] = {}
    for fold in range(table.n_folds):
        slides = {part: [row.slide_id for row in table.part(fold, part)] for part in PARTS}
        files[f"splits_{fold}.csv"] = _side_by_side(slides)
        flags = [[slide, *(str(part == other) for other in PARTS)] for part in PARTS for slide in slides[part]]
        files[f"splits_{fold}_bool.csv"] = _csv([["", *PARTS], *flags])
    return files


def six_column_files(table: SplitTable) -> dict[str, str]:
    """``fold<k>.csv``, name to text. Classes are numbers, as those who read it expect, in the order of the names."""
    numbers = {name: str(number) for number, name in enumerate(table.classes)}
    files: dict[str, str] = {}
    for fold in range(table.n_folds):
        columns: dict[str, list[str]] = {}
        for part in PARTS:
            columns[part] = [row.slide_id for row in table.part(fold, part)]
            columns[f"{part}_label"] = [numbers[row.label] for row in table.part(fold, part)]
        files[f"fold{fold}.csv"] = _side_by_side(columns)
    return files


def patho_bench_files(table: SplitTable) -> dict[str, str]:
    """``k=all.tsv``, name to text; the label's column is ``label``."""
    header = ["case_id", "slide_id", "label", *(f"fold_{fold}" for fold in range(table.n_folds))]
    rows = [[row.patient_id, row.slide_id, row.label, *row.parts] for row in table.rows]
    return {"k=all.tsv": _csv([header, *rows], delimiter="\t")}


def stamp_files(table: SplitTable) -> dict[str, str]:
    """``splits.json``, name to text. Val patients are among the training patients, from which STAMP draws its own."""
    splits = [
        {
            "train_patients": _patients(table, fold, ("train", "val")),
            "test_patients": _patients(table, fold, ("test",)),
        }
        for fold in range(table.n_folds)
    ]
    return {"splits.json": json.dumps({"splits": splits}, indent=4, ensure_ascii=False) + "\n"}


WRITERS: Mapping[str, Callable[[SplitTable], dict[str, str]]] = {
    "clam": clam_files,
    "patho_bench": patho_bench_files,
    "stamp": stamp_files,
    "six_column": six_column_files,
}
"""To add a tool: a function here, and one among `READERS`."""


def _numbered(source: Path, *patterns: str) -> list[Path]:
    """The files of a folder that the first fitting pattern numbers, in order from 0 or 1; a file is itself.

    Raises:
        InputError: None, or one is missing.
    """
    if not source.is_dir():
        return [source]
    for pattern in patterns:
        matches = ((re.fullmatch(pattern, path.name), path) for path in sorted(source.iterdir()))
        found = {int(match[1]): path for match, path in matches if match}
        missing = sorted(set(range(min(found), max(found))) - set(found)) if found else []
        if found and (missing or min(found) > 1):
            raise InputError(f"{source}: no file of fold {listed(map(str, missing or [0]))}; add it, or name one file")
        if found:
            return [path for _, path in sorted(found.items())]
    raise InputError(f"{source}: no file named as {' or '.join(patterns)}; give the folder of the split files")


def _columns(path: Path) -> tuple[Pairs, dict[str, str]]:
    """(part, id) pairs and labels of a file with a column a part, of ids or of true and false."""
    columns, lines = read_rows(path)
    parts = [part for part in PARTS if part in columns]
    if not {"train", "test"} <= set(parts):
        raise InputError(f"{path}: expected columns train, val, test, got {listed(columns)}; give a split file")
    rows = list(lines.values())
    if all(line[part].lower() in _BOOLEANS for line in rows for part in parts):
        return tuple((part, line[columns[0]]) for line in rows for part in parts if _BOOLEANS[line[part].lower()]), {}
    found = [(part, line) for part in parts for line in rows if not is_missing(line[part])]
    labelled = [(line[part], line[f"{part}_label"]) for part, line in found if f"{part}_label" in columns]
    return tuple((part, line[part]) for part, line in found), {name: _whole(label) for name, label in labelled}


def _whole(label: str) -> str:
    """A class number without the ``.0`` that a table with gaps gives it."""
    return label.removesuffix(".0")


def _stamp_pairs(split: object, path: Path) -> Pairs:
    lists = cast("Mapping[str, object]", split) if isinstance(split, dict) else {}
    train, test = lists.get("train_patients"), lists.get("test_patients")
    if not isinstance(train, list) or not isinstance(test, list):
        raise InputError(f"{path}: expected train_patients and test_patients in each split; give STAMP's splits.json")
    named = (("train", cast("list[object]", train)), ("test", cast("list[object]", test)))
    return tuple((part, str(name)) for part, names in named for name in names)


def _patients(table: SplitTable, fold: int, parts: Sequence[str]) -> list[str]:
    return sorted({row.patient_id for part in parts for row in table.part(fold, part)})


def _side_by_side(columns: Mapping[str, Sequence[str]]) -> str:
    """Columns of unequal length under their names, after one of row numbers."""
    longest = max(len(column) for column in columns.values())
    padded = [[*column, *[""] * (longest - len(column))] for column in columns.values()]
    rows = [[str(number), *cells] for number, cells in enumerate(zip(*padded, strict=True))]
    return _csv([["", *columns], *rows])


def _csv(rows: Sequence[Sequence[str]], *, delimiter: str = ",") -> str:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return stream.getvalue()
