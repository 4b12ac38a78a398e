"""How much of a slide's vector is its site, and what a new site costs."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from feature_extraction.errors import InputError
from mil.cohort import listed
from mil.metrics.bootstrap import RESAMPLES
from mil.metrics.classification import Predictions
from mil.metrics.differences import Difference, on_same_slides, paired_difference
from mil.metrics.intervals import Estimate, Level, bootstrap_interval

MOST_FOLDS = 5
FEWEST_PATIENTS = 2
"""Patients that a site needs to be both learned and tested."""
_AUC = "macro_auc"


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePredictability:
    """How well a linear model tells the site from the slide's mean vector.

    Attributes:
        auc: One-vs-rest, mean over sites, out-of-fold, with its interval over patients; .5 says that it cannot.
        sites: Those that were told apart.
        left_out: Sites with a single patient.
        n_folds: Of the cross-validation.
    """

    auc: Estimate
    sites: tuple[str, ...]
    left_out: tuple[str, ...]
    n_folds: int


def site_predictability(
    vectors: Float64[np.ndarray, "slide dim"],
    sites: Sequence[str],
    patient_ids: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> SitePredictability:
    """AUC of a logistic regression from standardised mean vectors to the site, patients kept together (Howard 2021).

    Where site and class go together the class tells the site too: read it with `mil.confounding`.

    Args:
        vectors: Means of the tile vectors of each slide.
        sites: Of each slide.
        patient_ids: Of each slide.
        resamples: Of the interval.
        seed: Of the folds and the draws.

    Raises:
        InputError: A patient with two sites, or fewer than two sites with two patients.
    """
    patients_of = _patients_by_site(sites, patient_ids)
    used = tuple(sorted(name for name, found in patients_of.items() if len(found) >= FEWEST_PATIENTS))
    left_out = tuple(sorted(set(patients_of) - set(used)))
    if len(used) < 2:
        raise InputError(
            f"sites: expected two or more with {FEWEST_PATIENTS} patients each, got {listed(used) or 'none'}; check "
            "the column site of the labels"
        )
    rows = np.array([row for row, name in enumerate(sites) if name in used])
    labels = np.array([used.index(sites[row]) for row in rows])
    groups = np.array([patient_ids[row] for row in rows])
    n_folds = min(MOST_FOLDS, *(len(patients_of[name]) for name in used))
    said = _out_of_fold(vectors[rows], labels, groups, n_folds=n_folds, seed=seed)
    predictions = Predictions(
        slide_ids=tuple(str(row) for row in rows),
        patient_ids=tuple(str(name) for name in groups),
        classes=used,
        labels=labels,
        probabilities=said,
    )
    auc = bootstrap_interval(predictions, resamples=resamples, seed=seed)[_AUC]
    return SitePredictability(auc=auc, sites=used, left_out=left_out, n_folds=n_folds)


def leave_site_out_gap(
    mixed: Predictions, left_out: Predictions, *, level: Level = "patient", resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """What a new site costs: figures of folds that mix sites minus those of folds that leave a site out.

    Both on the same slides and drawn patients (`mil.metrics.differences.paired_difference`); of accuracy or AUC, above
    0 says that the model leans on sites that it knows.

    Args:
        mixed: Out-of-fold predictions of a split that mixes sites.
        left_out: Those of leave-one-site-out.
        level: Slides or patients.
        resamples: Of the bootstrap.
        seed: Of the draws.

    Raises:
        InputError: No slide in common, or the two disagree on labels.
    """
    first, second = on_same_slides(mixed, left_out)
    return paired_difference(first, second, level=level, resamples=resamples, seed=seed)


def _patients_by_site(sites: Sequence[str], patient_ids: Sequence[str]) -> dict[str, set[str]]:
    patients: defaultdict[str, set[str]] = defaultdict(set)
    site_of: dict[str, str] = {}
    for site, patient in zip(sites, patient_ids, strict=True):
        patients[site].add(patient)
        if site_of.setdefault(patient, site) != site:
            raise InputError(f"sites: patient {patient} has slides of site {site_of[patient]} and {site}; correct them")
    return patients


def _out_of_fold(
    vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, n_folds: int, seed: int
) -> Float64[np.ndarray, "slide site"]:
    """Probabilities from folds that hold none of the patient's slides."""
    said = np.zeros((len(labels), int(labels.max()) + 1))
    folds = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    for train, test in folds.split(vectors, labels, groups):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(vectors[train], labels[train])
        said[np.ix_(test, model.classes_)] = model.predict_proba(vectors[test])
    return said
