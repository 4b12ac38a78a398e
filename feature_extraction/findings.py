"""What can be wrong around a folder of feature files, found without reading the features."""

import os
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from feature_extraction.claims import is_claimed
from feature_extraction.errors import DamagedFileError
from feature_extraction.files import as_record, read_json
from feature_extraction.slides import SlideTable
from feature_extraction.status import Outcome

Kind = Literal["invalid", "missing", "changed", "orphaned", "duplicate"]
Thing = Literal["feature file", "journal", "record", "temporary file", "slide"]

LOCKS, JOURNALS, RECORDS = Path(".work/locks"), Path(".work/journal"), Path(".work/records")
TEMPORARY = ".tmp-"
LIVE_SECONDS = 3600.0
"""While anybody works in a folder, a temporary file younger than this may be a write in progress."""
AGAIN = "run the same `promptmil extract` again"
REMOVE = "repair=true removes it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        kind: ``invalid`` (a file that no command would use), ``missing`` (a slide of the table without a file),
            ``changed`` (a slide that is not the one its features were made from), ``orphaned`` (a file that belongs to
            nothing), ``duplicate`` (the same slide under two ids).
        thing: What it is.
        slide_id: The slide, empty for a temporary file.
        file: Relative to the folder, empty when there is none.
        reason: What was found.
        remedy: What to do.
        is_removable: Whether the next extraction makes again whatever of it is needed.
    """

    kind: Kind
    thing: Thing
    slide_id: str
    file: str
    reason: str
    remedy: str
    is_removable: bool = False

    def __str__(self) -> str:
        """The one line that is printed."""
        where = "".join(f" {key}={value}" for key, value in (("slide", self.slide_id), ("file", self.file)) if value)
        return f"{self.kind} {self.thing}{where} cause={self.reason} remedy={self.remedy}"


def invalid(slide_id: str, reason: str, *, is_removable: bool) -> Finding:
    """A feature file that no command would use."""
    remedy = f"repair=true removes it; then {AGAIN}" if is_removable else "no asked-for slide would replace it: look"
    return Finding(
        kind="invalid",
        thing="feature file",
        slide_id=slide_id,
        file=f"{slide_id}.h5",
        reason=reason,
        remedy=remedy,
        is_removable=is_removable,
    )


def changed(slide_id: str, reason: str) -> Finding:
    """A slide that differs from what its features were made from; only a person knows which of the two is right."""
    remedy = f"restore the slide, or delete {slide_id}.h5 and {AGAIN}"
    return Finding(kind="changed", thing="slide", slide_id=slide_id, file="", reason=reason, remedy=remedy)


def missing(folder: Path, table: SlideTable, present: Collection[str]) -> list[Finding]:
    """Slides of the table without a file, with what an earlier run said of them, and rows that can be no slide."""
    found: list[Finding] = []
    for record in table.records:
        if record.slide_id in present:
            continue
        outcome = _outcome(folder / RECORDS / f"{record.slide_id}.json")
        is_failed = outcome is not None and outcome.status == "failed"
        reason = f"it failed: {outcome.cause}" if outcome and is_failed else "not extracted yet"
        remedy = outcome.remedy if outcome and is_failed else AGAIN
        found.append(_missing(record.slide_id, reason, remedy))
    return found + [_missing(error.slide_id, error.cause, error.remedy) for error in table.failures]


def _missing(slide_id: str, reason: str, remedy: str) -> Finding:
    return Finding(kind="missing", thing="slide", slide_id=slide_id, file="", reason=reason, remedy=remedy)


def orphans(valid: Collection[str], asked: Collection[str]) -> list[Finding]:
    """Valid feature files of slides that are not in the table: somebody's work, never removed."""
    return [
        Finding(
            kind="orphaned",
            thing="feature file",
            slide_id=slide_id,
            file=f"{slide_id}.h5",
            reason="its slide is not in slides=…",
            remedy="add the slide to the table, or delete the file yourself",
        )
        for slide_id in sorted(valid)
        if slide_id not in asked
    ]


