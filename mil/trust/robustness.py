"""What decides who is whose neighbour: biology, or the site."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from sklearn.neighbors import NearestNeighbors

from feature_extraction.errors import InputError
from mil.trust.out_of_distribution import unit

NEIGHBOURS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """The robustness index.

    Attributes:
        value: 1 when neighbours share the class, 0 when they share the site; nan when undefined.
        same_class_other_site: SO: neighbours with the same class from another site.
        other_class_same_site: OS: neighbours with another class from the same site.
        k: Neighbours of each row.
        reason: Why it is not defined, else empty.
    """

    value: float
    same_class_other_site: int
    other_class_same_site: int
    k: int
    reason: str


def robustness_index(
    vectors: Float64[np.ndarray, "row dim"],
    labels: Sequence[str],
    sites: Sequence[str],
    groups: Sequence[str],
    *,
    k: int = NEIGHBOURS,
) -> Robustness:
    """``SO / (SO + OS)`` over the k nearest rows of other groups by cosine (de Jong et al. 2025; Koemen et al. 2025).

    Neighbours that share both or neither say nothing and do not count. Read it only where each class comes from each
    site about as often (`mil.confounding`).

    Args:
        vectors: Of tiles or slides.
        labels: Class of each.
        sites: Site of each.
        groups: Slide of each tile, or patient of each slide: rows of one group are never neighbours.
        k: Neighbours of each row; fewer where fewer rows are of other groups.

    Raises:
        InputError: A single group, or a vector of length 0.
    """
    group = np.unique(np.array(groups), return_inverse=True)[1]
    if len(np.unique(group)) < 2:
        raise InputError("robustness index: all rows are of one group; expected rows of two or more")
    of_class = np.unique(np.array(labels), return_inverse=True)[1]
    of_site = np.unique(np.array(sites), return_inverse=True)[1]
    rows, neighbours = _pairs(unit(vectors), group, k)
    is_same_class = of_class[rows] == of_class[neighbours]
    is_same_site = of_site[rows] == of_site[neighbours]
    so, os = int((is_same_class & ~is_same_site).sum()), int((~is_same_class & is_same_site).sum())
    reason = "" if so + os else "no neighbour shares either the class or the site alone"
    value = so / (so + os) if so + os else float("nan")
    return Robustness(value=value, same_class_other_site=so, other_class_same_site=os, k=k, reason=reason)


def _pairs(units: np.ndarray, group: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row with each of its k nearest rows of other groups."""
    rows: list[np.ndarray] = []
    neighbours: list[np.ndarray] = []
    for name in np.unique(group):
        own, others = np.flatnonzero(group == name), np.flatnonzero(group != name)
        nearest = NearestNeighbors(n_neighbors=min(k, len(others)), algorithm="brute").fit(units[others])
        found = others[nearest.kneighbors(units[own], return_distance=False)]
        rows.append(np.repeat(own, found.shape[1]))
        neighbours.append(found.ravel())
    return np.concatenate(rows), np.concatenate(neighbours)
