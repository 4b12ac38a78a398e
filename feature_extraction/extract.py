"""The pipeline: slides are planned ahead, tiles read ahead, batches mix slides, rows go to journals, files are sealed.

The one boundary where a slide's error is caught, recorded, and the rest goes on.
"""

import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from feature_extraction.ahead import Ahead
from feature_extraction.batches import Batch, BatchFiller, Part, Reading, Stopped
from feature_extraction.counters import Counters, Eta
from feature_extraction.device_queue import DeviceQueue
from feature_extraction.embedding import Embedder
from feature_extraction.errors import SlideError
from feature_extraction.opening import SlideOpening, disk_error
from feature_extraction.plan import PlanRules
from feature_extraction.readers import Readers, ReaderService, ReaderSettings
from feature_extraction.slides import SlideRecord, SlideTable
from feature_extraction.staging import Stager
from feature_extraction.status import Outcome, write_record
from feature_extraction.work import Lane, SlideWork
from feature_extraction.writer import Writer

SLIDES_AHEAD = 3
BATCHES_IN_RING = 4
LOOK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Who is told of the run as it goes on, from any thread, one call at a time.

    Attributes:
        on_outcome: Each slide's and encoder's fate, as soon as it is known.
        on_batch: A batch is embedded; the counters have moved.
        should_stop: Asked while waiting and after every batch; True ends the run with the journals kept.
        redact: Given a slide's id and a message, takes out what the message must not say.
    """

    on_outcome: Callable[[Outcome], None]
    on_batch: Callable[[], None] = lambda: None
    should_stop: Callable[[], bool] = lambda: False
    redact: Callable[[str, str], str] = lambda _slide_id, text: text


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """How the machine is used; changes no result beyond the last bit.

    Attributes:
        device: Where the encoders compute.
        batch_size: Tiles in a batch; every batch has this size (the last is padded).
        n_threads: Reader threads.
        mix_slides: Whether a batch may hold tiles of several slides.
        stall_seconds: Without a sign of life for so long, the reader process is replaced.
        waits_for_others: Whether slides that other workers have are waited for, and taken over from the dead.
        service: Begins whoever opens and reads the slides.
    """

    device: torch.device
    batch_size: int
    n_threads: int
    mix_slides: bool
    stall_seconds: float = 120.0
    waits_for_others: bool = True
    service: Callable[[ReaderSettings], ReaderService] = Readers


class Extractor:
    """Embeds slides into one feature folder for each encoder, reading every tile once.

    Args:
        lanes: The encoders, all of one tile geometry, and where their rows go.
        rules: How slides are planned.
        throughput: How fast to make it.
        listener: Who is told.
        counters: Where the time went.
        eta: How many tiles are left.
        stager: Brings slides to a nearer disk, None to read them where they are.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        rules: PlanRules,
        throughput: Throughput,
        *,
        listener: Listener,
        counters: Counters,
        eta: Eta,
        stager: Stager | None = None,
    ) -> None:
        self._lanes = lanes
        self._embedders = {lane.folder: Embedder(lane, throughput.device, throughput.batch_size) for lane in lanes}
        self._rules = rules
        self._throughput = throughput
        self._listener = listener
        self._counters = counters
        self._eta = eta
        self._should_stop = listener.should_stop
        self._stager = stager
        self._lock = threading.Lock()  # of the three below, the estimate, and the telling
        self._works: dict[tuple[Path, str], SlideWork] = {}
        self._elsewhere: dict[str, SlideRecord] = {}
        self._told: set[tuple[str, str]] = set()
        self._asked: dict[str, SlideRecord] = {}

    def run(self, table: SlideTable) -> None:
        """Do every slide of the table; each gets exactly one outcome of each encoder, unless the run is stopped."""
        for error in table.failures:
            for lane in self._lanes:
                # Without a record: an unsafe id must not become a file name.
                self._say(replace(Outcome.failed(error), features=lane.folder.name))
        self._asked = {record.slide_id: record for record in table.records}
        side, size = self._rules.tiling.tile_px, self._throughput.batch_size
        settings = ReaderSettings(
            n_threads=self._throughput.n_threads,
            n_tiles=BATCHES_IN_RING * size,
            side_px=side,
            stall_seconds=self._throughput.stall_seconds,
        )
        with Writer() as writer, ThreadPoolExecutor(SLIDES_AHEAD, thread_name_prefix="planner") as planners:
            self._writer = writer
            with self._throughput.service(settings) as self._readers, suppress(Stopped):
                self._run(table.records, planners)
            self._stop_works()

    def _run(self, records: Sequence[SlideRecord], planners: ThreadPoolExecutor) -> None:
        """Pass over the slides; then again over those that other workers had, while anybody has them."""
        while records:
            self._elsewhere = {}
            filler = BatchFiller(
                self._readers,
                batch_size=self._throughput.batch_size,
                n_batches=BATCHES_IN_RING,
                mix_slides=self._throughput.mix_slides,
                should_stop=self._should_stop,
                on_starved=self._stager.hurry if self._stager is not None else lambda: None,
            )
            ahead = Ahead(planners, self._prepare, records, SLIDES_AHEAD)
            try:
                self._embed_all(filler, ahead)
            finally:
                ahead.cancel()
            self._writer.drain()
            records = list(self._elsewhere.values())
            if not self._throughput.waits_for_others:
                self._leave_to_others(records)
                return
            end = time.monotonic() + LOOK_AGAIN_SECONDS
            while records and time.monotonic() < end:
                if self._should_stop():
                    raise Stopped
                time.sleep(0.05)

    def _leave_to_others(self, records: Sequence[SlideRecord]) -> None:
        for record in records:
            for lane in self._lanes:
                if (lane.folder.name, record.slide_id) not in self._told:
                    self._say(Outcome(slide_id=record.slide_id, status="elsewhere", features=lane.folder.name))

    def _embed_all(self, filler: BatchFiller, ahead: Ahead[SlideRecord, Reading | None]) -> None:
        batches = filler.filled(ahead)
        with DeviceQueue(self._throughput.device) as queue:
            while True:
                with self._counters.timing("waiting_tiles"):
                    batch = next(batches, None)
                if batch is None:
                    return
                self._counters.add_reading(batch.wall_seconds, batch.cpu_seconds)
                self._counters.sample_queue(filler.n_ready(), BATCHES_IN_RING - 1)
                queue.submit(batch.tiles, functools.partial(self._embed, batch))
                if self._should_stop():
                    raise Stopped

    def _embed(self, batch: Batch, tiles: UInt8[Tensor, "place 3 side side"]) -> None:
        """Embed a batch with every encoder that wants something of it."""
        for lane in self._lanes:
            self._embed_for(lane, batch.parts, tiles)
        self._counters.add_batch(batch.n_tiles)
        with self._lock:
            self._listener.on_batch()

    def _embed_for(self, lane: Lane, parts: Sequence[Part], tiles: UInt8[Tensor, "place 3 side side"]) -> None:
        """Embed a batch with one encoder and send the rows on their way to the disk."""
        wanted = [(part, work) for part in parts for work in part.reading.works if work.folder == lane.folder]
        wanted = [(part, work) for part, work in wanted if work.is_open]
        if not wanted:
            return
        with self._counters.timing("embedding"):
            rows = self._embedders[lane.folder].embed(tiles)
        with self._counters.timing("waiting_writer"):
            self._writer.submit(lambda: self._write(wanted, rows))

    def _write(self, wanted: Sequence[tuple[Part, SlideWork]], rows: Float32[np.ndarray, "tile width"]) -> None:
        """Give embedded rows to their slides, and seal those that are complete. Runs on the writer's thread."""
        for part, work in wanted:
            if not work.is_ours():
                self._leave(work)
                continue
            skip = work.n_done - part.first_row  # rows that a journal of an earlier run held already
            mine = rows[part.start : part.start + len(part.is_read)]
            try:
                if skip < len(mine):
                    work.accept(mine[skip:], part.is_read[skip:], part.error)
            except SlideError as error:
                self._fail(work, error)
            else:
                self._seal_if_complete(work)

    def _prepare(self, record: SlideRecord) -> Reading | None:
        """Find a slide done, or claim and plan it. Runs on a planner's thread; None when there is nothing to read."""
        try:
            works = self._open_works(record)
        except (CancelledError, Stopped):
            return None  # the run is ending
        with self._lock:
            if works:
                self._eta.plan(len(works[0].plan.coords_lv0) - min(work.n_done for work in works))
            else:
                self._eta.skip()
        if not works:
            return None
        for work in works:
            if work.is_complete:
                self._writer.submit(lambda work=work: self._seal_if_complete(work))
        return Reading(plan=works[0].plan, works=tuple(works), side_px=self._rules.tiling.tile_px)

    def _open_works(self, record: SlideRecord) -> list[SlideWork]:
        """The slide's work for each encoder that lacks it and that nobody else has."""
        opening = SlideOpening(record, self._readers, self._rules, self._stager)
        works: list[SlideWork] = []
        for lane in self._lanes:
            if (lane.folder.name, record.slide_id) in self._told:
                continue  # looked at again for the sake of another encoder
            opened = opening.open_for(lane)
            if isinstance(opened, Outcome):
                self._finish(lane, opened, record)
                continue
            works.append(opened)
            with self._lock:
                self._works[lane.folder, record.slide_id] = opened
        if not works:
            self._release(record.slide_id)
        return works

    def _seal_if_complete(self, work: SlideWork) -> None:
        if not (work.is_ours() and work.is_complete):
            return
        try:
            n_tiles = work.seal()
        except SlideError as error:
            self._fail(work, error)
            return
        self._forget(work)
        self._counters.add_slide()
        self._finish(work.lane, work.outcome(n_tiles))

    def _leave(self, work: SlideWork) -> None:
        """Stop working on a slide that another worker took over while we stood still."""
        if work.is_open:
            work.close()
            self._forget(work)
            self._finish(work.lane, Outcome(slide_id=work.slide_id, status="elsewhere"), self._asked[work.slide_id])

    def _fail(self, work: SlideWork, error: SlideError) -> None:
        with self._lock:
            self._eta.lose((len(work.plan.coords_lv0) - work.n_done) // len(self._lanes))
        work.close()
        self._forget(work)
        self._finish(work.lane, Outcome.failed(error))

    def _forget(self, work: SlideWork) -> None:
        """The slide's copy goes when the last encoder is through with it."""
        with self._lock:
            self._works.pop((work.folder, work.slide_id), None)
            is_last = not any(slide_id == work.slide_id for _, slide_id in self._works)
        if is_last:
            self._release(work.slide_id)

    def _release(self, slide_id: str) -> None:
        """Give the copy of a slide back, once nobody holds it open."""
        if self._stager is not None:
            near = self._stager.path_of(slide_id)
            if near is not None:
                self._readers.forget(slide_id, near)
            self._stager.release(slide_id)

    def _stop_works(self) -> None:
        """What is still open when the run ends was stopped; its journal stays."""
        self._writer.drain()
        for work in list(self._works.values()):
            work.close()
            self._forget(work)
            self._finish(work.lane, Outcome(slide_id=work.slide_id, status="stopped", n_tiles=work.n_done))

    def _finish(self, lane: Lane, outcome: Outcome, record: SlideRecord | None = None) -> None:
        """Record what became of a slide, unless that is another worker's to say."""
        if outcome.status == "elsewhere" and record is not None:
            with self._lock:
                self._elsewhere[record.slide_id] = record
            return
        outcome = replace(
            outcome, features=lane.folder.name, cause=self._listener.redact(outcome.slide_id, outcome.cause)
        )
        try:
            write_record(lane.folder / ".work" / "records", outcome)
        except OSError as error:
            error_now = disk_error(outcome.slide_id, lane.folder, error)
            outcome = replace(Outcome.failed(error_now), features=lane.folder.name)
        self._say(outcome)

    def _say(self, outcome: Outcome) -> None:
        with self._lock:
            self._told.add((outcome.features, outcome.slide_id))
            self._listener.on_outcome(outcome)
