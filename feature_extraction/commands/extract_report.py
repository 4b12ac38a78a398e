"""What `promptmil extract` says at its end: the summary for programs and the lines for people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from rich.console import Console

from feature_extraction.counters import diagnose
from feature_extraction.files import publish_json
from feature_extraction.status import Outcome

FATES = ("done", "empty", "failed", "elsewhere", "stopped")


def summarise(
    outcomes: Sequence[Outcome],
    folders: Sequence[str],
    seconds: float,
    n_asked: int,
) -> dict[str, object]:
    """What was done, so that requested = done + empty + failed + elsewhere + stopped + not started.

    Args:
        outcomes: One for each slide and encoder whose fate is known.
        folders: Names of the feature folders.
        seconds: Of the whole command.
        n_asked: Slides times encoders.
    """
    counts = Counter(outcome.status for outcome in outcomes)
    return {
        "command": "extract",
        "features": folders[0] if len(folders) == 1 else list(folders),
        "requested": n_asked,
        "new": sum(outcome.is_new for outcome in outcomes),
        **{status: counts.get(status, 0) for status in FATES},
        "not_started": n_asked - len(outcomes),
        "tiles": sum(outcome.n_tiles for outcome in outcomes if outcome.status == "done"),
        "new_tiles": sum(outcome.n_tiles for outcome in outcomes if outcome.is_new),
        "seconds": round(seconds, 2),
        "torch_threads": torch.get_num_threads(),
        "empty_slides": sorted({outcome.slide_id for outcome in outcomes if outcome.status == "empty"}),
        "failures": [error_line(outcome) for outcome in outcomes if outcome.status == "failed"],
    }


def error_line(outcome: Outcome) -> str:
    """The one line of a slide that failed."""
    o = outcome
    return f"slide={o.slide_id} stage={o.stage} cause={o.cause} remedy={o.remedy} code={o.code}"


def report(console: Console, out: Path, summary: Mapping[str, object], folders: Sequence[Path], device: str) -> None:
    """Publish ``summary.json`` and print the same for people.

    Args:
        console: Where to print.
        out: Of the command.
        summary: Of `summarise`, with the ``counters`` of the run.
        folders: The feature folders.
        device: Name of the device that embedded.
    """
    publish_json(out / "summary.json", summary)
    parts = [f"{summary[key]} {key}" for key in (*FATES, "not_started")]
    kept = ", ".join(part for part in parts if not part.startswith("0 "))
    new = f"{summary['new']} new, {summary['new_tiles']} new tiles in {summary['seconds']} s"
    lines = [f"{summary['requested']} slides asked for: {kept} ({new}) -> {', '.join(str(path) for path in folders)}"]
    if summary["new_tiles"]:
        lines.append(diagnose(cast("Mapping[str, float]", summary["counters"]), device))
    if summary["empty_slides"]:
        lines.append(f"no tissue found: {', '.join(cast('list[str]', summary['empty_slides']))}")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
