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
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet compute a cell (OWASP, CSV injection)."""


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
        reader: What decoded its pixels.
        n_grid: Tiles of the grid, kept or not; None when the slide was not planned.
        tissue_share: Share of the scanned area that is tissue.
        pen_share: Share that is ink.
        features: Name of the feature folder.
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
    reader: str = ""
    n_grid: int | None = None
    tissue_share: float | None = None
    pen_share: float | None = None
    features: str = ""
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
    """Write ``status.csv`` (every slide) and ``failures.csv`` (those that failed) into ``out``; text is `as_cell`."""
    columns = [field.name for field in fields(Outcome)]
    rows = [asdict(outcome) for outcome in sorted(outcomes, key=lambda outcome: outcome.slide_id)]
    cells = [{name: as_cell(v) if isinstance(v, str) else v for name, v in row.items()} for row in rows]
    table = pd.DataFrame(cells, columns=columns)
    publish_text(out / "status.csv", table.to_csv(index=False))
    publish_text(out / "failures.csv", table[table["status"] == "failed"].to_csv(index=False))


def as_cell(text: str) -> str:
    """Text as a cell of a CSV that no spreadsheet takes for a formula: with ``'`` in front where it would.

    `from_cell` gives the text back. Numbers are not text and stay as they are.
    """
    return f"'{text}" if text.lstrip("'").startswith(FORMULA_STARTS) else text


def from_cell(cell: str) -> str:
    """The text that `as_cell` was given."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA_STARTS) else cell
