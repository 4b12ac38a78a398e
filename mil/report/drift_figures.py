"""What the runs of a sweep say of their prototypes: how far each went from its word, and where it means another."""

import csv
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mil.cohort import listed
from mil.report.methods import named_groups, shots_text
from mil.report.page import Table
from mil.runs import Run

DRIFT = "drift.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class WordDrift:
    """One prototype through the runs of a method.

    Attributes:
        method: Name with the shots.
        part: ``class``, ``concept`` or ``head``, with two magnifications also which.
        word: Its own.
        cosine: With its own word, mean over the runs.
        lowest: The lowest of any run.
        n_runs: Runs that have it.
        n_red: Runs in which it is nearer to another word.
        nearest: Those other words, the most frequent first.
    """

    method: str
    part: str
    word: str
    cosine: float
    lowest: float
    n_runs: int
    n_red: int
    nearest: tuple[str, ...]


def word_drifts(runs: Sequence[Run]) -> list[WordDrift]:
    """Every prototype of every method that started from words; empty when none did."""
    found: list[WordDrift] = []
    for name, group in named_groups(runs):
        shots = group[0].cell.get("shots")
        method = f"{name}, {shots_text(shots if isinstance(shots, int) else None)}"
        of_word: defaultdict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
        for run in group:
            for row in _rows(run):
                of_word[row["part"], row["name"]].append(row)
        found += [_one(method, part, word, rows) for (part, word), rows in of_word.items()]
    return found


def _rows(run: Run) -> list[dict[str, str]]:
    path = run.folder / DRIFT
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _one(method: str, part: str, word: str, rows: Sequence[Mapping[str, str]]) -> WordDrift:
    cosines = [float(row["cosine"]) for row in rows]
    red = Counter(row["nearest"] for row in rows if int(row["rank"]) > 1)
    return WordDrift(
        method=method,
        part=part,
        word=word,
        cosine=statistics.fmean(cosines),
        lowest=min(cosines),
        n_runs=len(rows),
        n_red=red.total(),
        nearest=tuple(name for name, _ in red.most_common()),
    )


def drift_table(drifts: Sequence[WordDrift]) -> Table:
    """What became of the words: a row a prototype of a method."""
    return Table(
        title="Do the prototypes still mean their words?",
        columns=("method", "part", "word", "cosine to it", "lowest of a run", "nearer to another", "which"),
        rows=tuple(
            (
                one.method,
                one.part,
                one.word,
                f"{one.cosine:.3f}",
                f"{one.lowest:.3f}",
                f"{one.n_red} of {one.n_runs} runs",
                listed(one.nearest),
            )
            for one in drifts
        ),
        note="Cosine of each trained row with the word it started from, mean over runs; 1 at the start.",
        n_text_columns=3,
    )
