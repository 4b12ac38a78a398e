"""Copy the next slides from slow storage to a fast local disk, within a bound of bytes, and delete them when read.

Staging is only ever a gain in speed: whatever goes wrong on the local disk, the slide is read where it lies. A fault of
the slide itself is that slide's fault, as it is without staging.
"""

import fcntl
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from feature_extraction.claims import claim
from feature_extraction.errors import InputError, SlideError
from feature_extraction.files import require_folder
from feature_extraction.slide_files import SlideFile, files_of_slide, read_chunks
from feature_extraction.slides import SlideRecord

PREFIX = "promptmil-"
OWNER = ".owner"
"""Locked while its folder is in use. A slide id never begins with a dot, so no copy can have this name."""
PATIENCE_S = 60.0
"""How long to wait for room while no slide is given back: whoever is that slow is not waiting for storage."""
POLL_S = 0.1
log = logging.getLogger(__name__)


class Stager:
    """Keeps copies of the next slides in a private folder of a fast local disk. Use as a context manager.

    Leftovers of killed runs are removed at the start, everything of this run at the end; nothing else is touched.
    The folder must be of this machine: on one shared between machines, locks may not tell who still runs.

    Args:
        folder: A folder that exists; each process makes its own subfolder in it.
        max_bytes: Most bytes of copies at any time, of this process.
        should_stop: Asked while waiting and between chunks; True makes `fetch` return soon.
        patience_s: Seconds to wait for room without a slide given back, before one is read where it lies.

    Raises:
        InputError: On entering: the folder is missing, cannot be written, or knows no locks.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._should_stop = should_stop
        self._patience_s = patience_s
        self._scope = ExitStack()
        self._changed = threading.Condition()
        self._reserved: dict[str, int] = {}
        self._copies: dict[str, SlideRecord] = {}
        self._n_released = self._n_hurried = self._n_in_place = 0

    def __enter__(self) -> "Stager":
        require_folder(self._folder, "stage.dir")
        try:
            self._private = self._scope.enter_context(_private_folder(self._folder))
        except OSError as error:
            raise InputError(
                f"stage.dir={self._folder}: no private folder can be made and locked in it ({error.strerror or error});"
                " give a folder on a local disk that you may write, or leave stage.dir out"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.close()

    @property
    def n_in_place(self) -> int:
        """Slides that were not copied: larger than the bound, no room on the disk, or none given back for long."""
        return self._n_in_place

    def fetch(self, record: SlideRecord) -> SlideRecord:
        """Copy a slide with its companions; waits until earlier slides have made room.

        Returns:
            The record with the path of the copy (same file name); the record as given when the slide is read where it
            lies: counted in `n_in_place`, or stopped, or no regular file, which opening it will name.

        Raises:
            SlideError: The slide cannot be read, or changed while it was copied.
        """
        try:
            files = files_of_slide(record.path)
        except OSError as error:
            raise _source_error(record, error) from error
        if not files or not self._reserve(record.slide_id, sum(file.n_bytes for file in files)):
            return self._copies.get(record.slide_id, record)
        is_copied = False
        try:
            is_copied = self._copy(record, files)
        except OSError as error:  # of the local disk: those of the source are SlideErrors by now
            self._stay(record.slide_id, f"it cannot be copied to stage.dir ({error.strerror or error})")
        finally:
            if not is_copied:
                self._delete(record.slide_id)
        if not is_copied:
            return record
        copy = replace(record, path=self._private / record.slide_id / record.path.name)
        with self._changed:
            self._copies[record.slide_id] = copy
        return copy

    def path_of(self, slide_id: str) -> Path | None:
        """Where a slide's copy lies, None when it has none."""
        with self._changed:
            copy = self._copies.get(slide_id)
        return None if copy is None else copy.path

    def release(self, slide_id: str) -> None:
        """Delete a slide's copy and free its bytes; nothing happens for a slide that has none.

        Call it when no handle of the copy is open any more: an open file keeps its bytes on the disk.
        """
        with self._changed:
            if self._copies.pop(slide_id, None) is None:
                return
        self._delete(slide_id)

    def hurry(self) -> None:
        """Say that the device stands idle for want of a slide: who waits for room now reads in place instead.

        Else both would wait: a slide for the room of the one before, and that one, to be given back, for a batch that
        only tiles of the next slide fill.
        """
        with self._changed:
            self._n_hurried += 1
            self._changed.notify_all()

    def _reserve(self, slide_id: str, n_bytes: int) -> bool:
        """Wait for room and take it; False when the slide is there already, or is to be read where it lies."""
        if n_bytes > self._max_bytes:
            self._stay(slide_id, f"its {n_bytes:,} bytes are more than stage.max_gb allows ({self._max_bytes:,})")
            return False
        with self._changed:
            n_released, n_hurried = self._n_released, self._n_hurried
            deadline = time.monotonic() + self._patience_s
            while not self._should_stop() and slide_id not in self._reserved:
                if sum(self._reserved.values()) + n_bytes <= self._max_bytes:
                    self._reserved[slide_id] = n_bytes
                    return True
                if self._n_released != n_released:
                    n_released, deadline = self._n_released, time.monotonic() + self._patience_s
                if time.monotonic() > deadline or self._n_hurried != n_hurried:
                    self._stay(slide_id, f"the {self._max_bytes:,} bytes of stage.max_gb are taken by slides in use")
                    return False
                self._changed.wait(POLL_S)
        return False

    def _copy(self, record: SlideRecord, files: Sequence[SlideFile]) -> bool:
        """Copy bytes only: no rights, no attributes. False when stopped or without room; OSErrors are the target's."""
        n_bytes = self._reserved[record.slide_id]
        n_free = shutil.disk_usage(self._private).free
        if n_free < n_bytes:  # asked first: a disk filled to its end would hurt whoever else writes to it
            self._stay(record.slide_id, f"it needs {n_bytes:,} bytes, stage.dir has {n_free:,} free")
            return False
        target = self._private / record.slide_id
        target.mkdir()
        for file in files:
            copy = target / file.name
            copy.parent.mkdir(exist_ok=True)
            with copy.open("xb", buffering=0) as sink:
                for chunk in _source_chunks(record, file):
                    if self._should_stop():
                        return False
                    _write_all(sink.fileno(), chunk)
        return True

    def _stay(self, slide_id: str, reason: str) -> None:
        """Count a slide that is read where it lies; only the first is logged, for there may be thousands."""
        with self._changed:
            self._n_in_place += 1
            is_first = self._n_in_place == 1
        if is_first:
            log.warning("stage.dir: slide %s is read where it lies: %s; others may follow", slide_id, reason)

    def _delete(self, slide_id: str) -> None:
        """Delete what was copied of a slide; its bytes count until they are gone."""
        try:
            with suppress(FileNotFoundError):
                shutil.rmtree(self._private / slide_id)
        except OSError as error:
            log.warning("stage.dir: the copy of slide %s cannot be deleted: %s", slide_id, error.strerror or error)
            return
        with self._changed:
            self._reserved.pop(slide_id, None)
            self._n_released += 1
            self._changed.notify_all()


