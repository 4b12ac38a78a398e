"""SHA-256 of a whole slide: of its file, or of all the files it consists of."""

import hashlib
import struct
from pathlib import Path

from feature_extraction.slide_files import SlideFile, files_of_slide, read_chunks

_SERIES_TAG = b"\x20\x00\x0e\x00UI"
_LENGTH = struct.Struct("<H")
DICOM_HEAD_BYTES = 1 << 16
"""A series names itself near the start of each of its files."""


def slide_sha256(path: Path) -> str:
    """Hex SHA-256 of a slide: of the file's bytes, or of names and digests of its files in the order of their names.

    Of DICOM files in one folder only those of the same series belong to the slide.

    Raises:
        OSError: A file cannot be read, changed meanwhile, or ``path`` is no regular file.
    """
    files = files_of_slide(path)
    if not files:  # a pipe would never end
        raise FileNotFoundError(f"{path.name} is no file")
    if path.suffix.lower() == ".dcm":
        series = _dicom_series(path)
        files = [file for file in files if _dicom_series(file.path) == series]
    if [file.path for file in files] == [path]:
        return _sha256(files[0])
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name.as_posix()):
        digest.update(f"{file.name.as_posix()}\0{_sha256(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _sha256(file: SlideFile) -> str:
    digest = hashlib.sha256()
    for chunk in read_chunks(file):
        digest.update(chunk)
    return digest.hexdigest()


def _dicom_series(path: Path) -> bytes:
    """The series' identifier (0020,000E), empty when it is not found."""
    with path.open("rb") as stream:
        head = stream.read(DICOM_HEAD_BYTES)
    start = head.find(_SERIES_TAG) + len(_SERIES_TAG)
    if start < len(_SERIES_TAG) or start + _LENGTH.size > len(head):
        return b""
    (length,) = _LENGTH.unpack_from(head, start)
    return head[start + _LENGTH.size :][:length]
