"""Run folders: when one counts as done, and which ones a sweep holds."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from feature_extraction.errors import DamagedFileError, InputError
from feature_extraction.files import is_valid, publish_json, read_json, require_folder, sha256_of_file

CELL = "cell.json"
DONE = "done.json"
UNUSED = "unused.json"
"""Slides that a run was asked to use and could not, each with the reason."""
_CELL_NAME = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run.

    Attributes:
        folder: Where it lies.
        cell: Content of its ``cell.json``: what determined the run.
    """

    folder: Path
    cell: Mapping[str, object]


def lock_of(out: Path, cell: str) -> Path:
    """The file in a folder of runs whose lock says that a process works on the cell."""
    return out / ".locks" / f"{cell}.lock"


def write_done(folder: Path, names: Sequence[str] | None = None) -> None:
    """Mark a run as finished: ``done.json`` with the SHA-256 of every file in its folder; the last thing a run writes.

    Raises:
        InputError: The folder has no ``cell.json``, so nobody could tell what the run is.
    """
    files = {name: sha256_of_file(folder / name) for name in sorted(names or _file_names(folder))}
    if CELL not in files:
        raise InputError(f"{folder}: no {CELL}; write it before {DONE}")
    publish_json(folder / DONE, {"files": files})


def check_run(folder: Path) -> None:
    """Check that a run is finished and its files are those it finished with.

    Raises:
        DamagedFileError: ``done.json`` is not whole, or a file it lists has changed.
        OSError: ``done.json`` or a file it lists is not there.
    """
    files = read_json(folder / DONE).get("files")
    if not isinstance(files, dict) or CELL not in files:
        raise DamagedFileError(f"{folder / DONE}: expected the checksums of the run's files; delete it and run again")
    for name, expected in files.items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise DamagedFileError(
                f"{folder / DONE}: lists {name!r}, which is outside the run; delete it and run again"
            )
        if sha256_of_file(folder / place) != expected:
            raise DamagedFileError(f"{folder / place}: not as the run left it; delete {folder / DONE} and run again")


def read_unused(folder: Path) -> dict[str, str]:
    """Slide to reason, of the slides that a finished run could not use.

    Raises:
        InputError: The run does not say; it was made before runs did.
    """
    path = folder / UNUSED
    if not path.is_file():
        raise InputError(f"{folder}: no {UNUSED}, so nobody could tell why slides are missing; delete it and run again")
    return {slide_id: str(reason) for slide_id, reason in read_json(path).items()}


def find_runs(root: Path) -> list[Run]:
    """The finished runs below a folder, ordered by path; the root may be a run itself.

    Raises:
        InputError: No such folder, or the same cell lies in two folders.
    """
    require_folder(root, "runs")
    runs = [
        Run(folder=folder, cell=read_json(folder / CELL)) for folder in _folders(root) if is_valid(folder, check_run)
    ]
    seen: dict[object, Run] = {}
    for run in runs:
        twin = seen.setdefault(run.cell.get("cell"), run)
        if twin is not run:
            raise InputError(f"runs={root}: {twin.folder} and {run.folder} hold the same cell; remove one")
    return runs


def unfinished_runs(root: Path, done: Sequence[Run]) -> list[Path]:
    """Folders of runs below ``root`` that are not among the finished ones, ordered by path.

    Those with a ``cell.json``, and those named like a cell: a run writes ``cell.json`` late, and may have been killed.
    """
    finished = {run.folder for run in done}
    named = {path for path in root.rglob("*") if _CELL_NAME.fullmatch(path.name) and path.is_dir()}
    return sorted(path for path in named | set(_folders(root)) if path not in finished and not _is_hidden(path, root))


def _folders(root: Path) -> Iterator[Path]:
    """Folders with a ``cell.json``, none of them hidden."""
    for path in sorted(root.rglob(CELL)):
        if not _is_hidden(path, root):
            yield path.parent


def _file_names(folder: Path) -> Iterator[str]:
    """Every file of a run by its path in the folder; hidden ones are temporary."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != DONE and not _is_hidden(path, folder):
            yield name


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
