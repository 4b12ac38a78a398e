"""What is wrong with a slide file, said in milliseconds and before anything that could hang opens it.

OpenSlide answers the same to a missing, an empty and a cut file, waits for ever on a FIFO, and opens a half-finished
download as long as its directories are there. Nothing here decodes a pixel: OpenSlide stays the authority on what a
whole file is, so what is not known here to be wrong counts as right.
"""

import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from feature_extraction.holes import first_zero, is_zero
from feature_extraction.tiff_walk import Page, TiffWalk, Walk

AGAIN = "copy the slide again from its source"
FINISH = "let the download finish or start it again, then compare the file's size or checksum with its source"
UNFINISHED_SUFFIXES = frozenset({".part", ".partial", ".crdownload", ".download", ".filepart", ".tmp", ".aria2"})
"""What browsers, curl, gdc-client, WinSCP and aria2 call a file that they are still fetching."""
NO_FILE_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
HEADS = (
    (rb"\s*<(!doctype|html|head)", "a web page: the server sent a page in place of the slide"),
    (rb"\s*(<\?xml|[{\[]\s*\")", "XML or JSON text: perhaps the server's error in place of the slide"),
    (rb"PK\x03\x04", "a zip archive: unpack it"),
    (rb"\x1f\x8b", "a gzip file: unpack it"),
    (rb"%PDF", "a PDF"),
    (rb"\x89PNG", "a PNG picture, not a pyramid"),
    (rb"\xff\xd8\xff", "a JPEG picture, not a pyramid"),
    (rb"[\t\n\r\x20-\x7e]{64}", "plain text"),
)
"""What files begin with that OpenSlide refuses."""
HEAD_BYTES = 1 << 16
"""Long enough that a DICOM file's empty preamble does not pass for a file of zeros."""
MIN_BYTES = 16
MAX_LEVELS = 64
MAX_TILE_PX = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """What is wrong with a slide file.

    Attributes:
        cause: What was found, with the file's name, in one sentence.
        remedy: What to do, in one sentence.
        code: ``E-missing``, ``E-empty``, ``E-open``, ``E-perm``, ``E-truncated``, ``E-download`` or ``E-companion``.
    """

    cause: str
    remedy: str
    code: str


def find_defect(path: Path) -> Defect | None:
    """Name what is wrong with a slide file; None when nothing is known against it.

    Costs a few hundred small reads at most, and opens nothing that is not a regular file.

    Raises:
        OSError: The file system itself fails (EIO, ESTALE): worth another try.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return _no_file(path, NO_FILE_KINDS.get(stat.S_IFMT(status.st_mode), "no regular file"))
        # Without O_NONBLOCK a FIFO that took the file's place since would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        return _unreachable(path, error)
    try:
        status = os.fstat(descriptor)
        return _unfinished_name(path) or _content(path, descriptor, status)
    finally:
        os.close(descriptor)


def explain_refusal(path: Path, reason: str) -> Defect:
    """Why OpenSlide may have refused a file with which `find_defect` found no fault.

    Args:
        path: The file.
        reason: OpenSlide's own words.

    Raises:
        OSError: The file is gone or cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    kind = next((kind for pattern, kind in HEADS if re.match(pattern, head, re.IGNORECASE)), None)
    looks = f"; it looks like {kind}" if kind else ""
    return Defect(
        cause=f"{path.name}: OpenSlide does not read it ({reason}){looks}",
        remedy="copy the slide again, or convert it to a format OpenSlide reads",
        code="E-open",
    )


def _no_file(path: Path, kind: str) -> Defect:
    remedy = "give the slide file itself (for DICOM, one .dcm file of the slide)"
    return Defect(cause=f"{path.name} is {kind}, expected a slide file", remedy=remedy, code="E-open")


def _unreachable(path: Path, error: OSError | ValueError) -> Defect:
    """Name why a path leads to no file that may be read."""
    number = error.errno if isinstance(error, OSError) else errno.EINVAL
    if number in {errno.EACCES, errno.EPERM}:
        cause = f"{path.name} may not be read: this user has no permission"
        return Defect(cause=cause, remedy="ask for read permission on the file and its folders", code="E-perm")
    if number in {errno.ENOENT, errno.ENOTDIR}:
        is_link = path.is_symlink()
        cause = f"{path.name} is a link to {path.readlink().name}, which is not there" if is_link else None
        return Defect(cause=cause or f"no such file: {path.name}", remedy="check the path", code="E-missing")
    if number in {errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}:
        said = error.strerror if isinstance(error, OSError) else str(error)
        return Defect(cause=f"no such file: {path.name} ({said})", remedy="check the path", code="E-missing")
    if number == errno.ENXIO:
        return _no_file(path, NO_FILE_KINDS[stat.S_IFSOCK])
    raise error


def _unfinished_name(path: Path) -> Defect | None:
    if path.suffix.lower() in UNFINISHED_SUFFIXES:
        cause = f"{path.name} is named as an unfinished download ({path.suffix})"
    elif path.with_name(path.name + ".aria2").is_file():
        cause = f"{path.name} is an unfinished download: {path.name}.aria2 is beside it"
    else:
        return None
    return Defect(cause=cause, remedy=FINISH, code="E-download")


