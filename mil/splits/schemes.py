"""How a split is drawn: the schemes by name, what each needs, and the table they give."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from feature_extraction.errors import InputError
from mil.cohort import Cohort, listed
from mil.labels import ONE_CLASS, LabelKind
from mil.splits.draws import Drawing, Drawn, SplitSettings, by_class
from mil.splits.guards import check_split
from mil.splits.schemes_of_patients import few_shot, kfold, monte_carlo, repeated_kfold
from mil.splits.schemes_of_sites import leave_one_site_out, site_preserved
from mil.splits.sites import site_groups
from mil.splits.table import (
    FEW_SHOT,
    KFOLD,
    LEAVE_ONE_SITE_OUT,
    MONTE_CARLO,
    REPEATED_KFOLD,
    SITE_PRESERVED,
    SplitTable,
    table_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way to draw.

    Attributes:
        draw: Does it.
        uses: Settings that this scheme has a use for and others have not.
        has_folds: Whether every patient is test in one of ``folds`` parts, so that each class needs that many.
        is_of_sites: Whether sites stay whole.
    """

    draw: Callable[[Drawing], Drawn]
    uses: tuple[str, ...] = ()
    has_folds: bool = True
    is_of_sites: bool = False


SCHEMES: Mapping[str, Scheme] = {
    KFOLD: Scheme(draw=kfold),
    REPEATED_KFOLD: Scheme(draw=repeated_kfold, uses=("repeats",)),
    MONTE_CARLO: Scheme(draw=monte_carlo, uses=("test_fraction",), has_folds=False),
    FEW_SHOT: Scheme(draw=few_shot, uses=("shots",)),
    SITE_PRESERVED: Scheme(draw=site_preserved, is_of_sites=True),
    LEAVE_ONE_SITE_OUT: Scheme(draw=leave_one_site_out, has_folds=False, is_of_sites=True),
}
"""To add a scheme: a function of a `Drawing`, and an entry here."""


def make_split(
    cohort: Cohort,
    *,
    scheme: str = KFOLD,
    folds: int = 5,
    seed: int = 0,
    shots: int | None = None,
    val_fraction: float = 0.2,
    kind: LabelKind = ONE_CLASS,
) -> SplitTable:
    """Draw a split with the usual settings: `draw_split` without its note.

    Raises:
        InputError: As `draw_split`.
    """
    settings = SplitSettings(scheme=scheme, folds=folds, seed=seed, shots=shots, val_fraction=val_fraction)
    return draw_split(cohort, settings, kind=kind)[0]


def draw_split(cohort: Cohort, settings: SplitSettings, *, kind: LabelKind = ONE_CLASS) -> tuple[SplitTable, str]:
    """Draw a split, and what people should know of it (empty for nothing).

    The same cohort, in any order of rows, and the same seed give the same split. Val is a share of each class's
    patients that are not test. Labels that are not one class are spread evenly by the groups that their kind makes of
    them; ``few_shot`` is for classes only.

    Raises:
        InputError: Unknown scheme, a setting out of range or of no use, too few patients of a class, or no such split.
    """
    _require_settings(settings)
    if settings.scheme == FEW_SHOT and kind.fewest_names < 2:
        raise InputError("scheme=few_shot: draws patients of each class, and these labels are not one class; use kfold")
    scheme = SCHEMES[settings.scheme]
    fewest = _fewest(settings)
    given = cohort.labels_of_patients()
    labels = kind.strata(given, fewest)
    _require_patients(labels, settings, kind)
    drawn = scheme.draw(
        Drawing(
            settings=settings,
            labels=labels,
            groups=kind.groups(given, fewest),
            names={patient: kind.required(label) for patient, label in given.items()},
            sites=site_groups(cohort) if scheme.is_of_sites else {},
            kind=kind,
        )
    )
    parts = [{row.slide_id: fold[row.patient_id] for row in cohort.rows} for fold in drawn.folds]
    table = table_of(cohort, parts, scheme=settings.scheme, shots=settings.shots)
    check_split(table, cohort=cohort, kind=kind)
    return table, drawn.note


def _require_settings(settings: SplitSettings) -> None:
    name = settings.scheme
    if name not in SCHEMES:
        raise InputError(f"scheme={name}: expected one of {', '.join(SCHEMES)}")
    if not 0 <= settings.seed < 2**32:
        raise InputError(f"seed={settings.seed}: expected 0 to 4294967295")
    if name == FEW_SHOT and settings.shots is None:
        raise InputError("shots=None: expected the number of training patients per class, 1 or more")
    fewest = {"folds": 1 if name == MONTE_CARLO else 2, "shots": 1, "repeats": 1}
    for key, value in (("folds", settings.folds), ("shots", settings.shots), ("repeats", settings.repeats)):
        if value is not None and value < fewest[key]:
            raise InputError(f"{key}={value}: expected at least {fewest[key]}")
    for key, value in (("val_fraction", settings.val_fraction), ("test_fraction", settings.test_fraction)):
        if value is not None and not 0 < value < 1:
            raise InputError(f"{key}={value}: expected a share between 0 and 1")
    _require_use(settings)


def _require_use(settings: SplitSettings) -> None:
    given = {"shots": settings.shots, "repeats": settings.repeats, "test_fraction": settings.test_fraction}
    idle = [key for key, value in given.items() if value is not None and key not in SCHEMES[settings.scheme].uses]
    for key in idle:
        users = [name for name, scheme in SCHEMES.items() if key in scheme.uses]
        raise InputError(
            f"{key}={given[key]}: {settings.scheme} has no use for it; leave {key} out, or set scheme={listed(users)}"
        )


def _fewest(settings: SplitSettings) -> int:
    """Patients of each class: one in every test part, and one each left for train and val."""
    if not SCHEMES[settings.scheme].has_folds:
        return 3
    return 4 if settings.folds == 2 else settings.folds


def _require_patients(labels: Mapping[str, str], settings: SplitSettings, kind: LabelKind) -> None:
    needed = _fewest(settings)
    counts = {name: len(patients) for name, patients in by_class(labels).items()}
    few = [f"{name} ({count})" for name, count in counts.items() if count < needed]
    if few:
        remedy = "use fewer folds" if SCHEMES[settings.scheme].has_folds else "leave the class out"
        raise InputError(
            f"folds={settings.folds}: expected {needed} or more patients of each class, got {listed(few)}; {remedy}"
        )
    if len(counts) < kind.fewest_names:
        raise InputError(f"labels: expected at least two classes, got {listed(counts)}")
