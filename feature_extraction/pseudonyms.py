"""Names that say nothing: random pseudonyms for slide ids, and messages without the names of slide files and folders.

The table of pseudonyms is the only link back to the slides. It belongs to the user and lies outside every output.
"""

import csv
import io
import re
import secrets
import time
import unicodedata
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from feature_extraction.claims import claim
from feature_extraction.errors import InputError
from feature_extraction.files import publish_text
from feature_extraction.slides import SLIDE_SUFFIXES, SlideTable, id_defect
from feature_extraction.status import as_cell, from_cell

COLUMNS = ("slide_id", "pseudonym")
RANDOM_BYTES = 5
WAIT_SECONDS = 120.0
POLL_SECONDS = 0.05
MIN_LONE_LETTERS = 3
"""A shorter stem or folder is replaced only as part of a file's name or a path: `a` is also a word."""


def pseudonymise(table: SlideTable, path: Path, *, out: Path) -> SlideTable:
    """The same slides under their pseudonyms, rows that cannot be a slide included.

    Args:
        table: Slides under their own ids.
        path: CSV with ``slide_id, pseudonym``. It is made when missing and completed for new ids, with random names
            that do not follow from the id, under a lock (``<path>.lock``), so that all workers agree.
        out: The folder of outputs; the CSV must not lie in it.

    Raises:
        InputError: The CSV lies inside ``out``, cannot be read or written, or names something twice or unsafely.
    """
    if path.resolve().is_relative_to(out.resolve()):
        raise InputError(
            f"pseudonymise={path}: lies inside out={out}, whose readers must not see it; keep it elsewhere"
        )
    asked = list(dict.fromkeys([r.slide_id for r in table.records] + [failure.slide_id for failure in table.failures]))
    names = _read(path)
    if any(slide_id not in names for slide_id in asked):
        try:
            with _locked(path):
                names = _complete(path, asked)
        except OSError as error:
            raise InputError(f"pseudonymise={path}: cannot be written: {error.strerror or error}") from error
    return SlideTable(
        records=tuple(replace(record, slide_id=names[record.slide_id]) for record in table.records),
        failures=tuple(replace(failure, slide_id=names[failure.slide_id]) for failure in table.failures),
    )


def redact(text: str, path: Path, slide_id: str) -> str:
    """A message without what the slide's path says: its stem and its folders become the slide id, the suffix stays.

    A folder's name of small letters only (``slides``, ``data``) is taken for a word and stays, unless a separator is
    next to it. Control characters and bytes that are no text are shown escaped, so that a message is one line.

    Args:
        text: The message.
        path: The slide file that it may speak of.
        slide_id: The slide's id or pseudonym.
    """
    folders = [part for part in path.parts[:-1] if part not in (path.anchor, ".", "..")]
    lone = [part for part in (path.stem, *folders) if part == path.stem or not re.fullmatch("[a-z]+", part)]
    by_name = {f"{name}{mark}": "" for part in folders for name in _spellings(part) for mark in "/\\"}
    by_name |= {name: slide_id for part in lone for name in _spellings(part) if len(name) >= MIN_LONE_LETTERS}
    whole = (str(path), str(path.absolute()), path.name)
    suffix = path.suffix if path.suffix.lower() in SLIDE_SUFFIXES else ""
    by_name |= {name: f"{slide_id}{suffix}" for part in whole for name in _spellings(part)}
    return printable(_replace(text, by_name))


def printable(text: str) -> str:
    """``text`` on one line: control characters and bytes that are no text become escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _replace(text: str, by_name: Mapping[str, str]) -> str:
    """Replace whole names in one pass, the longest first; a name inside a longer word is not that name."""
    names = sorted(by_name, key=len, reverse=True)
    edges = [(r"(?<!\w)" if name[0].isalnum() else "", r"(?!\w)" if name[-1].isalnum() else "") for name in names]
    pattern = "|".join(f"{before}{re.escape(name)}{after}" for name, (before, after) in zip(names, edges, strict=True))
    return re.sub(pattern, lambda match: by_name[match[0]], text)


def _spellings(name: str) -> list[str]:
    """How libraries write one name: as it is, composed, escaped by Python, with slashes the other way."""
    composed = unicodedata.normalize("NFC", name)
    return [spelling for spelling in (name, composed, repr(name)[1:-1], ascii(name)[1:-1]) if spelling]


@contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    """Wait for our turn to complete the table."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        with claim(path.with_name(f"{path.name}.lock")) as is_ours:
            if is_ours:
                yield
                return
        if time.monotonic() > end:
            raise InputError(f"pseudonymise={path}: another process has held {path.name}.lock for {WAIT_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def _complete(path: Path, asked: Sequence[str]) -> dict[str, str]:
    """Add a random name for each new id, and publish the table if there was one."""
    names = _read(path)
    taken = {name.casefold() for name in [*names, *names.values(), *asked]}
    n_before = len(names)
    for slide_id in asked:
        if slide_id in names:
            continue
        name = _random_name()
        while name.casefold() in taken:
            name = _random_name()
        taken.add(name.casefold())
        names[slide_id] = name
    if len(names) > n_before:
        publish_text(path, _as_csv(names))
    return names


def _random_name() -> str:
    return f"S{secrets.token_hex(RANDOM_BYTES)}"


def _as_csv(names: Mapping[str, str]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((as_cell(slide_id), as_cell(name)) for slide_id, name in names.items())
    return stream.getvalue()


def _read(path: Path) -> dict[str, str]:
    """Pseudonyms by slide id; none when there is no table yet."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            rows = list(reader)
            columns = tuple(reader.fieldnames or ())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"pseudonymise={path}: cannot be read as a CSV table: {error}") from error
    if columns != COLUMNS:
        raise InputError(f"pseudonymise={path}: expected the columns {', '.join(COLUMNS)}, got {', '.join(columns)}")
    pairs = [(unicodedata.normalize("NFC", from_cell(row["slide_id"])), from_cell(row["pseudonym"])) for row in rows]
    _require_sound(path, pairs)
    return dict(pairs)


def _require_sound(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    for column, values in zip(COLUMNS, ([i for i, _ in pairs], [name.casefold() for _, name in pairs]), strict=True):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise InputError(f"pseudonymise={path}: {column} {twice[0]!r} stands there {values.count(twice[0])} times")
    ids = {slide_id.casefold() for slide_id, _ in pairs}
    for number, (_, name) in enumerate(pairs, start=1):
        defect = id_defect(name)
        if name.casefold() in ids:
            defect = "is also a slide_id"
        if defect:
            raise InputError(f"pseudonymise={path}: the pseudonym of row {number} {defect}; correct the table")
