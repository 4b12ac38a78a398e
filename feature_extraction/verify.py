"""Read a feature folder wholly, say what is wrong with it, and remove what the next extraction makes again.

Nothing is believed but the bytes: a file is valid when its seal and every block of every space agree with it.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_extraction import findings
from feature_extraction.claims import claim
from feature_extraction.errors import DamagedFileError, InputError
from feature_extraction.files import is_valid, sync_folder
from feature_extraction.findings import LOCKS, RECORDS, Finding
from feature_extraction.header import FeatureHeader
from feature_extraction.reading import find_defect
from feature_extraction.slide import fingerprint_file
from feature_extraction.slide_hash import slide_sha256
from feature_extraction.slides import SlideTable
from feature_extraction.store import FeatureFile

Watch = Callable[[Sequence[Path]], Iterable[Path]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found in one feature folder.

    Attributes:
        folder: The feature folder.
        extraction_fingerprint: Of its valid files, empty when there are none.
        n_files: Feature files, valid or not.
        n_valid: Valid ones.
        n_slides_by_hash: Slides compared by the SHA-256 of the whole slide.
        n_slides_by_sample: Slides compared by size, head, middle and tail only.
        findings: What is wrong.
    """

    folder: Path
    extraction_fingerprint: str
    n_files: int
    n_valid: int
    n_slides_by_hash: int
    n_slides_by_sample: int
    findings: tuple[Finding, ...]


def feature_folders(path: Path) -> list[Path]:
    """``path`` itself when it is a feature folder, else the feature folders in it.

    Raises:
        InputError: There is none.
    """
    candidates = [path, *sorted(child for child in path.glob("*") if child.is_dir())] if path.is_dir() else []
    found = [folder for folder in candidates if any(folder.glob("*.h5")) or (folder / RECORDS).is_dir()]
    if not found:
        raise InputError(f"features={path}: no feature folder; give the out=… of `promptmil extract` or a folder in it")
    return found[:1] if found[0] == path else found


def verify_folder(
    folder: Path,
    *,
    table: SlideTable | None = None,
    check_slides: bool = False,
    started: float | None = None,
    watch: Watch = list,
) -> Verification:
    """Read every file of a feature folder.

    Args:
        folder: The feature folder.
        table: What was asked for; None leaves out what only it can tell (missing, orphaned feature files).
        check_slides: Whether to compare each slide of the table with what was recorded of it.
        started: Unix time; temporary files younger than this are somebody's work. None: now.
        watch: Wraps the files that are read, to show progress.

    Raises:
        InputError: ``check_slides`` without a table.
        OSError: The folder cannot be listed.
    """
    if check_slides and table is None:
        raise InputError("check_slides=true: needs slides=…, the folder or table of the slides")
    left = findings.leftovers(folder, started=time.time() if started is None else started)
    valid, defects = _read_all(folder, watch)
    paths = {record.slide_id: record.path for record in table.records} if table else {}
    now = {slide_id: _fingerprint_now(path) for slide_id, path in paths.items()}
    found = [
        findings.invalid(slide_id, reason, is_removable=table is None or now.get(slide_id) is not None)
        for slide_id, reason in sorted(defects.items())
    ]
    if table:
        found += findings.missing(folder, table, {*valid, *defects})
        found += findings.orphans(valid, paths)
    compared = [slide_id for slide_id in paths if slide_id in valid] if check_slides else []
    for slide_id, path in zip(compared, watch([paths[slide_id] for slide_id in compared]), strict=True):
        change = slide_change(path, valid[slide_id])
        found += [findings.changed(slide_id, change)] if change else []
    by_hash = sum(bool(valid[slide_id].slide_sha256) for slide_id in compared)
    return Verification(
        folder=folder,
        extraction_fingerprint=_common_fingerprint(folder, valid),
        n_files=len(valid) + len(defects),
        n_valid=len(valid),
        n_slides_by_hash=by_hash,
        n_slides_by_sample=len(compared) - by_hash,
        findings=(
            *found,
            *findings.sealed_journals(folder, valid),
            *findings.stale_records(folder, {*valid, *defects}),
            *left,
            *findings.duplicates({slide_id: header.slide_fingerprint for slide_id, header in valid.items()}, now),
        ),
    )


def read_whole(path: Path) -> FeatureHeader:
    """Read a feature file to its last byte.

    Raises:
        DamagedFileError: Not whole, not finite, another slide's, or its choice of tiles contradicts itself.
        OSError: It cannot be read.
    """
    if not path.is_file():  # opening a pipe would never end
        raise DamagedFileError(f"{path.name}: is no file")
    file = FeatureFile(path)
    if file.header.slide_id != path.stem:
        raise DamagedFileError(f"{path.name}: holds the slide {file.header.slide_id}; it was renamed or copied")
    for space in file.spaces:
        rows = file.features_of(space)
        if rows.size and not np.isfinite(rows).all():
            raise DamagedFileError(f"{path.name}: holds values that are not finite in the space {space}")
    defect = None if file.chosen is None else find_defect(file.chosen, file.shape[0])
    if defect is not None:
        raise DamagedFileError(f"{path.name}: {defect}")
    return file.header


