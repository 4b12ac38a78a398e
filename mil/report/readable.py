"""Figures as text for people."""

import math

from mil.metrics.across_folds import AcrossFolds
from mil.metrics.intervals import Estimate

READABLE = {
    "macro_auc": "macro-AUC",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "nll": "NLL ↓",
    "brier": "Brier ↓",
    "ece": "ECE ↓",
}


def interval_text(estimate: Estimate) -> str:
    """``0.87 (0.78 to 0.95)``, or that it is not defined."""
    if math.isnan(estimate.value):
        return "not defined"
    if math.isnan(estimate.low):
        return f"{estimate.value:.2f} (no interval)"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def fold_text(across: AcrossFolds | None, sign: str = "") -> str:
    """A mean over folds with its interval; ``sign`` is ``+`` for a difference."""
    if across is None or math.isnan(across.mean):
        return "not defined"
    if math.isnan(across.low):
        return f"{across.mean:{sign}z.2f} (no interval)"
    return f"{across.mean:{sign}z.2f} ({across.low:{sign}z.2f} to {across.high:{sign}z.2f})"


def p_text(p: float) -> str:
    """``0.012``, or ``<0.001``."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"
