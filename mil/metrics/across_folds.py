"""A mean over folds with an interval that knows that folds share their training patients."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy import stats

from feature_extraction.errors import InputError

FEWEST_FOLDS = 2
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class AcrossFolds:
    """The mean of one figure, or of one difference, over folds.

    Attributes:
        mean: Over the folds that define it; nan without one.
        low: Lower end of the corrected 95 % interval; nan when there is none.
        high: Upper end.
        p: Two-sided, of the mean being 0; only for differences. nan when undefined.
        n_folds: Folds that define the figure.
        reason: Why there is no interval, else empty.
    """

    mean: float
    low: float
    high: float
    p: float
    n_folds: int
    reason: str


def across_folds(values: Float64[np.ndarray, " fold"], *, n_train: int | float, n_test: int | float) -> AcrossFolds:
    """Corrected resampled t interval and test (Nadeau & Bengio 2003, Machine Learning 52; Bouckaert & Frank 2004).

    ``mean ± t_{J-1} sqrt((1/J + n_test/n_train) s^2)``, s^2 the variance over the J folds with divisor J - 1. The usual
    1/J takes folds for independent; they share most of their training patients, and the second term, an assumption on
    their correlation, stands for that.

    Args:
        values: One a fold; nan where a fold does not define the figure.
        n_train: Patients that one fold trains on; the mean when they differ.
        n_test: Patients that one fold tests on; 0 gives the uncorrected interval.

    Raises:
        InputError: No training patient, or a negative number.
    """
    if n_train <= 0 or n_test < 0:
        raise InputError(f"folds: expected training and test patients, got {n_train:g} and {n_test:g}; check the split")
    defined = values[np.isfinite(values)]
    n_folds = len(defined)
    mean = float(defined.mean()) if n_folds else float("nan")
    reason = _no_interval(defined)
    if reason:
        return AcrossFolds(mean=mean, low=np.nan, high=np.nan, p=np.nan, n_folds=n_folds, reason=reason)
    error = float(np.sqrt((1 / n_folds + n_test / n_train) * defined.var(ddof=1)))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n_folds - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n_folds - 1))
    return AcrossFolds(mean=mean, low=mean - half, high=mean + half, p=p, n_folds=n_folds, reason="")


def _no_interval(defined: np.ndarray) -> str:
    if len(defined) == 0:
        return "not defined in any fold"
    if len(defined) < FEWEST_FOLDS:
        return "no interval over folds: defined in a single fold"
    return "no interval over folds: every fold has the same value" if np.ptp(defined) == 0 else ""
