"""`promptmil verify`: read feature files wholly; list what is invalid, missing, changed, orphaned, duplicate."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from feature_extraction.files import publish_json
from feature_extraction.findings import Finding, leftovers
from feature_extraction.pseudonyms import printable, pseudonymise
from feature_extraction.slides import SlideTable, read_slide_table
from feature_extraction.verify import Verification, feature_folders, remove_leftover, repair, verify_folder

FOUND = 3
KINDS = ("invalid", "missing", "changed", "orphaned", "duplicate")


def run(config: DictConfig) -> int:
    """Verify every feature folder; returns the exit code.

    0: nothing was found, or repair removed all of it and every slide has its features. 3: findings are left, or an
    invalid feature file was removed and its slide must be extracted again. 2: bad input, nothing was read.
    """
    started = time.time()
    console = Console(stderr=True)
    path = Path(config.features)
    folders = feature_folders(path)
    table = _table(config, path)

    def watch(paths: Sequence[Path]) -> Iterable[Path]:
        return track(paths, "reading", console=console, transient=True)

    verifications = [
        verify_folder(folder, table=table, check_slides=bool(config.check_slides), started=started, watch=watch)
        for folder in folders
    ]
    results = [
        _Result(folder=verification.folder, finding=finding, is_removed=finding in removed)
        for verification in verifications
        for removed in [repair(verification) if config.repair else []]
        for finding in verification.findings
    ]
    if folders != [path]:  # an out: its tables lie beside the feature folders
        around = leftovers(path, started=started, is_deep=False)
        results += [
            _Result(folder=path, finding=finding, is_removed=bool(config.repair) and remove_leftover(path, finding))
            for finding in around
        ]
    _report(console, verifications, results)
    if config.out is not None:
        publish_json(Path(config.out) / "summary.json", _summary(verifications, results))
    return FOUND if any(not result.is_removed or result.lacks_features for result in results) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """A finding in its folder, and what became of it."""

    folder: Path
    finding: Finding
    is_removed: bool

    @property
    def lacks_features(self) -> bool:
        """Whether the slide has to be extracted again."""
        return self.is_removed and self.finding.thing == "feature file"


def _table(config: DictConfig, features: Path) -> SlideTable | None:
    if config.slides is None:
        return None
    table = read_slide_table(Path(config.slides))
    if config.pseudonymise is None:
        return table
    return pseudonymise(table, Path(config.pseudonymise), out=features)


def _summary(verifications: Sequence[Verification], results: Sequence[_Result]) -> dict[str, object]:
    counts = Counter(result.finding.kind for result in results)
    return {
        "command": "verify",
        "features": [verification.folder.name for verification in verifications],
        "files": sum(verification.n_files for verification in verifications),
        "valid": sum(verification.n_valid for verification in verifications),
        "slides_by_hash": sum(verification.n_slides_by_hash for verification in verifications),
        "slides_by_sample": sum(verification.n_slides_by_sample for verification in verifications),
        **{kind: counts[kind] for kind in KINDS},
        "removed": sum(result.is_removed for result in results),
        "findings": [
            {
                **{key: printable(str(value)) for key, value in asdict(result.finding).items()},
                "folder": result.folder.name,
                "is_removable": result.finding.is_removable,
                "is_removed": result.is_removed,
            }
            for result in results
        ],
    }


def _report(console: Console, verifications: Sequence[Verification], results: Sequence[_Result]) -> None:
    """A table of counts, one line a finding, and what a comparison by sample cannot see."""
    table = Table(Column("features", no_wrap=True), "files", "valid", *KINDS)
    for verification in verifications:
        counts = Counter(finding.kind for finding in verification.findings)
        numbers = (verification.n_files, verification.n_valid, *(counts[kind] for kind in KINDS))
        table.add_row(verification.folder.name, *(str(number) for number in numbers))
    console.print(table)
    several = len(verifications) > 1
    lines = [
        f"{f'{result.folder.name}: ' * several}{result.finding}{' (removed)' * result.is_removed}" for result in results
    ]
    by_sample = sum(verification.n_slides_by_sample for verification in verifications)
    if by_sample:
        lines.append(
            f"{by_sample} slides were compared by size, head, middle and tail only: extract with hash_slides=true "
            "records the SHA-256 of the whole slide"
        )
    n_again = sum(result.lacks_features for result in results)
    if n_again:
        lines.append(f"{n_again} slides now lack their features: run the same `promptmil extract` again")
    for line in lines:
        console.print(printable(line), soft_wrap=True, markup=False, highlight=False)
