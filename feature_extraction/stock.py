"""How far an extraction is, told from its files alone, whoever works on it and wherever."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_extraction.claims import is_claimed
from feature_extraction.slides import SlideTable
from feature_extraction.status import Outcome, read_records

RECENT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """The slides of one feature folder, each counted once, by what their workers recorded.

    Attributes:
        features: Name of the folder.
        done: Slides with a feature file.
        empty: Slides without tissue.
        failed: What the others failed of, ordered by slide id.
        in_work: Slides that a worker has now.
        interrupted: Begun slides that nobody has; the next run goes on with them.
        not_started: The rest of the slides asked for, None when it is not known which were.
        tiles: Rows in feature files, and about those of slides that are begun.
        slides_per_hour: Over the hour before the last slide was done, nan while fewer than two were.
        tiles_per_s: Likewise.
    """

    features: str
    done: int
    empty: int
    failed: tuple[Outcome, ...]
    in_work: int
    interrupted: int
    not_started: int | None
    tiles: int
    slides_per_hour: float
    tiles_per_s: float

    @property
    def hours_left(self) -> float:
        """At this rate, nan when nobody works or the number of slides is not known."""
        if self.not_started is None or not self.in_work:
            return float("nan")
        return (self.in_work + self.interrupted + self.not_started) / self.slides_per_hour


def take_stock(out: Path, table: SlideTable | None) -> list[Stock]:
    """Count the slides of each feature folder below ``out``, ordered by name.

    Args:
        out: Of the extraction.
        table: The slides asked for; only these are counted. None counts whatever is there.

    Raises:
        OSError: A folder cannot be read.
    """
    return [_count(work.parent, table) for work in sorted(out.glob("*/.work")) if work.is_dir()]


def _count(folder: Path, table: SlideTable | None) -> Stock:
    work = folder / ".work"
    asked = None if table is None else {record.slide_id for record in table.records}
    records = [outcome for outcome in read_records(work / "records") if asked is None or outcome.slide_id in asked]
    sealed = {outcome.slide_id: outcome for outcome in records if outcome.status in ("done", "empty")}
    ids = _ids(work / "locks", ".lock") | _ids(work / "journal", ".rows")
    open_ids = {slide_id for slide_id in ids - set(sealed) if asked is None or slide_id in asked}
    in_work = {slide_id for slide_id in open_ids if is_claimed(work / "locks" / f"{slide_id}.lock")}
    failed = [outcome for outcome in records if outcome.status == "failed" and outcome.slide_id not in in_work]
    begun = {slide_id: _n_rows(work / "journal" / f"{slide_id}.rows") for slide_id in open_ids}
    known = set(sealed) | in_work | {outcome.slide_id for outcome in failed}
    interrupted = {outcome.slide_id for outcome in records if outcome.status == "stopped"} - known
    interrupted |= {slide_id for slide_id, n_rows in begun.items() if n_rows} - known
    failed += [Outcome.failed(error) for error in (table.failures if table is not None else ())]
    slides_per_hour, tiles_per_s = _rates(work / "records", sealed.values())
    return Stock(
        features=folder.name,
        done=sum(outcome.status == "done" for outcome in sealed.values()),
        empty=sum(outcome.status == "empty" for outcome in sealed.values()),
        failed=tuple(sorted(failed, key=lambda outcome: outcome.slide_id)),
        in_work=len(in_work),
        interrupted=len(interrupted),
        not_started=None if asked is None else len(asked - known - interrupted),
        tiles=sum(outcome.n_tiles for outcome in sealed.values()) + sum(begun.values()),
        slides_per_hour=slides_per_hour,
        tiles_per_s=tiles_per_s,
    )


def _ids(folder: Path, suffix: str) -> set[str]:
    return {path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}") if path.is_file()}


def _n_rows(journal: Path) -> int:
    """About the rows in a journal that somebody may be writing: its size by that of a row."""
    try:
        with journal.open("rb") as stream:
            header = stream.readline()
        said = json.loads(header)
        row_bytes = int(said["width"]) * np.dtype(str(said["dtype"])).itemsize
        return (journal.stat().st_size - len(header)) // row_bytes
    except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError):
        return 0  # sealed this moment, or cut by a kill: the next run begins it anew


def _rates(folder: Path, sealed: Iterable[Outcome]) -> tuple[float, float]:
    """Slides an hour and tiles a second between the first and the last that became done in the last busy hour."""
    ended: Sequence[tuple[float, int]] = sorted(
        ((folder / f"{outcome.slide_id}.json").stat().st_mtime, outcome.n_tiles) for outcome in sealed if outcome.is_new
    )
    recent = [(end, n_tiles) for end, n_tiles in ended if end > ended[-1][0] - RECENT_S]
    span_s = recent[-1][0] - recent[0][0] if recent else 0.0
    if span_s <= 0:
        return float("nan"), float("nan")
    return (len(recent) - 1) / span_s * 3600, sum(n_tiles for _, n_tiles in recent[1:]) / span_s
