"""What became of each slide: one small record a slide, and the tables built from them.

Workers never share a table: each writes the record of its own slide, and whoever wants a table builds it anew.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import pandas as pd

from feature_extraction.errors import DamagedFileError, SlideError
from feature_extraction.files import as_record, publish_json, publish_text, read_json

Status = Literal["done", "empty", "failed", "elsewhere", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one slide in this run.

    Attributes:
        slide_id: The slide.
        status: ``done``; ``empty`` (valid, no tissue); ``failed``; ``elsewhere`` (another worker has it);
            ``stopped`` (a signal came, the next run goes on).
        is_new: Whether this run computed it, rather than finding it valid.
        n_tiles: Rows in the file.
        n_failed: Tiles that could not be read and were allowed to be left out.
        slide_mpp: Along x, 0 when unknown.
        mpp_source: Where that came from.
        file: Name of the feature file, empty when there is none.
        stage: Of the error.
        cause: Of the error.
        remedy: For the error.
        code: Of the error.
    """

    slide_id: str
    status: Status
    is_new: bool = False
    n_tiles: int = 0
    n_failed: int = 0
    slide_mpp: float = 0.0
    mpp_source: str = ""
    file: str = ""
    stage: str = ""
    cause: str = ""
    remedy: str = ""
    code: str = ""

    @classmethod
    def failed(cls, error: SlideError) -> "Outcome":
        """The outcome of a slide that raised."""
        return cls(
            slide_id=error.slide_id, status="failed", **{k: v for k, v in asdict(error).items() if k != "slide_id"}
        )


def write_record(folder: Path, outcome: Outcome) -> None:
    """Write a slide's record; its file name is safe because the id is."""
    publish_json(folder / f"{outcome.slide_id}.json", asdict(outcome))


def read_records(folder: Path) -> list[Outcome]:
    """All whole records, ordered by slide id."""
    outcomes: list[Outcome] = []
    for path in sorted(folder.glob("*.json")):
        try:
            outcomes.append(as_record(Outcome, read_json(path), path.name))
        except DamagedFileError:
            continue  # written by another version, or damaged: the next run writes it again
    return outcomes


def write_tables(out: Path, outcomes: Iterable[Outcome]) -> None:
    """Write ``status.csv`` (every slide) and ``failures.csv`` (those that failed) into ``out``."""
    columns = [field.name for field in fields(Outcome)]
    table = pd.DataFrame([asdict(outcome) for outcome in outcomes], columns=columns).sort_values("slide_id")
    publish_text(out / "status.csv", table.to_csv(index=False))
    publish_text(out / "failures.csv", table[table["status"] == "failed"].to_csv(index=False))
