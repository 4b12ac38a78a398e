"""One thing that `promptmil doctor` looked at."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        is_ok: Whether the asked-for run can work as far as this goes.
        text: What was found, and what to do about it.
    """

    name: str
    is_ok: bool
    text: str
