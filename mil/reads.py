"""What the cells of a sweep read: each split, text bank, folder and feature file once for all of them."""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TypeVar, cast

from feature_extraction.text_bank import TextBank, read_bank
from mil.feature_folder import BagSet, FeatureFolder, load_bags, open_folders
from mil.labels import LabelKind
from mil.splits.file import SplitTable, read_split
from mil.word_controls import controlled

T = TypeVar("T")


class Reads:
    """Files as they were when they were first asked for."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, object] = {}

    def split(self, path: Path, kind: LabelKind) -> SplitTable:
        """See `mil.splits.file.read_split`."""
        return self._once(("split", path, kind.name), lambda: read_split(path, kind=kind))

    def folders(self, paths: tuple[Path, ...]) -> tuple[FeatureFolder, ...]:
        """See `mil.feature_folder.open_folders`."""
        return self._once(("folders", paths), lambda: open_folders(paths))

    def bank(self, path: Path, words: str, seed: int) -> TextBank:
        """The words of a bank as a control changes them, see `mil.word_controls.controlled`."""
        own = self._once(("bank", path), lambda: read_bank(path))
        if words == "own":
            return own
        return self._once(("bank", path, words, seed), lambda: controlled(own, words, seed))

    def bags(
        self, folders: Sequence[FeatureFolder], wanted: Sequence[str], space: str, nontask_of: TextBank | None
    ) -> BagSet:
        """The bags of these slides, see `mil.feature_folder.load_bags`."""
        key = ("bags", tuple(folder.path for folder in folders), space, id(nontask_of))  # the bank is kept above
        known = self._once(key, lambda: BagSet(bags={}, content={}, unused={}))
        missing = [name for name in wanted if name not in known.bags and name not in known.unused]
        new = load_bags(folders, missing, space=space, nontask_of=nontask_of)
        for kept, found in ((known.bags, new.bags), (known.content, new.content), (known.unused, new.unused)):
            cast("dict[str, object]", kept).update(found)
        return BagSet(
            bags={name: known.bags[name] for name in wanted if name in known.bags},
            content={name: known.content[name] for name in wanted if name in known.content},
            unused={name: known.unused[name] for name in wanted if name in known.unused},
        )

    def _once(self, key: Hashable, read: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = read()
        return cast("T", self._kept[key])
