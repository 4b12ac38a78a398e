"""The words of `promptmil tune` that name values to search, in Hydra's own notation for sweeps."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
from hydra.errors import HydraException

from feature_extraction.errors import InputError
from mil.typed_words import quoted

KEY = "tuned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """One of several words."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A number between two ends.

    Attributes:
        low: Lower end.
        high: Upper end.
        is_log: Whether ratios count instead of differences.
        is_whole: Whether it is a whole number.
    """

    low: float
    high: float
    is_log: bool
    is_whole: bool


def collected(words: Sequence[str]) -> list[str]:
    """The words with those that name values to search under one key, as Hydra would take them for a sweep."""
    searched = [word for word in words if not word.startswith("-") and _is_search(word)]
    kept = [word for word in words if word not in searched]
    return [*kept, f"{KEY}=[{','.join(quoted(word) for word in searched)}]"] if searched else kept


def space_of(words: Sequence[str]) -> dict[str, Choices | Interval]:
    """What is searched, by key.

    Args:
        words: Such as ``aggregator=prompt,gated_abmil``, ``trainer.max_epochs=range(10,41,10)`` or
            ``optimizer.lr=tag(log,interval(1e-5,1e-2))``; whole numbers are ``int(interval(5,50))``.

    Raises:
        InputError: A key is named twice, or an interval is empty.
    """
    space: dict[str, Choices | Interval] = {}
    for word in words:
        override = OverridesParser.create().parse_override(word)
        key, value = override.get_key_element(), override.value()
        if key in space:
            raise InputError(f"{word}: {key} is searched twice; name it once")
        if isinstance(value, IntervalSweep):
            space[key] = _interval(word, value)
        else:
            space[key] = Choices(words=tuple(override.sweep_string_iterator()))
    return space


def _interval(word: str, sweep: IntervalSweep) -> Interval:
    low, high = sweep.start, sweep.end
    is_log = "log" in sweep.tags
    if low is None or high is None or not low < high or (is_log and low <= 0):
        raise InputError(f"{word}: expected a lower end below the upper one{', above 0' if is_log else ''}")
    is_whole = isinstance(low, int) and isinstance(high, int)
    return Interval(low=float(low), high=float(high), is_log=is_log, is_whole=is_whole)


def _is_search(word: str) -> bool:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return False  # Hydra says what is wrong with it
    return override.is_sweep_override() and isinstance(override.value(), ChoiceSweep | RangeSweep | IntervalSweep)
