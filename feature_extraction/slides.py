"""The slide table: a folder or a CSV becomes records with safe, unique ids."""

import csv
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from feature_extraction.errors import InputError, SlideError

SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"}
)
"""What OpenSlide documents as readable."""
SURPLUS = "(more)"
MAX_ID_BYTES = 200  # leaves room for a suffix within the 255 bytes of a file name


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
        failures: One error for each row with an unsafe or a repeated id.
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
    if any(unicodedata.category(letter).startswith("C") for letter in slide_id):
        return "holds a control character"
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
    stems = Counter(_normal(stem) for stem, _, _ in entries)
    named = [
        (_normal(stem) if stems[_normal(stem)] == 1 else _normal(f"{parent}__{stem}"), path, None)
        for stem, parent, path in entries
    ]
    return _checked(named)


def _looks_like_slide(path: Path, root: Path) -> bool:
    """A slide by its suffix, outside hidden folders."""
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.suffix.lower() in SLIDE_SUFFIXES and not hidden and not path.is_dir()


def _from_csv(source: Path) -> SlideTable:
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restkey=SURPLUS, restval="")
            rows = list(reader)
            columns = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"slides={source}: cannot be read as a CSV table: {error}") from error
    if "path" not in columns:
        raise InputError(f"slides={source}: needs a column 'path', got {columns}")
    uneven = [str(number) for number, row in enumerate(rows, start=2) if any(row.get(SURPLUS, []))]
    if uneven:
        raise InputError(f"slides={source}: more cells than columns in line {', '.join(uneven)}; quote commas in paths")
    named: list[tuple[str, Path, tuple[str, str] | None]] = []
    for row in rows:
        path = source.parent / str(row["path"])
        slide_id = _normal(str(row.get("slide_id") or path.stem))
        both = str(row.get("mpp") or "")
        mpp = (str(row.get("mpp_x") or both), str(row.get("mpp_y") or row.get("mpp_x") or both))
        named.append((slide_id, path, mpp if any(mpp) else None))
    return _checked(named)


def _checked(named: Iterable[tuple[str, Path, tuple[str, str] | None]]) -> SlideTable:
    """Split rows into records and failures; ids are compared without case, as some file systems do."""
    rows = list(named)
    sharing: dict[str, list[Path]] = defaultdict(list)
    for slide_id, path, _ in rows:
        sharing[slide_id.casefold()].append(path)
    records: list[SlideRecord] = []
    failures: list[SlideError] = []
    for slide_id, path, mpp in rows:
        defect = id_defect(slide_id)
        values = _positive_pair(mpp) if mpp else None
        if defect:
            failures.append(_row_error(repr(slide_id), f"the id {defect}", "give it another slide_id", "E-id"))
        elif len(sharing[slide_id.casefold()]) > 1:
            names = ", ".join(sorted({other.name for other in sharing[slide_id.casefold()]}))
            cause = f"{len(sharing[slide_id.casefold()])} rows share this id ({names})"
            failures.append(_row_error(slide_id, cause, "give each slide its own slide_id", "E-id"))
        elif mpp and values is None:
            cause = f"mpp must be a number between .05 and 4, got {mpp[0]!r}, {mpp[1]!r}"
            failures.append(_row_error(slide_id, cause, "correct the table, or leave the cell empty", "E-mpp"))
        else:
            records.append(SlideRecord(slide_id=slide_id, path=path, mpp=values))
    return SlideTable(records=tuple(records), failures=tuple(failures))


def _positive_pair(texts: tuple[str, str]) -> tuple[float, float] | None:
    """Both numbers, or None when one is not a plausible mpp (.05 to 4 µm per pixel)."""
    try:
        x, y = (float(text) for text in texts)
    except ValueError:
        return None
    return (x, y) if 0.05 <= x <= 4 and 0.05 <= y <= 4 else None


def _row_error(slide_id: str, cause: str, remedy: str, code: str) -> SlideError:
    return SlideError(slide_id=slide_id, stage="table", cause=cause, remedy=remedy, code=code)


def _normal(text: str) -> str:
    """NFC, so that one name typed on two systems is one id."""
    return unicodedata.normalize("NFC", text)
