"""Whole sites into folds, each class as evenly as they allow: an integer program, solved to proof where that is quick.

Howard et al. 2021 (Nature Communications 12:4423) minimise the squared difference between each class's patients in a
fold and an even share, by a commercial solver of integer quadratic programs. A count is a whole number, so its square
is linear between two neighbouring counts; the secants between them say the same in a linear integer program, which the
HiGHS in SciPy solves.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.optimize import milp
from scipy.sparse import csr_array, eye_array, hstack, vstack

from feature_extraction.errors import InputError

MOST_WORK, FEWEST_NODES = 100_000, 10
"""Nodes of the search tree times variables. Not seconds: the same sites give the same folds on a slow machine."""
NEAR_SECANTS, FAR_STEP = 24, 1.3
"""Every secant this near to the even share, then fewer. What is left out makes the proof weaker, never wrong."""
TOLERANCE = 1e-6
INFEASIBLE = 2
"""Status of `scipy.optimize.milp`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFolds:
    """Whole sites in folds.

    Attributes:
        fold: Of each site.
        imbalance: ``sum_cf (n_cf - N_c / F)² / (N_c / F)`` over classes c and the F folds; 0 when all are even.
        bound: No assignment is better than this.
    """

    fold: Int64[np.ndarray, " site"]
    imbalance: float
    bound: float

    @property
    def is_exact(self) -> bool:
        """Whether no other assignment is better."""
        return self.imbalance <= self.bound + TOLERANCE * max(1.0, self.bound)

    @property
    def gap(self) -> float:
        """How much of the imbalance may be avoidable, 0 to 1."""
        return 0.0 if self.is_exact else 1 - self.bound / self.imbalance


