"""Run folders: what makes one finished, and how a sweep is found."""

from dataclasses import dataclass
from pathlib import Path

from feature_extraction.errors import DamagedFileError
from feature_extraction.files import is_valid, publish_json, read_json, sha256_of_file

DONE = "done.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run.

    Attributes:
        folder: Where it lies.
        cell: Its ``cell.json``: what determined it.
    """

    folder: Path
    cell: dict[str, object]


def write_done(folder: Path) -> None:
    """Seal a run: list its files with their hashes; written last."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != DONE)
    publish_json(folder / DONE, {"files": {path.name: sha256_of_file(path) for path in files}})


def check_run(folder: Path) -> Path:
    """Check that a run is finished and that its files are what was written.

    Raises:
        DamagedFileError: It is not.
        OSError: There is no such run.
    """
    listed = read_json(folder / DONE).get("files")
    if not isinstance(listed, dict):
        raise DamagedFileError(f"{folder.name}/{DONE}: lists no files; delete the run and train it again")
    for name, expected in listed.items():
        if sha256_of_file(folder / str(name)) != expected:
            raise DamagedFileError(f"{folder.name}/{name}: differs from what the run wrote; train it again")
    return folder


def find_runs(root: Path) -> list[Run]:
    """Every finished run below ``root``, ordered by path; what is unfinished or damaged is no run."""
    folders = sorted(path.parent for path in root.rglob(DONE))
    return [
        Run(folder=folder, cell=read_json(folder / "cell.json")) for folder in folders if is_valid(folder, check_run)
    ]
