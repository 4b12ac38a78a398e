"""From what a figure is on resamples to where its true value may lie: BCa intervals at the levels of Student's t."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int
from scipy.special import ndtr, ndtri, stdtr, stdtrit

CONFIDENCE = 0.95
TIED = 1e-9
"""Share of the largest draw within which draws count as equal: sums of the same weights in another order are."""
LEAST_TIED = 1e-13
"""The same where all draws are rounding errors, as of a method less itself."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampling:
    """How a figure moves with the patients it is made from.

    Attributes:
        value: On all patients.
        drawn: On each resample (`mil.metrics.resampling.patient_draws`) that defines it.
        undefined: Share of the resamples that do not.
        influence: How far each leaving group of patients moves it, in its own unit; 0 where it is not known.
        strata: Of each group.
        n_patients: Of the stratum of each group.
    """

    value: float
    drawn: Float64[np.ndarray, " resample"]
    undefined: float
    influence: Float64[np.ndarray, " group"]
    strata: Int[np.ndarray, " group"]
    n_patients: Int[np.ndarray, " group"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What makes a percentile miss its level.

    Attributes:
        bias: Shift of the draws, in normal quantiles.
        acceleration: Skewness of the figure.
        narrowness: By how much the true standard error is larger than that of the draws: they vary as the variance
            over n, and not n - 1, patients of a stratum.
        freedom: Degrees of freedom of that standard error.
    """

    bias: float
    acceleration: float
    narrowness: float
    freedom: float

    def share_below(self, t: float) -> float:
        """Share of the draws below the end that lies ``t`` standard errors from the value (Efron 1987)."""
        moved = self.bias + self.narrowness * t
        room = 1 - self.acceleration * moved
        return float(ndtr(self.bias + moved / room)) if room > 0 else float(t > 0)

    def errors_to(self, share: float) -> float:
        """The inverse of `share_below`."""
        moved = float(ndtri(share)) - self.bias
        room = 1 + self.acceleration * moved
        return (moved / room - self.bias) / self.narrowness if room > 0 else float(np.copysign(np.inf, moved))


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
    """Ends of the 95 % interval; it holds the value.

    BCa corrects the percentiles for bias and skewness (Efron 1987). Levels of Student's t, and of the standard error
    that divides by n - 1, instead of normal ones widen it where patients are few (Hesterberg 2015). An interval of
    draws that all agree has no width: the patients at hand do not differ, which says nothing of others.
    """
    shape = _shape(sampling)
    t = float(stdtrit(shape.freedom, (1 - CONFIDENCE) / 2))
    low, high = np.quantile(sampling.drawn, (shape.share_below(t), shape.share_below(-t)))
    return min(float(low), sampling.value), max(float(high), sampling.value)


def p_value(sampling: Sampling) -> float:
    """Two-sided, that the true value is 0: one minus the confidence of the interval that just does not hold it.

    Never less than two draws of all, as if one more lay on either side (Davison & Hinkley 1997, sec. 4.2.5).
    """
    shape = _shape(sampling)
    below, at_most = _counts(sampling.drawn, 0.0)
    n = len(sampling.drawn) + 2
    tails = (
        stdtr(shape.freedom, shape.errors_to((at_most + 1) / n)),
        1 - stdtr(shape.freedom, shape.errors_to((below + 1) / n)),
    )
    return float(np.clip(2 * min(tails), 2 / n, 1.0))


def _counts(drawn: Float64[np.ndarray, " resample"], value: float) -> tuple[int, int]:
    """How many draws lie below the value, and how many do not lie above it."""
    tied = max(LEAST_TIED, TIED * float(np.abs(drawn).max()))
    return int((drawn < value - tied).sum()), int((drawn <= value + tied).sum())


def _shape(sampling: Sampling) -> Shape:
    influence = sampling.influence
    middle = sum(_counts(sampling.drawn, sampling.value)) / 2
    squares = float(np.square(influence).sum())
    narrowness, freedom = _errors(sampling)
    return Shape(
        bias=float(ndtri((middle + 0.5) / (len(sampling.drawn) + 1))),
        acceleration=float((influence**3).sum() / (6 * squares**1.5)) if squares > 0 else 0.0,
        narrowness=narrowness,
        freedom=freedom,
    )


def _errors(sampling: Sampling) -> tuple[float, float]:
    """Narrowness of the draws and degrees of freedom of a variance that is a sum over strata (Satterthwaite 1946)."""
    _, first, stratum = np.unique(sampling.strata, return_index=True, return_inverse=True)
    n = sampling.n_patients[first].astype(np.float64)
    drawn = np.bincount(stratum, weights=np.square(sampling.influence))
    if drawn.sum() == 0:
        return 1.0, float((n - 1).sum())
    true = drawn * n / (n - 1)
    return float(np.sqrt(true.sum() / drawn.sum())), float(true.sum() ** 2 / (np.square(true) / (n - 1)).sum())
