"""Cohorts like ours: drawn with replacement, or with a few patients left out; as weights of patients."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

MOST_GROUPS = 500
"""About how many groups of patients leave in turn, over all strata: of more patients, several leave together."""
FEWEST_GROUPS = 50
"""Of a stratum with as many patients: a rare class is not to be known from two halves."""


def patient_draws(
    strata: Int[np.ndarray, " patient"], *, resamples: int, seed: int, at_once: int
) -> Iterator[Float64[np.ndarray, "resample patient"]]:
    """How often each patient is drawn, from each stratum as many as it has; a block of resamples at a time.

    Args:
        strata: Of each patient.
        resamples: How many.
        seed: Of the draws.
        at_once: Resamples a block; changes no draw.
    """
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    generators = np.random.default_rng(seed).spawn(len(groups))  # one each: blocks of another size draw the same
    for start in range(0, resamples, at_once):
        counts = np.zeros((min(at_once, resamples - start), len(strata)))
        for group, generator in zip(groups, generators, strict=True):
            counts[:, group] = generator.multinomial(len(group), np.full(len(group), 1 / len(group)), size=len(counts))
        yield counts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leaving:
    """Groups of patients of a stratum that are left out in turn: single patients, or several when there are many.

    Attributes:
        groups: Of each patient; -1 for one alone in its stratum, who never leaves.
        strata: Of each patient.
        first: Place of a patient of each group.
    """

    groups: Int[np.ndarray, " patient"]
    strata: Int[np.ndarray, " patient"]
    first: Int[np.ndarray, " group"]

    @property
    def of_stratum(self) -> Int[np.ndarray, " group"]:
        """The stratum of each group."""
        return self.strata[self.first]

    @property
    def of_patients(self) -> Int[np.ndarray, " group"]:
        """How many patients the stratum of each group has."""
        return np.bincount(self.strata)[self.of_stratum]

    @property
    def staying(self) -> Float64[np.ndarray, " group"]:
        """Share of the stratum's patients that stay when the group leaves."""
        return 1 - np.bincount(self.groups[self.groups >= 0], minlength=len(self.first)) / self.of_patients

    def weights(self, *, at_once: int) -> Iterator[Float64[np.ndarray, "group patient"]]:
        """Weight of each patient when a group is left out: those who stay stand in for it; a block at a time."""
        for start in range(0, len(self.first), at_once):
            chosen = np.arange(start, min(start + at_once, len(self.first)))
            touched = self.of_stratum[chosen, None] == self.strata
            stays = np.where(touched, 1 / self.staying[chosen, None], 1.0)
            yield np.where(self.groups == chosen[:, None], 0.0, stays)


def leaving(strata: Int[np.ndarray, " patient"]) -> Leaving:
    """Who leaves with whom.

    Args:
        strata: Of each patient.
    """
    groups = np.full(len(strata), -1)
    n_groups = 0
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        if len(members) > 1:
            n = min(len(members), max(FEWEST_GROUPS, round(MOST_GROUPS * len(members) / len(strata))))
            groups[members] = n_groups + np.arange(len(members)) % n
            n_groups += n
    found, first = np.unique(groups, return_index=True)
    return Leaving(groups=groups, strata=strata, first=first[found >= 0])
