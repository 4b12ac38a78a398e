"""Why a cell has no run: the error that ended its last attempt, kept beside the runs until the next attempt starts."""

from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from feature_extraction.errors import DamagedFileError
from feature_extraction.files import as_record, publish_json, read_json

FOLDER = ".failed"
"""Hidden, in the folder of runs: `mil.runs` takes nothing in it for a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a cell failed.

    Attributes:
        cell: Its address.
        error: Kind of the error.
        message: What it said.
    """

    cell: str
    error: str
    message: str


@contextmanager
def recorded(out: Path, cell: str) -> Generator[None, None, None]:
    """Forget how the cell failed before, and keep how it fails in this block; to be entered with the cell claimed.

    A stop by a signal is no failure. A record that cannot be written costs nothing but itself: the error goes on.

    Args:
        out: Folder of runs.
        cell: Address of the cell.

    Raises:
        OSError: An old record is there and cannot be removed.
    """
    path = _path(out, cell)
    path.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        keep_failure(out, cell, error)
        raise


def keep_failure(out: Path, cell: str, error: Exception) -> None:
    """Record how a cell failed; what cannot be written costs nothing but itself."""
    with suppress(OSError):
        failure = Failure(cell=cell, error=type(error).__name__, message=str(error))
        publish_json(_path(out, cell), asdict(failure))


def read_failure(out: Path, cell: str) -> Failure | None:
    """How the last attempt at a cell failed; None when it did not, or its record is damaged."""
    path = _path(out, cell)
    try:
        return as_record(Failure, read_json(path), path.name)
    except (DamagedFileError, FileNotFoundError):
        return None


def _path(out: Path, cell: str) -> Path:
    return out / FOLDER / f"{cell}.json"