def _content(path: Path, descriptor: int, status: os.stat_result) -> Defect | None:
    if path.suffix.lower() == ".mrxs":
        return _mirax(path)  # its own content is a picture that nobody needs
    if status.st_size == 0:
        return Defect(cause=f"{path.name} is empty (0 bytes)", remedy=AGAIN, code="E-empty")
    if status.st_size <= MIN_BYTES:
        cause = f"{path.name} is cut short: it has {status.st_size} bytes, fewer than the head of any slide"
        return Defect(cause=cause, remedy=AGAIN, code="E-truncated")
    head = os.pread(descriptor, HEAD_BYTES, 0)
    if not any(head):
        return _zeros(path, status, f"its first {len(head):,} bytes are zeros")
    if path.suffix.lower() in {".vms", ".vmu"}:
        return _hamamatsu_parts(path, head)
    walk = TiffWalk(descriptor, status.st_size, is_named_ndpi=path.suffix.lower() == ".ndpi").run()
    return _tiff(path, descriptor, status, walk) if walk else None


def _tiff(path: Path, descriptor: int, status: os.stat_result, walk: Walk) -> Defect | None:
    """Cut, or with holes of zeros where the directories say that something lies."""
    size = status.st_size
    if walk.end > size:
        later = "" if walk.is_whole else " or later"
        lost = walk.end - size
        cause = (
            f"{path.name} is cut short: its data ends at byte {walk.end:,}{later}, the file has {size:,} bytes "
            f"({lost:,} bytes, {100 * lost / walk.end:.3g} % missing)"
        )
        return Defect(cause=cause, remedy=AGAIN, code="E-truncated")
    if walk.zero_at is not None and is_zero(descriptor, walk.zero_at):
        return _zeros(path, status, f"it holds zeros where a directory belongs (byte {walk.zero_at:,})")
    for page in [page for page in walk.pages if page.is_level][:MAX_LEVELS]:
        if not page.n_bytes.any():
            return _zeros(path, status, f"it holds zeros where a list of tiles belongs (byte {page.list_at:,})")
        start = first_zero(descriptor, size, page, is_ndpi=walk.is_ndpi)
        if start is not None:
            return _zeros(path, status, f"it holds zeros where tile data belongs (from byte {start:,})")
    lie = next((lie for lie in map(_lie, walk.pages) if lie), None)
    return Defect(cause=f"{path.name} is damaged: {lie}", remedy=AGAIN, code="E-open") if lie else None


def _lie(page: Page) -> str | None:
    """What a directory says of its image that cannot be; OpenSlide divides and allocates by it, and dies of it."""
    if page.tile_px is None:
        return None
    width, height = page.tile_px
    if not (0 < width <= MAX_TILE_PX and 0 < height <= MAX_TILE_PX):
        return f"a directory speaks of tiles of {width:,} x {height:,} pixels"
    needed = -(-page.image_px[0] // width) * -(-page.image_px[1] // height)
    if needed > len(page.offsets):
        size = f"{page.image_px[0]:,} x {page.image_px[1]:,}"
        return f"a directory lists {len(page.offsets):,} tiles where its {size} pixels need {needed:,}"
    return None


def _zeros(path: Path, status: os.stat_result, zeros: str) -> Defect:
    stored = status.st_blocks * 512
    sparse = f"; only {stored:,} of its {status.st_size:,} bytes are on the disk" if stored < status.st_size else ""
    cause = f"{path.name} is an unfinished download: {zeros}{sparse}"
    return Defect(cause=cause, remedy=FINISH, code="E-download")


def _mirax(path: Path) -> Defect | None:
    """MIRAX keeps its data in a folder beside the file."""
    folder = path.with_suffix("")
    index = folder / "Slidedat.ini"
    if not index.is_file():
        return _companion(path, f"{folder.name}/{index.name}")
    section = re.search(r"\[DATAFILE\](.*?)(\n\s*\[|$)", index.read_text("utf-8-sig", "replace"), re.DOTALL)
    names = re.findall(r"^\s*FILE_\d+[ \t]*=[ \t]*(\S.*?)\s*$", section[1], re.MULTILINE) if section else []
    absent = next((name for name in names if not (folder / name).is_file()), None)
    return _companion(path, f"{folder.name}/{absent}") if absent else None


def _hamamatsu_parts(path: Path, head: bytes) -> Defect | None:
    """Hamamatsu's VMS and VMU name the files that hold their pixels."""
    pattern = rb"^\s*(?:ImageFile(?:\(\d+,\d+\))?|MapFile)[ \t]*=[ \t]*(\S.*?)\s*$"
    names = [os.fsdecode(name) for name in re.findall(pattern, head, re.MULTILINE)]
    absent = next((name for name in names if not path.with_name(name).is_file()), None)
    return _companion(path, absent) if absent else None


def _companion(path: Path, absent: str) -> Defect:
    return Defect(
        cause=f"{path.name}: {absent} is missing, a part of this slide that belongs beside it",
        remedy=f"copy everything that belongs to the slide into one folder, with {path.name}",
        code="E-companion",
    )
