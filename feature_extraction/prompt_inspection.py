"""A prompt set under inspection: its texts one by one, what they are compared with, and how a defect is said."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from feature_extraction.prompts import Defect, PromptRow, PromptSet


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """What an encoder makes of a set.

    Attributes:
        encoder: Its name.
        context_length: Longest text in tokens, None when it has no limit.
        rows: The sentences, as the bank would hold them.
        n_tokens: Length of each before any cut.
        cut: The words of each that would be cut off, empty when it fits.
        vectors: Unit vectors of the classes and of each (class, concept), of the sentences that fit.
        twins: Pairs of sentences of different words that have one vector, of the sentences that fit.
    """

    encoder: str
    context_length: int | None
    rows: tuple[PromptRow, ...]
    n_tokens: tuple[int, ...]
    cut: tuple[str, ...]
    vectors: Mapping[tuple[str, str], Float64[np.ndarray, " dim"]]
    twins: tuple[tuple[PromptRow, PromptRow], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """A set and what it is compared with.

    Attributes:
        prompts: The set.
        labels: Class names of the labels table, None when there is no table.
        measured: What an encoder makes of it, None without an encoder.
    """

    prompts: PromptSet
    labels: frozenset[str] | None = None
    measured: Measured | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One text as it is written in the file.

    Attributes:
        text: The words.
        kind: Where they stand: ``name``, ``concept`` or ``nontask``.
        owner: Its class, or the non-task thing in brackets.
        place: For messages.
    """

    text: str
    kind: str
    owner: str
    place: str


Rule = Callable[[Inspected], Iterator[Defect]]


def texts_of(prompts: PromptSet) -> list[Text]:
    """Every text of a set but the templates, in the order of the file."""
    found: list[Text] = []
    for entry in prompts.classes:
        place = f"class {entry.name}"
        found += [Text(text=text, kind="name", owner=entry.name, place=f"{place}, names") for text in entry.names]
        for concept, texts in entry.concepts.items():
            where = f"{place}, concept {concept}"
            found += [Text(text=text, kind="concept", owner=entry.name, place=where) for text in texts]
    for name, texts in prompts.nontask.items():
        found += [Text(text=text, kind="nontask", owner=f"[{name}]", place=f"nontask {name}") for text in texts]
    return found


def error(rule: str, place: str, what: str, remedy: str) -> Defect:
    """A defect with which no bank is made."""
    return Defect(rule=rule, severity="error", place=place, what=what, remedy=remedy)


def warning(rule: str, place: str, what: str, remedy: str) -> Defect:
    """A defect to look at."""
    return Defect(rule=rule, severity="warning", place=place, what=what, remedy=remedy)


def place_of(row: PromptRow) -> str:
    """Where a sentence of the bank stands in the file."""
    if row.role == "nontask":
        return f"nontask {row.owner}"
    return f"class {row.class_name}, " + (f"concept {row.owner}" if row.role == "concept" else "names")
