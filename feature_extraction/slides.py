"""The slide table: a folder or a CSV becomes records with safe, unique ids."""

import csv
import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from feature_extraction.errors import InputError, SlideError

SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"}
)
"""What OpenSlide documents as readable."""
SURPLUS = "(more)"
MAX_ID_BYTES = 200  # leaves room for a suffix within the 255 bytes of a file name
MAX_SHOWN = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideRecord:
    """One slide that was asked for.

    Attributes:
        slide_id: Unique, and safe as the name of a file.
        path: The slide file.
        mpp: Micrometres per pixel (x, y) given by the user, None to read it from the slide.
    """

    slide_id: str
    path: Path
    mpp: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTable:
    """What was asked for: the slides to do, and the rows that cannot be a slide.

    Attributes:
        records: In the order of the table (of the paths, for a folder).
        failures: One error for each row without a path, or with an unsafe or a repeated id. They name lines of the
            table and not its files: a file's name may be a person's.
    """

    records: tuple[SlideRecord, ...]
    failures: tuple[SlideError, ...] = ()


def read_slide_table(source: Path) -> SlideTable:
    """Read a folder of slides or a CSV with ``path`` and optional ``slide_id, mpp, mpp_x, mpp_y``.

    Raises:
        InputError: Neither a folder nor a CSV, no ``path`` column, or not one slide in it.
    """
    if source.is_dir():
        table = _from_folder(source)
    elif source.suffix.lower() == ".csv":
        table = _from_csv(source)
    else:
        raise InputError(f"slides={source}: expected a folder of slides or a .csv table; no such folder was found")
    if not table.records and not table.failures:
        known = " ".join(sorted(SLIDE_SUFFIXES))
        raise InputError(f"slides={source}: no slide in it; looked for files ending in {known}")
    return table


def id_defect(slide_id: str) -> str | None:
    """Say why ``slide_id`` cannot name a file inside our folders, or None when it can."""
    if not slide_id or slide_id != slide_id.strip():
        return "is empty or begins or ends with a blank"
    if re.search(r"[/\\\x00]", slide_id) or slide_id.startswith("."):
        return "holds a path separator or begins with a dot"
    if any(unicodedata.category(letter)[0] == "C" or letter in "\u2028\u2029" for letter in slide_id):
        return "holds a control character or bytes that are no text"
    if len(slide_id.encode()) > MAX_ID_BYTES:
        return f"is longer than {MAX_ID_BYTES} bytes"
    return None


def _from_folder(folder: Path) -> SlideTable:
    """Every slide below ``folder``; several DICOM files in one folder are one slide, named by that folder."""
    found = sorted(path for path in folder.rglob("*") if _looks_like_slide(path, folder))
    dicom: dict[Path, Path] = {}
    files: list[Path] = []
    for path in found:
        if path.suffix.lower() == ".dcm" and path.parent != folder:
            dicom.setdefault(path.parent, path)
        else:
            files.append(path)
    entries = [(path.stem, path.parent.name, path) for path in files]
    entries += [(parent.name, parent.parent.name, path) for parent, path in dicom.items()]
    entries.sort(key=lambda entry: entry[2])
    ids = _folder_ids([(stem, parent, path.relative_to(folder)) for stem, parent, path in entries])
    return _checked([_Row(slide_id=slide_id, path=entry[2]) for slide_id, entry in zip(ids, entries, strict=True)])


def _folder_ids(entries: Sequence[tuple[str, str, Path]]) -> list[str]:
    """The stem; stems that collide all get their folder in front; what still collides, a hash of its relative path."""
    stems = [_normal(stem) for stem, _, _ in entries]
    with_parent = [_normal(f"{parent}__{stem}") for stem, parent, _ in entries]
    with_hash = [f"{name}-{_short_hash(path)}" for name, (_, _, path) in zip(with_parent, entries, strict=True)]
    return _where_shared(_where_shared(stems, with_parent), with_hash)


def _where_shared(ids: Sequence[str], longer: Sequence[str]) -> list[str]:
    """Each id that is alone, and the longer one where several are equal."""
    counts = Counter(_key(slide_id) for slide_id in ids)
    return [other if counts[_key(slide_id)] > 1 else slide_id for slide_id, other in zip(ids, longer, strict=True)]


def _short_hash(relative: Path) -> str:
    return hashlib.sha256(os.fsencode(relative.as_posix())).hexdigest()[:8]


