"""Trust as tables for people, and as ``trust.csv`` with every digit."""

import csv
import io
import math
from collections.abc import Iterator, Sequence

from mil.metrics.intervals import Estimate
from mil.report.methods import shots_text
from mil.report.page import Table
from mil.report.readable import interval_text
from mil.report.results_file import safe_text
from mil.report.summarize import RELIABLE_ECE_PATIENTS
from mil.report.trusted import HONESTY, MethodTrust, SetsOfMethod, Trusted
from mil.trust.conformal import ALPHA, SetFigures
from mil.trust.referral import COVERAGE

COLUMNS = (
    *("method", "shots", "fitted_on", "sets", "figure", "value", "low", "high"),
    *("band_low", "band_high", "n_patients", "n_calibrated", "reason"),
)
_SHOWN = {"nll": "NLL ↓", "brier": "Brier ↓", "ece": "ECE ↓"}
_Cells = dict[str, str]


def trust_tables(trust: Sequence[MethodTrust]) -> list[Table]:
    """Probabilities, prediction sets and referral, a row a method; empty where no method has any."""
    found = [(one, one.found) for one in trust if one.found is not None]
    if not found:
        return []
    without = [f"{one.method.title}: {one.reason}" for one in trust if one.found is None]
    note = f" Not given: {'; '.join(without)}." if without else ""
    return [_honesty(found, note), _sets(found), _referral(found)]


