"""The few figures that a doctor asks for first, as counts of 100 patients."""

import math

from mil.metrics.intervals import Estimate
from mil.report.methods import Method, shots_text
from mil.report.page import Table
from mil.report.summarize import RELIABLE_ECE_PATIENTS, Summary
from mil.report.trusted import MethodTrust, Trusted


def in_short(summary: Summary) -> Table:
    """A row a method: of 100 patients, how many are right, how many are referred, and who is right of the others."""
    found = {
        result.method: result.estimate
        for result in summary.results
        if result.level == "patient" and result.metric == "accuracy"
    }
    rows = [_row(one, found[one.method], one.found) for one in summary.trust if one.found is not None]
    n_most = max(len(set(method.predictions.patient_ids)) for method in summary.methods)
    few = "" if n_most >= RELIABLE_ECE_PATIENTS else f" They rest on {n_most} patients at most: read the intervals."
    return Table(
        title="Of 100 patients",
        columns=("method", "labels", "patients tested", "right", "referred", "right of those not referred", "chance"),
        rows=tuple(rows),
        note="Patients that no model of theirs had seen. Referred: the model names no class or several when it is "
        "to be right 9 times in 10, so a pathologist decides. Chance: right by always naming the most frequent "
        f"class. In brackets the 95 % interval.{few}",
        n_text_columns=2,
    )


def _row(one: MethodTrust, accuracy: Estimate, found: Trusted) -> tuple[str, ...]:
    method, referral = one.method, found.referral
    counts = [int((found.before.labels == place).sum()) for place in range(len(found.before.classes))]
    referred, kept = "too few patients", ""
    if referral is not None:
        referred = f"{100 * referral.share_referred:.0f}"
        kept = "all are referred" if referral.share_referred == 1 else _of_100(referral.accuracy_kept, _kept(found))
    return (
        *_lead(method),
        str(accuracy.n_patients),
        _of_100(accuracy.value, (accuracy.low, accuracy.high)),
        referred,
        kept,
        f"{100 * max(counts) / sum(counts):.0f}",
    )


def _lead(method: Method) -> tuple[str, str]:
    return method.name, shots_text(method.shots)


def _kept(found: Trusted) -> tuple[float, float]:
    one = found.referral
    return (math.nan, math.nan) if one is None else (one.accuracy_low, one.accuracy_high)


def _of_100(value: float, ends: tuple[float, float]) -> str:
    low, high = ends
    if math.isnan(value):
        return "not defined"
    return f"{100 * value:.0f}" if math.isnan(low) else f"{100 * value:.0f} ({100 * low:.0f} to {100 * high:.0f})"