def sealed_journals(folder: Path, valid: Collection[str]) -> list[Finding]:
    """Rows in work of slides whose feature file is already whole."""
    paths = sorted((folder / JOURNALS).glob("*.rows"))
    return [
        _left("journal", path.stem, path.relative_to(folder), "its slide is already sealed")
        for path in paths
        if path.stem in valid
    ]


def stale_records(folder: Path, present: Collection[str]) -> list[Finding]:
    """Records that say a slide is done while there is no file, and records that cannot be read."""
    paths = sorted((folder / RECORDS).glob("*.json"))
    defects = [record_defect(path, has_file=path.stem in present) for path in paths]
    return [
        _left("record", path.stem, path.relative_to(folder), defect)
        for path, defect in zip(paths, defects, strict=True)
        if defect
    ]


def record_defect(path: Path, *, has_file: bool) -> str | None:
    """Say why a record is worth nothing, None when it says what is so."""
    outcome = _outcome(path)
    if outcome is None:
        return "it cannot be read"
    is_stale = outcome.status in ("done", "empty") and not has_file
    return f"it says {outcome.status}, and there is no feature file" if is_stale else None


def leftovers(folder: Path, *, started: float, is_deep: bool = True) -> list[Finding]:
    """Temporary files of writes that were killed: older than ``started``, and nobody's work in progress.

    Args:
        folder: Where to look.
        started: Unix time.
        is_deep: Whether to look in the folders below too.
    """
    found: list[tuple[Path, float]] = []
    for root, below, names in os.walk(folder):  # links to folders are not followed
        paths = [Path(root, name) for name in names if name.startswith(TEMPORARY)]
        found += [(path, _modified(path)) for path in paths]
        if not is_deep:
            below.clear()
    limit = min(started, time.time() - LIVE_SECONDS) if found and _is_worked_in(folder) else started
    return [
        _left("temporary file", "", path.relative_to(folder), "left by a write that was killed")
        for path, modified in sorted(found)
        if modified < limit
    ]


def duplicates(recorded: Mapping[str, str], now: Mapping[str, str | None]) -> list[Finding]:
    """Ids that stand for one and the same slide.

    Args:
        recorded: Slide fingerprints in the feature files, by slide id.
        now: Fingerprints of the slide files of the table.
    """
    ids: dict[str, set[str]] = defaultdict(set)
    for slide_id, fingerprint in [*recorded.items(), *now.items()]:
        if fingerprint:
            ids[fingerprint].add(slide_id)
    return [
        Finding(
            kind="duplicate",
            thing="slide",
            slide_id=slide_id,
            file=f"{slide_id}.h5" if slide_id in recorded else "",
            reason=f"the same slide file as {first}",
            remedy="keep one row of the table, and delete the feature file of the other yourself",
        )
        for first, *others in sorted(sorted(group) for group in ids.values())
        for slide_id in others
    ]


def _left(thing: Thing, slide_id: str, file: Path, reason: str) -> Finding:
    """Something that work left behind and nothing needs."""
    return Finding(
        kind="orphaned",
        thing=thing,
        slide_id=slide_id,
        file=file.as_posix(),
        reason=reason,
        remedy=REMOVE,
        is_removable=True,
    )


def _outcome(path: Path) -> Outcome | None:
    """A slide's record, None when there is none or it cannot be read."""
    try:
        return as_record(Outcome, read_json(path), path.name)
    except (DamagedFileError, OSError):
        return None


def _modified(path: Path) -> float:
    """Unix time of the last change; of a file that has just gone, the end of time."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return float("inf")


def _is_worked_in(folder: Path) -> bool:
    """Whether anybody holds a claim on a slide of this folder."""
    return any(is_claimed(lock) for lock in (folder / LOCKS).glob("*.lock"))
