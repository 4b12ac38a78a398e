"""Which files make up one slide, and their bytes, read as patiently as network storage needs."""

import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

CHUNK_BYTES = 16 << 20
"""Read at once: large enough that opening the file anew for each is nothing, small enough to stop soon."""
PAUSES_S = (0.2, 1.0, 4.0)
"""Before the second, third and fourth try of a read that failed as network storage fails for a moment."""
PASSING = frozenset({errno.EIO, errno.ESTALE})
KEY_FILE_BYTES = 1 << 16
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideFile:
    """One file of a slide.

    Attributes:
        path: Where it lies.
        name: Relative to the folder of the file that is opened.
        n_bytes: Its size when it was listed.
        changed_ns: Time of its last change then, nanoseconds.
    """

    path: Path
    name: Path
    n_bytes: int
    changed_ns: int


def files_of_slide(path: Path) -> list[SlideFile]:
    """The file that is opened and its companions, by path; none when it is no regular file.

    Raises:
        OSError: A folder or file cannot be read, after four tries where that may pass.
    """
    return retried(partial(_list_files, path))


def read_chunks(file: SlideFile) -> Iterator[bytes]:
    """The bytes of one file in order, at most `CHUNK_BYTES` at once.

    Raises:
        OSError: It cannot be read, after four tries where that may pass, or is no longer the file that was listed.
    """
    start = 0
    while start < file.n_bytes:
        chunk = retried(partial(_read_at, file.path, start, min(CHUNK_BYTES, file.n_bytes - start)))
        if not chunk:
            break
        start += len(chunk)
        yield chunk
    stat = retried(file.path.stat)
    if (start, stat.st_size, stat.st_mtime_ns) != (file.n_bytes, file.n_bytes, file.changed_ns):
        sizes = f"{file.n_bytes:,} bytes at first, {start:,} read, {stat.st_size:,} now"
        raise OSError(f"it changed while it was read ({sizes})")


def retried(call: Callable[[], Out]) -> Out:
    """Call, and again after errors that network storage shows for a moment: EIO and ESTALE, three times.

    Raises:
        OSError: Of another kind, or of the fourth try.
    """
    for pause in PAUSES_S:
        try:
            return call()
        except OSError as error:
            if error.errno not in PASSING:
                raise
        time.sleep(pause)
    return call()


def _list_files(path: Path) -> list[SlideFile]:
    if not path.is_file():
        return []
    files: list[SlideFile] = []
    for file in sorted({path, *_companions(path)}):
        stat = file.stat()
        name = file.relative_to(path.parent)
        files.append(SlideFile(path=file, name=name, n_bytes=stat.st_size, changed_ns=stat.st_mtime_ns))
    return files


def _companions(path: Path) -> list[Path]:
    """What the format reads besides the file that is opened."""
    match path.suffix.lower():
        case ".mrxs":  # the pixels lie in a folder of the same name
            folder = path.with_suffix("")
            return [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
        case ".dcm":  # a series is a folder of files of any name
            return [file for file in path.parent.iterdir() if file.is_file()]
        case ".vms" | ".vmu":  # a key file that names its neighbours
            text = _read_at(path, 0, KEY_FILE_BYTES).decode("latin-1")
            names = [line.partition("=")[2].strip() for line in text.splitlines()]
            return [path.parent / name for name in names if Path(name).name == name and (path.parent / name).is_file()]
        case _:
            return []


def _read_at(path: Path, start: int, n_bytes: int) -> bytes:
    """Up to ``n_bytes`` from ``start``; opened anew each time, for a stale handle stays stale."""
    with path.open("rb", buffering=0) as stream:
        stream.seek(start)
        return stream.read(n_bytes)
