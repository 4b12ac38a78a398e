"""`promptmil extract`: slides -> one feature file a slide and encoder."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from feature_extraction.commands import settings
from feature_extraction.commands.extract_report import error_line, report, summarise
from feature_extraction.commands.extract_tables import write_outcomes
from feature_extraction.commands.licence import say_licences
from feature_extraction.commands.passes import Pass, bank_to_read_by, passes_of
from feature_extraction.commands.side_by_side import run_side_by_side
from feature_extraction.commands.stop import StopOnSignal
from feature_extraction.counters import Counters, Eta, progress_line
from feature_extraction.encoder import EncoderSource
from feature_extraction.extract import Extractor, Listener
from feature_extraction.files import require_writable
from feature_extraction.grid import Tiling
from feature_extraction.links import require_no_way_out
from feature_extraction.pseudonyms import pseudonymise, redact
from feature_extraction.segment import require_one_slide
from feature_extraction.slides import SlideTable, read_slide_table
from feature_extraction.staging import Stager
from feature_extraction.status import Outcome
from feature_extraction.work import Lane

STOPPED, PARTLY_FAILED = 4, 3


def run(config: DictConfig) -> int:
    """Extract every slide that is not done yet; returns the exit code."""
    require_writable(Path(config.out), "out")
    devices = settings.local_devices(config)
    if len(devices) > 1:
        return run_side_by_side(config, devices)
    console = Console(stderr=True)
    device = settings.device(devices[0])
    slides = slides_of(config, Path(config.out))
    sources = settings.encoder_sources(config)
    say_licences((source.spec for source in sources), console)
    bank = bank_to_read_by(config, sources)
    passes = passes_of(config, lanes_of(config, sources, device, len(slides[0].records)), bank)
    code = 0
    with StopOnSignal() as stop:  # to the last table: a signal must not fall on whoever writes them
        for one in passes:
            code = max(code, _run_pass(config, one, slides, devices[0], stop, console))
            if code == STOPPED:
                break
    return code


def _run_pass(
    config: DictConfig,
    one: Pass,
    slides: tuple[SlideTable, Callable[[str, str], str]],
    device: str,
    stop: StopOnSignal,
    console: Console,
) -> int:
    """Do what is missing of one pass, write its tables and say how it went; returns its exit code."""
    started = time.monotonic()
    table, redaction = slides
    n_asked = len(one.folders) * (len(table.records) + len(table.failures))
    counters, eta = Counters(n_readers=settings.n_threads(config.threads)), Eta(len(table.records) * len(one.groups))
    outcomes: list[Outcome] = []
    with ExitStack() as stack, progress_bar(console) as progress:
        task = progress.add_task("slides", total=n_asked, speed="")
        stager = stack.enter_context(_stager(config, stop)) if config.stage.dir is not None else None

        def on_outcome(outcome: Outcome) -> None:
            outcomes.append(outcome)
            progress.advance(task)
            if outcome.status == "failed":
                progress.console.print(error_line(outcome), markup=False, soft_wrap=True)

        def on_batch() -> None:
            record = counters.as_record()
            progress.update(task, speed=progress_line(record, device, eta.remaining(int(record["n_tiles"]))))

        listener = Listener(
            on_outcome=on_outcome, on_batch=on_batch, should_stop=lambda: stop.is_asked, redact=redaction
        )
        for lanes in one.groups.values():
            if stop.is_asked:
                break
            rules = replace(settings.plan_rules(config, lanes[0].extraction), coarse=one.coarse)
            usage = settings.throughput(config, settings.device(device), lanes)
            usage = replace(usage, waits_for_others=usage.waits_for_others or one.must_wait)
            Extractor(lanes, rules, usage, listener=listener, counters=counters, eta=eta, stager=stager).run(table)
    write_outcomes(one.out, one.folders, outcomes)
    summary = summarise(outcomes, [folder.name for folder in one.folders], time.monotonic() - started, n_asked)
    report(console, one.out, summary | {"counters": counters.as_record()}, one.folders, device)
    if stop.is_asked and (summary["stopped"] or summary["not_started"]):
        return STOPPED
    return PARTLY_FAILED if summary["failed"] else 0


def slides_of(config: DictConfig, out: Path) -> tuple[SlideTable, Callable[[str, str], str]]:
    """The slides as this worker takes them, and what keeps the names of their files and folders out of messages."""
    table = read_slide_table(Path(config.slides))
    if config.pseudonymise is not None:
        table = pseudonymise(table, Path(config.pseudonymise), out=out)
    table = turned(table, config.worker, config.workers)
    paths = {record.slide_id: record.path for record in table.records}
    return table, lambda slide_id, text: redact(text, paths[slide_id], slide_id) if slide_id in paths else text


def turned(table: SlideTable, worker: int, workers: int) -> SlideTable:
    """The same table, begun where no other of ``workers`` workers begins, so that they seldom meet."""
    start = len(table.records) * (worker % workers) // workers
    return SlideTable(records=table.records[start:] + table.records[:start], failures=table.failures)


def lanes_of(
    config: DictConfig, sources: Sequence[EncoderSource], device: torch.device, n_slides: int
) -> dict[Tiling, list[Lane]]:
    """The encoders, those of one tile geometry together: they share the reading."""
    groups: dict[Tiling, list[Lane]] = {}
    for source in sources:
        extraction = settings.extraction(config, source.spec)
        require_one_slide(extraction.tissue, n_slides)
        lane = Lane.of(source.load(device), extraction, Path(config.out))
        require_no_way_out(Path(config.out), lane.folder)
        groups.setdefault(extraction.tiling, []).append(lane)
    return groups


def _stager(config: DictConfig, stop: StopOnSignal) -> Stager:
    return Stager(Path(config.stage.dir), int(config.stage.max_gb * 1e9), should_stop=lambda: stop.is_asked)


def progress_bar(console: Console) -> Progress:
    """Slides done of those asked for, and what is said of the speed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    return Progress(*columns, console=console)
