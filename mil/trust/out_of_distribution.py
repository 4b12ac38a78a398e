"""Slides unlike those a model was trained on, by their mean vector and by what their tiles look like most."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from sklearn.covariance import LedoitWolf
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import NearestNeighbors

from feature_extraction.errors import InputError
from mil.trust.conformal import conformal_quantile, fewest_patients

ALPHA = 0.05
"""Share of patients like the training patients that a rule may call unusual."""
NEIGHBOURS = 5
_FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NearestSlides:
    """How far a slide is from its k-th nearest training slide.

    Attributes:
        vectors: Of the training slides, unit length.
        k: Which neighbour.
        threshold: A larger distance is unusual.
    """

    vectors: Float64[np.ndarray, "slide dim"]
    k: int
    threshold: float

    def scores(self, vectors: Float64[np.ndarray, "slide dim"]) -> Float64[np.ndarray, " slide"]:
        """Distance of each slide, 0 to 2; the larger, the less usual."""
        return _to_kth(self.vectors, unit(vectors), self.k)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GaussianOfSlides:
    """How far a slide is from the mean of the training slides, in units of their spread.

    Attributes:
        mean: Of the training slides.
        precision: Inverse of their shrunk covariance.
        threshold: A larger distance is unusual.
    """

    mean: Float64[np.ndarray, " dim"]
    precision: Float64[np.ndarray, "dim dim"]
    threshold: float

    def scores(self, vectors: Float64[np.ndarray, "slide dim"]) -> Float64[np.ndarray, " slide"]:
        """Mahalanobis distance of each slide."""
        gap = vectors - self.mean
        return np.sqrt(np.maximum(np.einsum("si,ij,sj->s", gap, self.precision, gap), 0))


def fit_nearest(
    vectors: Float64[np.ndarray, "slide dim"],
    patient_ids: Sequence[str],
    *,
    k: int = NEIGHBOURS,
    alpha: float = ALPHA,
) -> NearestSlides:
    """Distance to the k-th nearest training slide between unit vectors (Sun et al. 2022).

    The threshold is a conformal quantile over patients of what each training patient's most unusual slide scores
    against the slides of the other patients.

    Args:
        vectors: Means of the tile vectors of each training slide.
        patient_ids: Patient of each.
        k: Which neighbour.
        alpha: Share of like patients that may be called unusual.

    Raises:
        InputError: Too few patients for ``alpha``, a zero vector, or values that are not finite.
    """
    patients = _patients(vectors, patient_ids, alpha)
    units = unit(vectors)
    scores = np.empty(len(units))
    for name in np.unique(patients):
        is_own = patients == name
        scores[is_own] = _to_kth(units[~is_own], units[is_own], k)
    return NearestSlides(vectors=units, k=k, threshold=share_threshold(scores, patient_ids, alpha=alpha))


def fit_gaussian(
    vectors: Float64[np.ndarray, "slide dim"], patient_ids: Sequence[str], *, alpha: float = ALPHA
) -> GaussianOfSlides:
    """Mahalanobis distance ``sqrt((v - m)' S^-1 (v - m))`` (Lee et al. 2018, with one class).

    S is shrunk towards a sphere (Ledoit & Wolf 2004), as there are seldom more slides than dimensions. The threshold is
    a conformal quantile over patients of their distances from the slides of other patients, in five folds.

    Args:
        vectors: Means of the tile vectors of each training slide.
        patient_ids: Patient of each.
        alpha: Share of like patients that may be called unusual.

    Raises:
        InputError: Too few patients for ``alpha``, or values that are not finite.
    """
    patients = _patients(vectors, patient_ids, alpha)
    scores = np.empty(len(vectors))
    for others, own in GroupKFold(n_splits=_FOLDS).split(vectors, groups=patients):
        scores[own] = _gaussian(vectors[others], np.inf).scores(vectors[own])
    return _gaussian(vectors, share_threshold(scores, patient_ids, alpha=alpha))


def share_threshold(
    scores: Float64[np.ndarray, " slide"], patient_ids: Sequence[str], *, alpha: float = ALPHA
) -> float:
    """The score that the most unusual slide of a new patient exceeds with a probability of at most ``alpha``.

    Args:
        scores: Of slides of patients that the score was not fitted on.
        patient_ids: Patient of each.
        alpha: The share.

    Raises:
        InputError: Too few patients.
    """
    names, inverse = np.unique(np.array(patient_ids), return_inverse=True)
    _require_patients(len(names), alpha)
    worst = np.full(len(names), -np.inf)
    np.maximum.at(worst, inverse, scores)
    return conformal_quantile(worst, alpha)


def background_share(
    similarity: Float64[np.ndarray, "tile prompt"], is_background: Bool[np.ndarray, " prompt"]
) -> float:
    """Share of a slide's tiles whose most similar prompt is one of the background; nan of no tile.

    With `share_threshold`, a slide that is nearly all glass, blood or normal tissue for the words is unusual.

    Raises:
        InputError: No prompt of the background, or none of anything else.
    """
    if is_background.all() or not is_background.any():
        raise InputError("share of background tiles: needs prompts of the background and of something else; check them")
    return float(is_background[similarity.argmax(axis=1)].mean()) if len(similarity) else float("nan")


def unusual_patients(
    patient_ids: Sequence[str], is_unusual: Mapping[str, Bool[np.ndarray, " slide"]]
) -> dict[str, list[str]]:
    """Patient to what is unusual about a slide of theirs, for `mil.trust.referral.referrals`; nobody else is there.

    Args:
        patient_ids: Patient of each slide.
        is_unusual: What is found unusual, in words, to whether each slide is.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    for words, of_slide in is_unusual.items():
        for patient in dict.fromkeys(name for name, is_so in zip(patient_ids, of_slide, strict=True) if is_so):
            found[patient].append(words)
    return dict(found)


def unit(vectors: Float64[np.ndarray, "slide dim"]) -> Float64[np.ndarray, "slide dim"]:
    """The same directions with length 1.

    Raises:
        InputError: A vector without direction.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if np.any(lengths == 0):
        raise InputError("slide vectors: one has length 0; extract its slide again")
    return vectors / lengths


def _to_kth(training: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    nearest = NearestNeighbors(n_neighbors=min(k, len(training)), algorithm="brute").fit(training)
    return np.asarray(nearest.kneighbors(vectors)[0])[:, -1]


def _gaussian(vectors: np.ndarray, threshold: float) -> GaussianOfSlides:
    fitted = LedoitWolf().fit(vectors)
    return GaussianOfSlides(
        mean=np.asarray(fitted.location_), precision=np.asarray(fitted.precision_), threshold=threshold
    )


def _patients(vectors: np.ndarray, patient_ids: Sequence[str], alpha: float) -> np.ndarray:
    if not np.isfinite(vectors).all():
        raise InputError("slide vectors: some values are not finite; extract the slides again")
    patients = np.array(patient_ids)
    _require_patients(len(np.unique(patients)), alpha)
    return patients


def _require_patients(n_patients: int, alpha: float) -> None:
    if n_patients < fewest_patients(alpha):
        raise InputError(
            f"out of distribution: {n_patients} training patients, alpha={alpha:g} needs {fewest_patients(alpha)}; "
            "give more, or a larger alpha"
        )
