"""A split as a table: which slide is in which part of every fold."""

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from feature_extraction.errors import InputError
from mil.cohort import Cohort

PARTS = ("train", "val", "test")
KFOLD, REPEATED_KFOLD, MONTE_CARLO, FEW_SHOT = "kfold", "repeated_kfold", "monte_carlo", "few_shot"
SITE_PRESERVED, LEAVE_ONE_SITE_OUT, OFFICIAL = "site_preserved", "leave_one_site_out", "official"
SCHEME_NAMES = (KFOLD, REPEATED_KFOLD, MONTE_CARLO, FEW_SHOT, SITE_PRESERVED, LEAVE_ONE_SITE_OUT, OFFICIAL)
FIXED_COLUMNS = ("patient_id", "slide_id", "label", "site")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRow:
    """One slide and its part in every fold.

    Attributes:
        patient_id: All slides of a patient are in one part of a fold.
        slide_id: The slide.
        label: As `mil.labels` reads it.
        site: Where it comes from, None when unknown.
        parts: Its part in fold 0, 1, …; empty where it is not used.
    """

    patient_id: str
    slide_id: str
    label: str
    site: str | None
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitTable:
    """A split, its rows ordered by patient, then slide.

    Attributes:
        rows: One a slide.
        scheme: One of `SCHEME_NAMES`, or the file's stem when somebody else made it.
        shots: Training patients per class, None for all.
    """

    rows: tuple[SplitRow, ...]
    scheme: str
    shots: int | None

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return len(self.rows[0].parts)

    @property
    def classes(self) -> tuple[str, ...]:
        """The different labels, sorted."""
        return tuple(sorted({row.label for row in self.rows}))

    def part(self, fold: int, part: str) -> tuple[SplitRow, ...]:
        """The slides of one part (train, val, test) of a fold, ordered by patient, then slide.

        Raises:
            InputError: No such fold or part.
        """
        if part not in PARTS:
            raise InputError(f"part={part}: expected one of {', '.join(PARTS)}")
        if not 0 <= fold < self.n_folds:
            raise InputError(f"fold={fold}: this split has folds 0 to {self.n_folds - 1}; choose one of them")
        return tuple(row for row in self.rows if row.parts[fold] == part)

    def unused(self, fold: int) -> tuple[SplitRow, ...]:
        """The slides that a fold does not use."""
        return tuple(row for row in self.rows if row.parts[fold] == "")

    def to_csv(self) -> str:
        """The file's text."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow((*FIXED_COLUMNS, *(f"fold_{fold}" for fold in range(self.n_folds))))
        writer.writerows((row.patient_id, row.slide_id, row.label, row.site or "", *row.parts) for row in self.rows)
        return stream.getvalue()

    def sha256(self) -> str:
        """Hex SHA-256 of the file as `write_split` writes it, whatever the order of rows it was read in."""
        return hashlib.sha256(self.to_csv().encode()).hexdigest()


def make_table(rows: Iterable[SplitRow], *, scheme: str, shots: int | None) -> SplitTable:
    """A table with its rows in the one order."""
    ordered = sorted(rows, key=lambda row: (row.patient_id, row.slide_id))
    return SplitTable(rows=tuple(ordered), scheme=scheme, shots=shots)


def table_of(
    cohort: Cohort, folds: Sequence[Mapping[str, str]], *, scheme: str, shots: int | None = None
) -> SplitTable:
    """The table of a labels table and slide to part for each fold; a slide without part is not used."""
    rows = (
        SplitRow(
            patient_id=row.patient_id,
            slide_id=row.slide_id,
            label=row.label,
            site=row.site,
            parts=tuple(parts.get(row.slide_id, "") for parts in folds),
        )
        for row in cohort.rows
    )
    return make_table(rows, scheme=scheme, shots=shots)
