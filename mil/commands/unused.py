"""How a command ends that could not use every slide."""

from collections.abc import Mapping

from rich.console import Console

from mil.feature_folder import NO_TISSUE

PARTLY_FAILED = 3


def say_unused(console: Console, unused: Mapping[str, str]) -> int:
    """List the slides that were not used, with the reason; returns the exit code.

    A slide without tissue is an outcome; any other reason makes the command partly failed.
    """
    for slide_id, reason in unused.items():
        console.print(f"not used: slide={slide_id}: {reason}", soft_wrap=True, markup=False)
    return PARTLY_FAILED if any(reason != NO_TISSUE for reason in unused.values()) else 0
