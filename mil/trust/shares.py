"""The interval of a share of patients."""

from scipy.stats import binomtest

CONFIDENCE = 0.95


def share_interval(n_hits: int, n: int) -> tuple[float, float]:
    """Ends of the 95 % interval of a share of independent patients (Wilson 1927); nan of none."""
    if n == 0:
        return float("nan"), float("nan")
    found = binomtest(n_hits, n).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)
