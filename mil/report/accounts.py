"""Where every slide of a sweep went: counted, or not and why; the places add up."""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mil.cohort import is_missing, read_rows
from mil.report.methods import named_groups, shots_text
from mil.report.page import Table
from mil.report.pooled import PREDICTIONS
from mil.runs import Run, read_unused

COUNTED, UNLABELLED, NEVER_TESTED = "counted", "test without a label", "train or val only"
UNUSABLE, ELSEWHERE = "no usable features", "in none of its runs"
PLACES = (COUNTED, UNLABELLED, NEVER_TESTED, UNUSABLE, ELSEWHERE)
MOST_SHOWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The slides of a sweep, as one method used them.

    Attributes:
        method: Name with the shots.
        places: Each of `PLACES` to its slides, sorted; a slide is in one.
        reasons: Of those without usable features, why.
    """

    method: str
    places: Mapping[str, tuple[str, ...]]
    reasons: Mapping[str, str]

    def why(self, place: str, slide: str) -> str:
        """Why the method does not count a slide: what its run said, or the place."""
        return self.reasons[slide] if place == UNUSABLE else place


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """The slides of a sweep.

    Attributes:
        slides: Every slide that a run used or says it could not use, sorted.
        methods: One a method.
    """

    slides: tuple[str, ...]
    methods: tuple[Account, ...]


def accounts_of(runs: Sequence[Run]) -> Accounts:
    """Put every slide into one place for each method.

    Args:
        runs: Finished ones.

    Raises:
        InputError: Predictions that cannot be read, or a run that does not say what it could not use.
    """
    groups: list[tuple[str, dict[str, set[str]], dict[str, str]]] = []
    for name, group in named_groups(runs):
        shots = group[0].cell.get("shots")
        title = f"{name}, {shots_text(shots if isinstance(shots, int) else None)}"
        reasons = {slide: why for run in group for slide, why in read_unused(run.folder).items()}
        groups.append((title, _seen(group), reasons))
    seen_or_named = [names for _, seen, reasons in groups for names in (*seen.values(), set(reasons))]
    every = sorted(set[str]().union(*seen_or_named))
    return Accounts(
        slides=tuple(every),
        methods=tuple(
            Account(method=name, places=_placed(every, seen, reasons), reasons=reasons)
            for name, seen, reasons in groups
        ),
    )


def account_table(accounts: Accounts) -> Table:
    """A row a method; the places add up to the slides."""
    return Table(
        title="Where every slide went",
        columns=("method", "slides", *PLACES),
        rows=tuple(
            (one.method, str(len(accounts.slides)), *(str(len(one.places[place])) for place in PLACES))
            for one in accounts.methods
        ),
        note="Every slide that any run of the sweep used, or says it could not use. A row adds up to the slides. "
        "In none of its runs: its split leaves the slide out.",
    )


def unused_table(accounts: Accounts) -> Table:
    """Each slide that some method did not count, and why."""
    rows = _unused(accounts)
    cut = f" The first {MOST_SHOWN} of {len(rows)}; all are in unused.csv." if len(rows) > MOST_SHOWN else ""
    return Table(
        title="Slides that were not counted, and why",
        columns=("slide", "why", "by"),
        rows=tuple((slide, why, _by(methods, accounts)) for slide, why, methods in rows[:MOST_SHOWN])
        or (("none", "every slide is counted by every method", ""),),
        note=f"Reasons are those of the run that could not use the slide.{cut}",
        n_text_columns=3,
        is_record=True,
    )


def unused_csv(accounts: Accounts) -> str:
    """``slide_id,method,place,reason``: one line for each slide that a method did not count."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("slide_id", "method", "place", "reason"))
    writer.writerows(
        (slide, one.method, place, one.reasons[slide] if place == UNUSABLE else "")
        for one in accounts.methods
        for place in PLACES[1:]
        for slide in one.places[place]
    )
    return stream.getvalue()


def _seen(group: Sequence[Run]) -> dict[str, set[str]]:
    """What the runs of a method did with the slides that they list."""
    seen: dict[str, set[str]] = {COUNTED: set(), UNLABELLED: set(), NEVER_TESTED: set()}
    for run in group:
        for line in read_rows(run.folder / PREDICTIONS)[1].values():
            tested = UNLABELLED if is_missing(line["label"]) and f"p_{line['label']}" not in line else COUNTED
            seen[tested if line["part"] == "test" else NEVER_TESTED].add(line["slide_id"])
    return seen


def _placed(
    every: Sequence[str], seen: Mapping[str, set[str]], reasons: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """The first place that fits each slide."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for slide in every:
        used = next((place for place in PLACES[:3] if slide in seen[place]), None)
        places[used or (UNUSABLE if slide in reasons else ELSEWHERE)].append(slide)
    return {place: tuple(places[place]) for place in PLACES}


def _unused(accounts: Accounts) -> list[tuple[str, str, list[str]]]:
    """(slide, why, methods), the slides in order."""
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for one in accounts.methods:
        for place in PLACES[1:]:
            for slide in one.places[place]:
                found[slide, one.why(place, slide)].append(one.method)
    return [(slide, why, methods) for (slide, why), methods in sorted(found.items())]


def _by(methods: Sequence[str], accounts: Accounts) -> str:
    return "every method" if len(methods) == len(accounts.methods) else "; ".join(methods)