def balanced_sites(
    counts: Int64[np.ndarray, "site class"], folds: int, *, in_every_fold: Bool[np.ndarray, " class"]
) -> SiteFolds | None:
    """Put every site into one fold; None when no assignment gives every fold a patient of each class that needs it.

    Args:
        counts: Patients of each class at each site; each site has one at least.
        folds: How many.
        in_every_fold: The classes of which every fold, and the folds outside it (two patients), must have some.

    Raises:
        InputError: The search ended without any assignment.
    """
    # The large ones first, and site i in one of the folds 0 to i: folds have no names, so that loses nothing.
    order = np.argsort(-counts.sum(axis=1), kind="stable")
    sites = counts[order]
    n_sites, n_classes = sites.shape
    n_binary, n_squares = n_sites * folds, n_classes * folds
    upper = np.ones((n_sites, folds))
    for site in range(min(n_sites, folds)):
        upper[site, site + 1 :] = 0
    solved = milp(
        np.concatenate([np.zeros(n_binary), np.ones(n_squares)]),
        integrality=np.concatenate([np.ones(n_binary), np.zeros(n_squares)]),
        bounds=(0, np.concatenate([upper.ravel(), np.full(n_squares, np.inf)])),
        constraints=_constraints(sites, folds, in_every_fold),
        options={"node_limit": max(MOST_WORK // n_binary, FEWEST_NODES), "mip_rel_gap": 0.0},
    )
    if solved.x is None and solved.status == INFEASIBLE:
        return None
    if solved.x is None:
        raise InputError(f"folds={folds}: no folds of these {n_sites} sites were found in the time; use fewer folds")
    fold = np.empty(n_sites, np.int64)
    fold[order] = solved.x[:n_binary].reshape(n_sites, folds).argmax(axis=1)
    found = SiteFolds(fold=fold, imbalance=imbalance(counts, fold, folds), bound=max(float(solved.mip_dual_bound), 0.0))
    if found.is_exact:
        return found
    fold = _exchanged(counts, fold, folds, in_every_fold)
    return SiteFolds(fold=fold, imbalance=imbalance(counts, fold, folds), bound=found.bound)


def imbalance(counts: Int64[np.ndarray, "site class"], fold: Int64[np.ndarray, " site"], folds: int) -> float:
    """``sum_cf (n_cf - N_c / F)² / (N_c / F)``."""
    per_fold = np.stack([counts[fold == number].sum(axis=0) for number in range(folds)])
    even = counts.sum(axis=0) / folds
    return float((((per_fold - even) ** 2) / even).sum())


def _constraints(
    sites: Int64[np.ndarray, "site class"], folds: int, in_every_fold: Bool[np.ndarray, " class"]
) -> tuple[csr_array, Float64[np.ndarray, " row"], Float64[np.ndarray, " row"]]:
    """Rows, and their least and most. Variables: site by fold (1 or 0), then class by fold (a weighted square)."""
    n_sites, n_classes = sites.shape
    totals = sites.sum(axis=0)
    of_class = np.kron(sites.T, np.eye(folds))  # rows: class, then fold
    sums = np.concatenate([np.kron(np.eye(n_sites), np.ones((1, folds))), np.tile(np.eye(folds), n_sites), of_class])
    least = np.concatenate([np.ones(n_sites + folds), np.repeat(np.where(in_every_fold, 1, 0), folds)])
    most = np.concatenate(
        [np.ones(n_sites), np.full(folds, n_sites), np.repeat(np.where(in_every_fold, totals - 2, totals), folds)]
    )

    secants = [(label, k) for label, total in enumerate(totals) for k in _secants(int(total), folds)]
    labels, starts = (np.array(column).repeat(folds) for column in zip(*secants, strict=True))
    square = labels * folds + np.tile(np.arange(folds), len(secants))
    even = totals[labels] / folds
    slope = (2 * (starts - even) + 1) / even
    under = hstack(
        [csr_array(of_class)[square].multiply(-slope[:, None]), eye_array(n_classes * folds).tocsr()[square]]
    )
    padded = hstack([csr_array(sums), csr_array((len(sums), n_classes * folds))])
    return (
        csr_array(vstack([padded, under])),
        np.concatenate([least, (starts - even) ** 2 / even - slope * starts]),
        np.concatenate([most, np.full(len(square), np.inf)]),
    )


def _secants(total: int, folds: int) -> Iterable[int]:
    """Counts k: the secant runs from k to k + 1."""
    even = total // folds
    steps = list(range(NEAR_SECANTS + 1))
    while steps[-1] < total:
        steps.append(int(steps[-1] * FAR_STEP))
    return sorted({k for step in steps for k in (even - step, even + step) if 0 <= k < total})


def _exchanged(
    counts: Int64[np.ndarray, "site class"],
    fold: Int64[np.ndarray, " site"],
    folds: int,
    in_every_fold: Bool[np.ndarray, " class"],
) -> Int64[np.ndarray, " site"]:
    """Move one site, or exchange two, as long as that helps: where the search stopped without proof."""
    fold = fold.copy()
    even = counts.sum(axis=0) / folds
    least, most = np.where(in_every_fold, 1, 0), counts.sum(axis=0) - np.where(in_every_fold, 2, 0)
    others = np.concatenate([np.zeros((folds, counts.shape[1]), np.int64), counts])  # no site of a fold, then each site

    def cost(of_fold: Int64[np.ndarray, "*row class"]) -> Float64[np.ndarray, "*row"]:
        is_allowed = ((of_fold >= least) & (of_fold <= most)).all(axis=-1)
        return np.where(is_allowed, ((of_fold - even) ** 2 / even).sum(axis=-1), np.inf)

    helped = True
    while helped:
        helped = False
        for site in range(len(counts)):
            per_fold = np.stack([counts[fold == number].sum(axis=0) for number in range(folds)])
            here, there = fold[site], np.concatenate([np.arange(folds), fold])
            gain = counts[site] - others
            before = cost(per_fold)
            change = cost(per_fold[here] - gain) + cost(per_fold[there] + gain) - before[here] - before[there]
            change[there == here] = np.inf
            if (fold == here).sum() == 1:
                change[:folds] = np.inf
            best = int(change.argmin())
            if change[best] < -TOLERANCE:
                helped = True
                if best >= folds:
                    fold[best - folds] = here
                fold[site] = there[best]
    return fold