def slide_change(path: Path, header: FeatureHeader) -> str | None:
    """Say how a slide differs from the one that the features were made from, None when it does not."""
    fingerprint = _fingerprint_now(path)
    if fingerprint is None:
        return "the slide is not there or cannot be read"
    if fingerprint != header.slide_fingerprint:
        return "the size, head, middle or tail of the slide is not the recorded one"
    try:
        is_same = not header.slide_sha256 or slide_sha256(path) == header.slide_sha256
    except OSError as error:
        return f"the slide cannot be read to its end: {error.strerror or type(error).__name__}"
    return None if is_same else "the SHA-256 of the slide is not the recorded one"


def repair(verification: Verification) -> list[Finding]:
    """Remove what the next extraction makes again, under each slide's claim, after looking once more.

    A slide that somebody works on now keeps everything, and nothing outside the folder is touched, whatever links say.

    Returns:
        What was removed. With an invalid feature file goes its record.
    """
    return [finding for finding in verification.findings if finding.is_removable and _is_removed(verification, finding)]


def remove_leftover(folder: Path, finding: Finding) -> bool:
    """Remove a temporary file; returns whether it was there to remove."""
    path = folder / finding.file
    if not _is_inside(path, folder):
        return False
    path.unlink(missing_ok=True)
    return True


def _is_removed(verification: Verification, finding: Finding) -> bool:
    folder = verification.folder
    if finding.thing == "temporary file":
        return remove_leftover(folder, finding)
    path = folder / finding.file
    lock = folder / LOCKS / f"{finding.slide_id}.lock"
    is_folder = path.is_dir() and not path.is_symlink()
    if is_folder or not (_is_inside(path, folder) and _is_inside(lock, folder)):
        return False
    with claim(lock) as is_ours:
        if not is_ours or not _is_still_so(verification, finding):
            return False
        path.unlink(missing_ok=True)
        if finding.thing == "feature file":
            (folder / RECORDS / f"{finding.slide_id}.json").unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a name lies in the folder, links followed; the file under it may be a link, which alone would go."""
    return path.parent.resolve().is_relative_to(folder.resolve())


def _is_still_so(verification: Verification, finding: Finding) -> bool:
    """Whether a finding holds now that nobody else can change it."""

    def check(path: Path) -> None:
        _require_common(read_whole(path), path, verification.extraction_fingerprint)

    features = verification.folder / f"{finding.slide_id}.h5"
    if finding.thing == "record":
        return findings.record_defect(verification.folder / finding.file, has_file=features.is_file()) is not None
    return is_valid(features, check) == (finding.thing == "journal")


def _read_all(folder: Path, watch: Watch) -> tuple[dict[str, FeatureHeader], dict[str, str]]:
    """Headers of the valid files and defects of the others, by the slide id in the file's name."""
    whole: dict[str, FeatureHeader] = {}
    defects: dict[str, str] = {}
    for path in watch(sorted(path for path in folder.glob("*.h5") if not path.name.startswith("."))):
        try:
            whole[path.stem] = read_whole(path)
        except DamagedFileError as error:
            defects[path.stem] = str(error)
        except OSError as error:
            defects[path.stem] = f"{path.name}: cannot be read: {error.strerror or type(error).__name__}"
    expected = _common_fingerprint(folder, whole)
    for slide_id, header in list(whole.items()):
        try:
            _require_common(header, folder / f"{slide_id}.h5", expected)
        except DamagedFileError as error:
            defects[slide_id] = str(error)
            del whole[slide_id]
    return whole, defects


def _common_fingerprint(folder: Path, headers: Mapping[str, FeatureHeader]) -> str:
    """The configuration that the folder's name states, else the one of most files."""
    counts = Counter(header.extraction_fingerprint for header in headers.values())
    stated = re.search("-([0-9a-f]{8})$", folder.name)
    of_name = [fingerprint for fingerprint in sorted(counts) if stated and fingerprint.startswith(stated[1])]
    return max(of_name or sorted(counts), key=lambda fingerprint: counts[fingerprint], default="")


def _require_common(header: FeatureHeader, path: Path, expected: str) -> None:
    if expected and header.extraction_fingerprint != expected:
        made = header.extraction_fingerprint[:8]
        raise DamagedFileError(f"{path.name}: made by another configuration ({made}) than its folder ({expected[:8]})")


def _fingerprint_now(path: Path) -> str | None:
    """Of the slide file as it is now, None when it is no file that can be read."""
    try:
        return fingerprint_file(path) if path.is_file() else None
    except OSError:
        return None
