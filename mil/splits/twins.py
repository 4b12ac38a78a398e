"""One slide under two ids: found by what is in the files, whatever they are called."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from feature_extraction.errors import DamagedFileError
from feature_extraction.slide_files import files_of_slide
from feature_extraction.slide_hash import slide_sha256
from feature_extraction.slides import read_slide_table
from feature_extraction.store import FeatureFile
from mil.cohort import CohortRow, listed

Keys = frozenset[str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideContents:
    """What is in the files of some slides.

    Attributes:
        keys: Slide to what stands for its content; slides that share one are the same.
        unread: Slides that could not be compared: no file, or a damaged one.
    """

    keys: dict[str, Keys]
    unread: tuple[str, ...]


def read_contents(source: Path, slide_ids: Iterable[str]) -> SlideContents:
    """Content of slides, from feature files (``out`` of extract) or from the slides (a folder, or a CSV with ``path``).

    Feature files tell by the fingerprint of the slide they were read from and by their rows, of which a slide without
    tissue has none; slides by the SHA-256 of their bytes, read only where two have the same size.

    Raises:
        InputError: Neither is there.
    """
    ids = list(slide_ids)
    folders = feature_folders(source)
    read = _of_features(folders, ids) if folders else _of_slides(source, ids)
    return SlideContents(keys=read, unread=tuple(name for name in ids if not read.get(name)))


def feature_folders(source: Path) -> list[Path]:
    """The folders of feature files in a folder, itself included; none where it holds slides."""
    return sorted({path.parent for path in (*source.glob("*.h5"), *source.glob("*/*.h5"))})


def find_twins(rows: Sequence[CohortRow], contents: SlideContents) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The same slide under several ids: faults, and what is only worth knowing.

    Twins of two patients may be on two sides in one draw or another, and twins with two labels are wrong in every one;
    those of one patient with one label count twice and do no other harm.
    """
    row_of = {row.slide_id: row for row in rows}
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for slide_id, keys in contents.keys.items():
        for key in keys:
            groups[key].append(slide_id)
    twins = sorted({tuple(sorted(group)) for group in groups.values() if len(group) > 1})
    faults, notes = [], []
    for group in twins:
        patients = sorted({row_of[slide_id].patient_id for slide_id in group})
        labels = sorted({row_of[slide_id].label for slide_id in group})
        said = f"slide {' and '.join(group)} (patient {', '.join(patients)}; label {', '.join(labels)})"
        (faults if len(patients) > 1 or len(labels) > 1 else notes).append(said)
    found = [f"the same slide under several ids: {listed(faults)}; keep one row of the labels table"] if faults else []
    return tuple(found), tuple(f"counted twice, the same slide under several ids: {note}" for note in notes)


def _of_features(folders: Sequence[Path], slide_ids: Sequence[str]) -> dict[str, Keys]:
    found: dict[str, Keys] = {}
    for slide_id in slide_ids:
        keys = (key for folder in folders for key in _keys_of_feature_file(folder / f"{slide_id}.h5"))
        found[slide_id] = frozenset(keys)
    return found


def _keys_of_feature_file(path: Path) -> Iterator[str]:
    try:
        file = FeatureFile(path)
    except (DamagedFileError, OSError):
        return
    if file.header.slide_fingerprint:
        yield f"slide {file.header.slide_fingerprint}"
    if file.shape[0]:  # all slides without a tile have the same content: none
        yield f"rows {path.parent.name} {file.content_sha256}"


def _of_slides(source: Path, slide_ids: Sequence[str]) -> dict[str, Keys]:
    path_of = {record.slide_id: record.path for record in read_slide_table(source).records}
    sizes = {name: size for name in slide_ids if name in path_of and (size := _tried(_n_bytes, path_of[name]))}
    of_size: defaultdict[int, list[str]] = defaultdict(list)
    for name, size in sizes.items():
        of_size[size].append(name)
    found: dict[str, Keys] = {}
    for size, names in of_size.items():
        for name in names:
            key = f"size {size}" if len(names) == 1 else _tried(slide_sha256, path_of[name])
            found[name] = frozenset((key,) if key else ())
    return found


def _n_bytes(path: Path) -> int:
    return sum(file.n_bytes for file in files_of_slide(path))


def _tried(read: "Callable[[Path], T]", path: Path) -> "T | None":
    try:
        return read(path)
    except OSError:
        return None
