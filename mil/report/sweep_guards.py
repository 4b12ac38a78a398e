"""What is refused in a sweep: cells of two splits or of two extractions under one name."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from feature_extraction.errors import InputError
from mil.cohort import listed, read_rows
from mil.report.methods import named_groups
from mil.report.pooled import PREDICTIONS
from mil.runs import Run


def require_one_sweep(runs: Sequence[Run]) -> None:
    """Refuse runs that look alike and are not.

    Raises:
        InputError: Runs of one method and fold that read different features, or runs on two split files of one name
            that hold the same slides.
    """
    said = [*_mixed_features(runs), *_mixed_splits(runs)]
    if said:
        raise InputError(f"runs: mixed cells. {' '.join(said)} Remove the old ones, or keep each sweep in its folder")


def _mixed_features(runs: Sequence[Run]) -> list[str]:
    said: list[str] = []
    for name, group in named_groups(runs):
        folders: defaultdict[object, dict[object, list[str]]] = defaultdict(dict)
        for run in group:
            details = run.cell.get("determined_by")
            read = details.get("features") if isinstance(details, Mapping) else None
            folders[run.cell.get("fold")].setdefault(read, []).append(run.folder.name)
        said += [
            f"{name}, fold {fold}: the runs {_against(by_features.values())} read different features."
            for fold, by_features in folders.items()
            if len(by_features) > 1
        ]
    return said


def _mixed_splits(runs: Sequence[Run]) -> list[str]:
    splits: defaultdict[tuple[object, ...], dict[object, list[Run]]] = defaultdict(dict)
    for run in runs:
        cell = run.cell
        if cell.get("split_sha256"):
            key = (cell.get("split_name"), cell.get("scheme"), cell.get("shots"))
            splits[key].setdefault(cell["split_sha256"], []).append(run)
    return [
        f"The split {key[0]} is not the same file in "
        f"{_against([run.folder.name for run in one] for one in by.values())}."
        for key, by in splits.items()
        if len(by) > 1 and _share_a_slide([one[0] for one in by.values()])
    ]


def _share_a_slide(runs: Sequence[Run]) -> bool:
    """Whether two of them predict the same classes of the same slide."""
    seen: set[tuple[str, ...]] = set()
    for run in runs:
        header, lines = read_rows(run.folder / PREDICTIONS)
        classes = sorted(name for name in header if name.startswith("p_"))
        keys = {(line["slide_id"], *classes) for line in lines.values()}
        if seen & keys:
            return True
        seen |= keys
    return False


def _against(groups: Iterable[Sequence[str]]) -> str:
    return " and ".join(listed(sorted(names), most=6) for names in groups)
