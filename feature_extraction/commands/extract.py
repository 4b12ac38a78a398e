"""`promptmil extract`: slides -> one feature file a slide."""

import signal
import time
from collections import Counter
from pathlib import Path
from types import FrameType

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from feature_extraction.commands import settings
from feature_extraction.extract import Extractor, Throughput, folder_name
from feature_extraction.files import publish_json
from feature_extraction.slides import read_slide_table
from feature_extraction.status import Outcome, read_records, write_tables

STOPPED, PARTLY_FAILED = 4, 3


def run(config: DictConfig) -> int:
    """Extract every slide that is not done yet; returns the exit code."""
    started = time.monotonic()
    console = Console(stderr=True)
    table = read_slide_table(Path(config.slides))
    source = settings.encoder_source(config)
    extraction = settings.extraction(config, source.spec)
    device = settings.device(config.device)
    n_threads = settings.n_threads(config.threads)
    batch_size = settings.at_least_one("batch_size", config.batch_size)
    encoder = source.load(device)
    out = Path(config.out)
    folder = out / folder_name(encoder, extraction)
    outcomes: list[Outcome] = []
    stop = _StopOnSignal()
    with stop, _progress(console) as progress:
        task = progress.add_task("slides", total=len(table.records) + len(table.failures))

        def on_outcome(outcome: Outcome) -> None:
            outcomes.append(outcome)
            progress.advance(task)
            if outcome.status == "failed":
                progress.console.print(_error_line(outcome), markup=False, soft_wrap=True)

        Extractor(
            encoder,
            extraction,
            Throughput(device=device, batch_size=batch_size, n_threads=n_threads, mix_slides=config.mix_slides),
            folder=folder,
            on_outcome=on_outcome,
            should_stop=lambda: stop.is_asked,
        ).run(table)
    # Other workers on the same folder have their say: their records, ours, and the rows that could not be a slide.
    recorded = {outcome.slide_id: outcome for outcome in read_records(folder / ".work" / "records")}
    write_tables(out, ({outcome.slide_id: outcome for outcome in outcomes} | recorded).values())
    summary = _summary(outcomes, folder.name, time.monotonic() - started, len(table.records) + len(table.failures))
    publish_json(out / "summary.json", summary)
    _report(console, summary, folder)
    if stop.is_asked and (summary["stopped"] or summary["not_started"]):
        return STOPPED
    return PARTLY_FAILED if any(outcome.status in ("failed", "elsewhere") for outcome in outcomes) else 0


class _StopOnSignal:
    """Turns the polite signals into a question the pipeline asks after each batch. A second one ends at once."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.is_asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "_StopOnSignal":
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self.SIGNALS:
            signal.signal(number, self._before[number])  # type: ignore[arg-type]

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def _summary(outcomes: list[Outcome], folder: str, seconds: float, n_requested: int) -> dict[str, object]:
    """What was done, so that requested = done + empty + failed + elsewhere + stopped + not started."""
    counts = Counter(outcome.status for outcome in outcomes)
    return {
        "command": "extract",
        "features": folder,
        "requested": n_requested,
        "new": sum(outcome.is_new for outcome in outcomes),
        **{status: counts.get(status, 0) for status in ("done", "empty", "failed", "elsewhere", "stopped")},
        "not_started": n_requested - len(outcomes),
        "tiles": sum(outcome.n_tiles for outcome in outcomes if outcome.status == "done"),
        "new_tiles": sum(outcome.n_tiles for outcome in outcomes if outcome.is_new),
        "seconds": round(seconds, 2),
        "torch_threads": torch.get_num_threads(),
        "empty_slides": [outcome.slide_id for outcome in outcomes if outcome.status == "empty"],
        "failures": [_error_line(outcome) for outcome in outcomes if outcome.status == "failed"],
    }


def _error_line(outcome: Outcome) -> str:
    o = outcome
    return f"slide={o.slide_id} stage={o.stage} cause={o.cause} remedy={o.remedy} code={o.code}"


def _report(console: Console, summary: dict[str, object], folder: Path) -> None:
    parts = [f"{summary[key]} {key}" for key in ("done", "empty", "failed", "elsewhere", "stopped", "not_started")]
    kept = [part for part in parts if not part.startswith("0 ")]
    console.print(
        f"{summary['requested']} slides asked for: {', '.join(kept)} ({summary['new']} new, {summary['new_tiles']} new "
        f"tiles in {summary['seconds']} s) -> {folder}",
        soft_wrap=True,
        markup=False,
    )
    if summary["empty"]:
        console.print(f"no tissue found: {', '.join(summary['empty_slides'])}", soft_wrap=True, markup=False)  # type: ignore[arg-type]
