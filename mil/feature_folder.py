"""Feature folders of one configuration, and the bags that are loaded from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from feature_extraction.errors import DamagedFileError, InputError, MismatchError
from feature_extraction.store import FeatureFile
from feature_extraction.text_bank import TextBank
from mil.bag import Bag
from mil.packed import SCALES

NO_TISSUE = "no tissue was found"
"""Why a valid slide without a tile is not used; unlike the other reasons no failure."""


class FeatureFolder:
    """The feature files of one configuration.

    Args:
        path: A folder of feature files, or an ``out`` of `promptmil extract` with exactly one such folder in it.

    Raises:
        InputError: No feature file there, or several folders of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = _find_folder(path)
        first = _first_whole(self.path)
        self.header = first.header
        self.spaces = first.spaces

    def slide_ids(self) -> list[str]:
        """Slides with a feature file, sorted."""
        return sorted(path.stem for path in self.path.glob("*.h5"))

    def open(self, slide_id: str) -> FeatureFile:
        """One slide's file.

        Raises:
            DamagedFileError: It is missing, damaged, or of another configuration than the rest of the folder.
        """
        path = self.path / f"{slide_id}.h5"
        if path.parent != self.path or not path.is_file():
            raise DamagedFileError(f"slide={slide_id}: no feature file in {self.path.name}; extract this slide")
        file = FeatureFile(path)
        got, expected = file.header.extraction_fingerprint, self.header.extraction_fingerprint
        if got != expected:
            raise DamagedFileError(
                f"slide={slide_id}: its file was made by another configuration ({got[:8]}) than the rest of the folder "
                f"({expected[:8]}); extract it again"
            )
        return file


def require_space(space: str, folder: FeatureFolder) -> None:
    """Refuse features that are not in the space asked for.

    Raises:
        MismatchError: They are in others only.
    """
    if space not in folder.spaces:
        also = ", or convert with project=true" if space == "joint" else ""
        name, weights = folder.header.encoder, folder.header.encoder_fingerprint[:8]
        raise MismatchError(
            f"features={folder.path}: asked for the {space} space of {name} ({weights}), these are in its "
            f"{', '.join(folder.spaces)} space ({weights}); extract with space={space}{also}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BagSet:
    """Bags that could be loaded, and why others could not.

    Attributes:
        bags: By slide id.
        content: SHA-256 of each bag's rows (at each magnification), by slide id.
        unused: Slide id to reason: no file, damaged, or no tissue.
    """

    bags: dict[str, Bag]
    content: dict[str, str]
    unused: dict[str, str]


def open_folders(paths: Sequence[Path]) -> tuple[FeatureFolder, ...]:
    """Open the folder of each magnification, the finest first.

    Raises:
        InputError: Not one or two, or they do not get coarser.
        MismatchError: They are of different encoders.
    """
    if len(paths) not in (1, 2):
        raise InputError(f"features: expected one folder, or [fine,coarse], got {len(paths)}")
    folders = tuple(FeatureFolder(path) for path in paths)
    fine, coarse = folders[0].header, folders[-1].header
    if fine.encoder_fingerprint != coarse.encoder_fingerprint:
        raise MismatchError(
            f"features: the fine folder is of {fine.encoder} ({fine.encoder_fingerprint[:8]}), the coarse one of "
            f"{coarse.encoder} ({coarse.encoder_fingerprint[:8]}); extract both with one encoder"
        )
    if len(folders) == 2 and fine.tile_mpp >= coarse.tile_mpp:
        raise InputError(
            f"features: tiles of {fine.tile_mpp} µm a pixel come first, then {coarse.tile_mpp}; expected the finer "
            "magnification first, [fine,coarse]"
        )
    return folders


def load_bags(
    folders: Sequence[FeatureFolder], slide_ids: Sequence[str], *, space: str, nontask_of: TextBank | None = None
) -> BagSet:
    """Open bags; one that cannot be used is listed with the reason and the others are returned.

    Args:
        folders: Where the files of each magnification are; a slide must be in each.
        slide_ids: Which slides.
        space: Which embeddings.
        nontask_of: Leave out tiles whose best prompt in this bank is a non-task thing; None to keep every tile.
    """
    found = [_load_scale(folder, slide_ids, space=space, nontask_of=nontask_of) for folder in folders]
    return found[0] if len(found) == 1 else _paired(*found)


def _paired(fine: BagSet, coarse: BagSet) -> BagSet:
    """Slides that have a bag at both magnifications."""
    both = [name for name in fine.bags if name in coarse.bags]
    named = zip(SCALES, (fine.unused, coarse.unused), strict=True)
    return BagSet(
        bags={name: replace(fine.bags[name], coarse=coarse.bags[name]) for name in both},
        content={name: f"{fine.content[name]} {coarse.content[name]}" for name in both},
        unused={
            name: reason if reason == NO_TISSUE else f"{scale}: {reason}"
            for scale, unused in named
            for name, reason in unused.items()
        },
    )


def _load_scale(folder: FeatureFolder, slide_ids: Sequence[str], *, space: str, nontask_of: TextBank | None) -> BagSet:
    bags: dict[str, Bag] = {}
    content: dict[str, str] = {}
    unused: dict[str, str] = {}
    for slide_id in slide_ids:
        try:
            file = folder.open(slide_id)
            features = file.features_of(space)
        except DamagedFileError as error:
            unused[slide_id] = str(error).removeprefix(f"slide={slide_id}: ")
            continue
        if len(features) == 0:
            unused[slide_id] = NO_TISSUE
            continue
        bag = Bag(slide_id=slide_id, features=features, coords_lv0=file.coords_lv0, size_lv0=file.header.size_lv0())
        bags[slide_id] = bag if nontask_of is None else _task_tiles(bag, nontask_of)
        content[slide_id] = file.content_sha256
    return BagSet(bags=bags, content=content, unused=unused)


def _task_tiles(bag: Bag, bank: TextBank) -> Bag:
    """Without the tiles that look most like a non-task thing; all of them if none would be left."""
    if not bank.nontask():
        return bag
    rows = bag.unit_rows()
    task = rows @ np.stack([bank.class_vector(name) for name in bank.class_names()]).T
    nontask = rows @ np.stack([bank.nontask_vector(name) for name in bank.nontask()]).T
    is_task = task.max(axis=1) >= nontask.max(axis=1)
    if not is_task.any():
        return bag
    return replace(bag, features=np.asarray(bag.features)[is_task], coords_lv0=bag.coords_lv0[is_task])


def _first_whole(folder: Path) -> FeatureFile:
    """The first file that can be read; damaged ones cost themselves only."""
    paths = sorted(folder.glob("*.h5"))
    for path in paths:
        try:
            return FeatureFile(path)
        except DamagedFileError:
            continue
    raise InputError(f"features={folder}: none of its {len(paths)} files is a whole feature file of promptmil")


def _find_folder(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"features={path}: no such folder; give the out=… of `promptmil extract`")
    if any(path.glob("*.h5")):
        return path
    inside = sorted({file.parent for file in path.glob("*/*.h5")})
    if len(inside) != 1:
        names = ", ".join(folder.name for folder in inside) or "none"
        raise InputError(f"features={path}: expected one folder of feature files in it, got {names}; name one of them")
    return inside[0]