def _looks_like_slide(path: Path, root: Path) -> bool:
    """A slide by its suffix, outside hidden folders."""
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.suffix.lower() in SLIDE_SUFFIXES and not hidden and not path.is_dir()


def _from_csv(source: Path) -> SlideTable:
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restkey=SURPLUS, restval="")
            rows = [(reader.line_num, row) for row in reader]
            columns = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"slides={source}: cannot be read as a CSV table: {error}") from error
    if "path" not in columns:
        raise InputError(f"slides={source}: needs a column 'path', got {columns}")
    uneven = [str(line) for line, row in rows if any(row.get(SURPLUS, []))]
    if uneven:
        raise InputError(f"slides={source}: more cells than columns in line {', '.join(uneven)}; quote commas in paths")
    return _checked([_csv_row(source.parent, row, line) for line, row in rows])


def _csv_row(folder: Path, row: Mapping[str, str], line: int) -> "_Row":
    path = folder / row["path"]
    mpp = (row.get("mpp_x") or row.get("mpp") or "", row.get("mpp_y") or row.get("mpp_x") or row.get("mpp") or "")
    defect = "has a path that holds a zero byte" if "\0" in row["path"] else ""
    if not row["path"].strip():  # the folder of the table would be opened, and its name become an id
        defect = "has no path"
    slide_id = _normal(row.get("slide_id") or ("" if defect else path.stem))
    return _Row(slide_id=slide_id, path=path, mpp=mpp if any(mpp) else None, line=line, defect=defect)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One slide as it was asked for, before it is checked.

    Attributes:
        slide_id: As given or derived.
        path: The slide file.
        mpp: Cells of the table, None when all are empty.
        line: Of the table; 0 for a folder.
        defect: Why it can be no slide, empty when nothing is wrong with its path.
    """

    slide_id: str
    path: Path
    mpp: tuple[str, str] | None = None
    line: int = 0
    defect: str = ""


def _checked(rows: Sequence[_Row]) -> SlideTable:
    """Split rows into records and failures; ids are compared without case, as some file systems do."""
    sharing: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        sharing[_key(row.slide_id)].append(row)
    records: list[SlideRecord] = []
    failures: list[SlideError] = []
    for row in rows:
        mpp = _positive_pair(row.mpp) if row.mpp else None
        error = _row_error(row, sharing[_key(row.slide_id)], mpp)
        if error is None:
            records.append(SlideRecord(slide_id=row.slide_id, path=row.path, mpp=mpp))
        else:
            failures.append(error)
    return SlideTable(records=tuple(records), failures=tuple(failures))


def _row_error(row: _Row, sharing: Sequence[_Row], mpp: tuple[float, float] | None) -> SlideError | None:
    """Why a row can be no slide, None when it can."""
    defect = id_defect(row.slide_id)
    shown = _shown(row) if defect else row.slide_id
    if row.defect:
        cause, remedy, code = f"line {row.line} {row.defect}", "correct the table", "E-path"
    elif defect:
        cause, remedy, code = f"the id {defect}", "give it another slide_id", "E-id"
    elif len(sharing) > 1:
        where = f" (lines {', '.join(str(other.line) for other in sharing)})" if row.line else ""
        cause, remedy, code = f"{len(sharing)} rows share this id{where}", "give each slide its own slide_id", "E-id"
    elif row.mpp and mpp is None:
        cause = f"mpp must be a number between .05 and 4, got {row.mpp[0]!r}, {row.mpp[1]!r}"
        remedy, code = "correct the table, or leave the cell empty", "E-mpp"
    else:
        return None
    return SlideError(slide_id=shown, stage="table", cause=cause, remedy=remedy, code=code)


def _shown(row: _Row) -> str:
    """An id that cannot be used, as a message can hold it."""
    shown = repr(row.slide_id) if row.slide_id else f"(line {row.line})"
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}… ({len(row.slide_id)} letters)"


def _positive_pair(texts: tuple[str, str]) -> tuple[float, float] | None:
    """Both numbers, or None when one is not a plausible mpp (.05 to 4 µm per pixel)."""
    try:
        x, y = (float(text) for text in texts)
    except ValueError:
        return None
    return (x, y) if 0.05 <= x <= 4 and 0.05 <= y <= 4 else None


def _normal(text: str) -> str:
    """NFC, so that one name typed on two systems is one id."""
    return unicodedata.normalize("NFC", text)


def _key(slide_id: str) -> str:
    """What two ids are compared by: neither case nor the way accents are stored makes two of one."""
    return _normal(_normal(slide_id).casefold())
