"""Ids that were written in two ways: other case or blanks, a file's suffix, zeros that a spreadsheet took away."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from feature_extraction.slides import SLIDE_SUFFIXES

_SUFFIXES = SLIDE_SUFFIXES | {".h5", ".ome", ".pt", ".zarr"}
_NUMBER = re.compile(r"0*(\d+?)(?:\.0+)?", re.ASCII)


def difference(first: str, second: str) -> str | None:
    """What alone differs: blanks, case, a file suffix or zeros (``007``, ``7``, ``7.0``); None where more does."""
    for name, simpler in _STEPS.items():
        first, second = simpler(first), simpler(second)
        if first == second:
            return name
    return None


def alike(ids: Iterable[str]) -> list[str]:
    """Different ids that are probably one, each group with what differs, for a message."""
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for name in ids:
        groups[_bare(name)].add(name)
    found = [sorted(group) for group in groups.values() if len(group) > 1]
    return [f"{' and '.join(map(repr, group))} ({difference(group[0], group[1])})" for group in sorted(found)]


def meant(unknown: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Unknown id to the known one that it is probably, where there is just one."""
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for name in known:
        groups[_bare(name)].add(name)
    return {name: min(groups[_bare(name)]) for name in unknown if len(groups.get(_bare(name), ())) == 1}


def unknown_ids(unknown: Iterable[str], known: Iterable[str]) -> list[str]:
    """Unknown ids for a message, each with the known one that it is probably."""
    names = list(unknown)
    found = meant(names, known)
    said = {name: f" (is it {near!r}? they differ in {difference(name, near)})" for name, near in found.items()}
    return [name + said.get(name, "") for name in names]


def _bare(identifier: str) -> str:
    for simpler in _STEPS.values():
        identifier = simpler(identifier)
    return identifier


def _without_blanks(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _without_suffix(text: str) -> str:
    stem, dot, suffix = text.rpartition(".")
    return _without_suffix(stem) if stem and dot + suffix in _SUFFIXES else text


def _without_zeros(text: str) -> str:
    number = _NUMBER.fullmatch(text)
    return number[1] if number else text


_STEPS: Mapping[str, Callable[[str], str]] = {
    "blanks": _without_blanks,
    "upper and lower case": str.casefold,
    "the suffix of a file": _without_suffix,
    "zeros; keep ids as text": _without_zeros,
}
