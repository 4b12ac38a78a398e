"""Cohorts like ours: drawn with replacement, or with a few patients left out; as weights of patients."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

MOST_GROUPS = 500
"""Of patients left out in turn, over all strata: with more patients, several leave together."""


def patient_draws(
    strata: Int[np.ndarray, " patient"], *, resamples: int, seed: int, at_once: int
) -> Iterator[Float64[np.ndarray, "resample patient"]]:
    """Weight of each patient, stratum by stratum; a block of resamples at a time.

    Of n patients n - 1 are drawn, each with weight n / (n - 1): drawing n would make the variance of a mean too small
    by that factor, 10 % with ten patients of a class (Rao & Wu 1988). The weights of a stratum sum to its patients. A
    patient alone in its stratum is always there.

    Args:
        strata: Of each patient: the number of patients of each stays as it is.
        resamples: How many.
        seed: Of the draws.
        at_once: Resamples a block.
    """
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    generators = np.random.default_rng(seed).spawn(len(groups))  # one each: blocks of another size draw the same
    for start in range(0, resamples, at_once):
        weights = np.zeros((min(at_once, resamples - start), len(strata)))
        for group, generator in zip(groups, generators, strict=True):
            n = len(group)
            n_drawn = max(1, n - 1)
            weights[:, group] = generator.multinomial(n_drawn, np.full(n, 1 / n), size=len(weights)) * (n / n_drawn)
        yield weights


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
    def staying(self) -> Float64[np.ndarray, " group"]:
        """Share of the stratum's patients that stay when the group leaves."""
        leaving = np.bincount(self.groups[self.groups >= 0], minlength=len(self.first))
        return 1 - leaving / np.bincount(self.strata)[self.of_stratum]

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
            n = max(2, round(MOST_GROUPS * len(members) / max(MOST_GROUPS, len(strata))))
            groups[members] = n_groups + np.arange(len(members)) % n
            n_groups += n
    found, first = np.unique(groups, return_index=True)
    return Leaving(groups=groups, strata=strata, first=first[found >= 0])