def trust_csv(trust: Sequence[MethodTrust]) -> str:
    """One line a figure: temperatures, honesty before and after, sets, accuracy of the surest, referral."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for one in trust:
        shots = "all" if one.method.shots is None else str(one.method.shots)
        lead = {"method": safe_text(one.method.name), "shots": shots}
        if one.found is None:
            writer.writerow({**lead, "reason": one.reason})
            continue
        fitted_on = {"fitted_on": one.found.fitted_on}
        writer.writerows({**lead, **fitted_on, **cells} for cells in _lines(one.found))
    return stream.getvalue()


def _lines(found: Trusted) -> Iterator[_Cells]:
    n_patients = str(len(found.before.labels))
    for one in found.temperatures:
        yield {
            "figure": "temperature",
            "value": _number(one.value),
            "n_calibrated": str(one.n_patients),
            "reason": one.reason,
        }
    for name in HONESTY:
        yield {"figure": name, **_estimate(found.honesty_before[name])}
        yield {"figure": f"{name}_calibrated", **_estimate(found.honesty_after[name])}
    for kind in found.sets:
        yield from _lines_of_sets(kind, found.before.classes)
    surest = found.surest
    yield {
        "figure": f"accuracy_at_{surest.coverage:g}_coverage",
        **_values(surest.value, surest.low, surest.high),
        "n_patients": n_patients,
    }
    if found.referral is not None:
        one = found.referral
        yield {"figure": "share_referred", "value": _number(one.share_referred), "n_patients": n_patients}
        kept = _values(one.accuracy_kept, one.accuracy_low, one.accuracy_high)
        yield {"figure": "accuracy_kept", **kept, "n_patients": n_patients}
        yield {"figure": "accuracy_referred", "value": _number(one.accuracy_referred), "n_patients": n_patients}


def _lines_of_sets(kind: SetsOfMethod, classes: Sequence[str]) -> Iterator[_Cells]:
    lead = {"sets": kind.name, "n_calibrated": str(kind.n_calibrated)}
    if kind.figures is None:
        yield {**lead, "figure": "coverage", "reason": kind.reason}
        return
    figures, band = kind.figures, kind.band
    lead["n_patients"] = str(figures.n_patients)
    ends = {} if band is None else {"band_low": _number(band.low), "band_high": _number(band.high)}
    yield {
        **lead,
        "figure": "coverage",
        **_values(figures.coverage, figures.coverage_low, figures.coverage_high),
        **ends,
    }
    for name, share in zip(classes, figures.coverage_of_class, strict=True):
        yield {**lead, "figure": f"coverage_{name}", "value": _number(share)}
    sizes = {
        "mean_size": figures.mean_size,
        "share_single": figures.share_single,
        "share_empty": figures.share_empty,
        "accuracy_of_single": figures.accuracy_of_single,
    }
    for name, value in sizes.items():
        yield {**lead, "figure": name, "value": _number(value)}


def _honesty(found: Sequence[tuple[MethodTrust, Trusted]], note: str) -> Table:
    few = max(len(one.before.labels) for _, one in found) < RELIABLE_ECE_PATIENTS
    ece = (
        f" With fewer than {RELIABLE_ECE_PATIENTS} patients the ECE is biased upward: read NLL and Brier."
        if few
        else ""
    )
    return Table(
        title="May the probabilities be taken at their word?",
        columns=(
            *("method", "labels", "judged by", "patients", "temperature"),
            *(f"{_SHOWN[name]}{when}" for name in HONESTY for when in ("", " calibrated")),
        ),
        rows=tuple(
            (
                *_lead(one),
                found_there.fitted_on,
                str(len(found_there.before.labels)),
                _temperatures(found_there),
                *(
                    interval_text(estimates[name])
                    for name in HONESTY
                    for estimates in (found_there.honesty_before, found_there.honesty_after)
                ),
            )
            for one, found_there in found
        ),
        note="Patients. Each is calibrated by a temperature from other patients, never their own; above 1 it "
        "softens, the least and greatest are in brackets. Dealt folds: nothing was trained, so the patients are "
        "dealt out. ↓ less is better; where the calibrated figure is no better, the patients are too few to learn a "
        f"temperature from, or the probabilities were honest already.{ece}{note}",
        n_text_columns=3,
    )


def _sets(found: Sequence[tuple[MethodTrust, Trusted]]) -> Table:
    reasons = dict.fromkeys(kind.reason for _, one in found for kind in one.sets if kind.reason)
    why = f" Not made: {'; '.join(reasons)}." if reasons else ""
    classes = sorted({name for _, one in found for name in one.before.classes})
    return Table(
        title=f"Prediction sets that hold the true class of {1 - ALPHA:.0%} of patients",
        columns=(
            *("method", "labels", "sets", "patients", "coverage", "promised", "classes a set", "one class", "no class"),
            *("right if one", *(f"coverage {name}" for name in classes)),
        ),
        rows=tuple(
            (*_lead(one), kind.name, *_cells_of_sets(kind, found_there.before.classes, classes))
            for one, found_there in found
            for kind in found_there.sets
        ),
        note="Coverage: share of patients whose class is in their set, with its 95 % interval. Promised: where the "
        "coverage of one model calibrated on as many patients lies 9 times in 10. LAC has the smallest sets and may "
        "name no class; APS names at least one; by class: each class is covered for itself, which needs 9 patients "
        f"of each.{why}",
        n_text_columns=3,
    )


def _cells_of_sets(kind: SetsOfMethod, own: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    figures, band = kind.figures, kind.band
    if figures is None:
        return ("", "not made", *("" for _ in range(5 + len(classes))))
    of_class = dict(zip(own, figures.coverage_of_class, strict=True))
    return (
        str(figures.n_patients),
        f"{figures.coverage:.2f} ({figures.coverage_low:.2f} to {figures.coverage_high:.2f})",
        "" if band is None else f"{band.low:.2f} to {band.high:.2f}",
        *_sizes(figures),
        *(_share(of_class.get(name, float("nan"))) for name in classes),
    )


def _sizes(figures: SetFigures) -> tuple[str, ...]:
    shares = (figures.share_single, figures.share_empty, figures.accuracy_of_single)
    return (f"{figures.mean_size:.2f}", *map(_share, shares))


def _referral(found: Sequence[tuple[MethodTrust, Trusted]]) -> Table:
    return Table(
        title="Whom to hand to a pathologist",
        columns=(
            *("method", "labels", "patients", "accuracy of all", f"of the surest {COVERAGE:.0%}"),
            *("referred", "accuracy of those kept", "accuracy of those referred"),
        ),
        rows=tuple((*_lead(one), *_cells_of_referral(found_there)) for one, found_there in found),
        note="A patient is referred whose LAC set names no class or several. The rule works where those kept are "
        "right more often than those referred. Slides unlike those trained on are found by `predict bundle=…`, not "
        "here: run folders hold no embeddings.",
        n_text_columns=2,
    )


def _cells_of_referral(found: Trusted) -> tuple[str, ...]:
    rows, surest, one = found.before, found.surest, found.referral
    accuracy = float((rows.probabilities.argmax(axis=1) == rows.labels).mean())
    lead = (str(len(rows.labels)), f"{accuracy:.2f}", f"{surest.value:.2f} ({surest.low:.2f} to {surest.high:.2f})")
    if one is None:
        return (*lead, "too few patients", "", "")
    kept = _share(one.accuracy_kept)
    if one.share_referred < 1:
        kept += f" ({one.accuracy_low:.2f} to {one.accuracy_high:.2f})"
    return (*lead, f"{one.share_referred:.0%}", kept, _share(one.accuracy_referred))


def _lead(one: MethodTrust) -> tuple[str, str]:
    return one.method.name, shots_text(one.method.shots)


def _temperatures(found: Trusted) -> str:
    values = sorted(one.value for one in found.temperatures)
    middle = values[len(values) // 2]
    return f"{middle:.2f}" if len(values) == 1 else f"{middle:.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def _share(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.2f}"


def _estimate(estimate: Estimate) -> _Cells:
    return {
        **_values(estimate.value, estimate.low, estimate.high),
        "n_patients": str(estimate.n_patients),
        "reason": estimate.reason,
    }


def _values(value: float, low: float, high: float) -> _Cells:
    return {"value": _number(value), "low": _number(low), "high": _number(high)}


def _number(value: float) -> str:
    return f"{value:.6g}"
