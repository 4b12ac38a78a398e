"""How any file that somebody will read comes to be, and when it counts as there.

A file under its final name is whole, or it is a bug. `publish` makes it so; `is_valid` is the only question that
decides whether work is done. Nothing in this project asks whether a path exists to decide that.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar, cast

from feature_extraction.errors import DamagedFileError, InputError

T = TypeVar("T")


def publish(path: Path, data: bytes | memoryview) -> None:
    """Put ``data`` under ``path`` so that a reader sees the old file or the new one, never a part.

    A temporary file in the same folder (a rename across file systems is a copy), flushed to the disk before the rename,
    and the folder flushed after it, so that neither a kill nor a power cut can show a name without its bytes.

    Raises:
        OSError: The disk is full or the folder cannot be written; no partial file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    temporary = Path(name)
    try:
        with _named(path), os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what must be heard of
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def publish_text(path: Path, text: str) -> None:
    """`publish` for text, as UTF-8."""
    publish(path, text.encode())


def publish_json(path: Path, content: object) -> None:
    """`publish` for plain data, as readable JSON, keys in the order given; nan, which JSON lacks, becomes null."""
    publish_text(path, json.dumps(without_nan(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with _named(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_valid(path: Path, check: Callable[[Path], object]) -> bool:
    """Whether ``path`` holds what ``check`` expects.

    Args:
        path: The file in question.
        check: Opens the file and raises `DamagedFileError` (or `OSError`) unless it is whole and the expected one.
    """
    try:
        check(path)
    except (DamagedFileError, OSError):
        return False
    return True


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        DamagedFileError: The file is not a JSON object.
        OSError: The file cannot be read.
    """
    try:
        with _named(path):
            content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedFileError(f"{path}: not readable as JSON ({error}); delete it and run again") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def as_record(kind: type[T], content: Mapping[str, object], where: str) -> T:
    """Build the record that plain data describes, such as a JSON object read from a file.

    Raises:
        DamagedFileError: A field is missing or unknown.
    """
    try:
        return cast("Callable[..., T]", kind)(**content)
    except TypeError as error:
        raise DamagedFileError(f"{where}: not a whole {kind.__name__}: {error}") from error


def require_folder(path: Path, key: str) -> Path:
    """Return ``path`` if it is a folder.

    Raises:
        InputError: It is not; the message names the configuration key.
    """
    if not path.is_dir():
        raise InputError(f"{key}={path}: no such folder; give the path of a folder that exists")
    return path


def require_writable(path: Path, key: str) -> None:
    """Refuse a folder, made already or to be made, that may not be written to. Nothing is written to find out.

    Raises:
        InputError: It may not; the message names the configuration key.
    """
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    if os.access(there, os.W_OK | os.X_OK):
        return
    is_read_only = os.statvfs(there).f_flag & os.ST_RDONLY
    cause = "Read-only file system" if is_read_only else "Permission denied"
    raise InputError(
        f"{key}={path}: cannot be written ({there}: {cause}); choose another {key}=…, with space and rights code=E-perm"
    )


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def address(content: Mapping[str, object]) -> str:
    """Hex SHA-256 of plain data, independent of the order of its keys: the name of everything made from it."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def without_nan(content: object) -> object:
    """Plain data with None for every number that JSON cannot write."""
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextmanager
def _named(path: Path) -> Generator[None, None, None]:
    """Let an error of a read, write or flush say which file it was: such calls know no name."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _umask() -> int:
    """The process's umask; reading it means setting it for a moment."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