def _source_chunks(record: SlideRecord, file: SlideFile) -> Iterator[bytes]:
    """The bytes of a source file, its errors told from those of the target."""
    try:
        yield from read_chunks(file)
    except OSError as error:
        raise _source_error(record, error) from error


def _source_error(record: SlideRecord, error: OSError) -> SlideError:
    return SlideError(
        slide_id=record.slide_id,
        stage="open",
        cause=f"{record.path.name} cannot be read: {error.strerror or error}",
        remedy="check the disk it lies on and its rights, then run the same command again",
        code="E-read",
    )


def _write_all(descriptor: int, data: bytes) -> None:
    """Write every byte: a disk that runs full takes a part first and fails on the next call."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextmanager
def _private_folder(folder: Path) -> Generator[Path, None, None]:
    """A folder of our own while the block runs, after removing those whose owner is dead."""
    with ExitStack() as owner:
        with _alone_in(folder):
            _remove_leftovers(folder)
            private = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
            owner.enter_context(claim(private / OWNER))
        try:
            yield private
        finally:
            try:
                with _alone_in(folder):
                    _remove(private)
            except OSError as error:
                log.warning("stage.dir: %s cannot be removed: %s", private, error.strerror or error)


@contextmanager
def _alone_in(folder: Path) -> Generator[None, None, None]:
    """Hold the lock of the folder itself, so that nobody sees a private folder between its making and its lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Remove private folders of dead owners; a folder without our owner file is somebody else's."""
    for private in sorted(folder.glob(f"{PREFIX}*")):
        with suppress(OSError):  # another user's, which we may not look into
            if private.is_symlink() or not (private / OWNER).is_file():
                continue
            with claim(private / OWNER) as is_free:
                if is_free:
                    _remove(private)


def _remove(private: Path) -> None:
    """Remove a private folder, the owner file last: what a kill leaves is still known as a leftover."""
    for entry in private.iterdir():
        if entry.name != OWNER:
            shutil.rmtree(entry)
    (private / OWNER).unlink()
    private.rmdir()
