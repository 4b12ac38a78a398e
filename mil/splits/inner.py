"""A split within a fold: its train and val patients alone, so that what is chosen there has not seen its test part."""

from mil.cohort import Cohort, CohortRow
from mil.labels import ONE_CLASS, LabelKind
from mil.splits.schemes import make_split
from mil.splits.table import SplitTable


def inner_split(table: SplitTable, fold: int, *, n_folds: int, seed: int, kind: LabelKind = ONE_CLASS) -> SplitTable:
    """A k-fold split of the patients that a fold trains on or chooses by; those it tests on are not in the table.

    Raises:
        InputError: No such fold, or too few patients for so many folds.
    """
    rows = [*table.part(fold, "train"), *table.part(fold, "val")]
    cohort = Cohort(
        rows=tuple(
            CohortRow(slide_id=row.slide_id, patient_id=row.patient_id, label=row.label, site=row.site) for row in rows
        )
    )
    return make_split(cohort, folds=n_folds, seed=seed, kind=kind)
