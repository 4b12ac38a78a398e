"""From what a figure is on resamples to where its true value may lie: BCa intervals at the levels of Student's t."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int
from scipy.special import ndtr, ndtri, stdtr, stdtrit

CONFIDENCE = 0.95
TIED = 1e-9
"""Draws this near count as equal: sums of the same weights in another order are."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampling:
    """How a figure moves with the patients it is made from.

    Attributes:
        value: On all patients.
        drawn: On each resample (`mil.metrics.resampling.patient_draws`) that defines it.
        undefined: Share of the resamples that do not.
        influence: How far each leaving group of patients moves it, in its own unit; 0 where it is not known.
        strata: Of each group.
    """

    value: float
    drawn: Float64[np.ndarray, " resample"]
    undefined: float
    influence: Float64[np.ndarray, " group"]
    strata: Int[np.ndarray, " group"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What makes a percentile miss its level: shift of the draws, skewness of the figure, few patients."""

    bias: float
    acceleration: float
    freedom: float

    def share_below(self, t: float) -> float:
        """Share of the draws below the end that lies ``t`` standard errors from the value (Efron 1987, eq. 6.6)."""
        moved = self.bias + t
        room = 1 - self.acceleration * moved
        return float(ndtr(self.bias + moved / room)) if room > 0 else float(t > 0)

    def errors_to(self, share: float) -> float:
        """The inverse of `share_below`."""
        moved = float(ndtri(share)) - self.bias
        room = 1 + self.acceleration * moved
        return moved / room - self.bias if room > 0 else float(np.copysign(np.inf, moved))


def influences(
    left_out: Float64[np.ndarray, " group"],
    strata: Int[np.ndarray, " group"],
    staying: Float64[np.ndarray, " group"],
) -> Float64[np.ndarray, " group"]:
    """How far each group moves a figure, from its values without the group (Davison & Hinkley 1997, sec. 5.3.2).

    Args:
        left_out: The figure without the group; nan where it is not defined then.
        strata: Of each group.
        staying: Share of the stratum's patients that stay.
    """
    found = np.zeros(len(left_out))
    for stratum in np.unique(strata):
        rows = np.flatnonzero((strata == stratum) & np.isfinite(left_out))
        if len(rows):
            found[rows] = staying[rows] * (left_out[rows].mean() - left_out[rows])
    return found


def interval(sampling: Sampling) -> tuple[float, float]:
    """Ends of the 95 % interval.

    BCa corrects the percentiles for bias and skewness (Efron 1987); levels of Student's t instead of the normal
    distribution's widen it where patients are few (Hesterberg 2015). An interval of draws that all agree has no width:
    the patients at hand do not differ, which says nothing of others.
    """
    shape = _shape(sampling)
    t = float(stdtrit(shape.freedom, (1 - CONFIDENCE) / 2))
    low, high = np.quantile(sampling.drawn, (shape.share_below(t), shape.share_below(-t)))
    return float(low), float(high)


def p_value(sampling: Sampling) -> float:
    """Two-sided, that the true value is 0: one minus the confidence of the interval that just does not hold it.

    Never 0: as if one more draw lay on either side (Davison & Hinkley 1997, eq. 4.11).
    """
    shape = _shape(sampling)
    below, at_most = _counts(sampling.drawn, 0.0)
    n = len(sampling.drawn) + 2
    tails = (
        stdtr(shape.freedom, shape.errors_to((at_most + 1) / n)),
        1 - stdtr(shape.freedom, shape.errors_to((below + 1) / n)),
    )
    return float(min(1.0, 2 * min(tails)))


def _counts(drawn: Float64[np.ndarray, " resample"], value: float) -> tuple[int, int]:
    """How many draws lie below the value, and how many do not lie above it."""
    return int((drawn < value - TIED).sum()), int((drawn <= value + TIED).sum())


def _shape(sampling: Sampling) -> _Shape:
    influence = sampling.influence
    middle = sum(_counts(sampling.drawn, sampling.value)) / 2
    spread = float(np.square(influence).sum())
    return _Shape(
        bias=float(ndtri((middle + 0.5) / (len(sampling.drawn) + 1))),
        acceleration=float((influence**3).sum() / (6 * spread**1.5)) if spread > 0 else 0.0,
        freedom=_freedom(influence, sampling.strata),
    )


def _freedom(influence: Float64[np.ndarray, " group"], strata: Int[np.ndarray, " group"]) -> float:
    """Degrees of freedom of the variance, a sum over strata (Satterthwaite 1946); at least one."""
    counts = np.bincount(strata).astype(np.float64)
    variances = np.bincount(strata, weights=np.square(influence))
    counts, variances = counts[counts > 1], variances[counts > 1]
    variances = variances * counts / (counts - 1)
    if variances.sum() == 0:
        return max(1.0, float((counts - 1).sum()))
    return float(variances.sum() ** 2 / (np.square(variances) / (counts - 1)).sum())
