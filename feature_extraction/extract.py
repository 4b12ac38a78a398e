"""The pipeline: slides are planned ahead, tiles read ahead, batches mix slides, rows go to journals, files are sealed.

The one boundary where a slide's error is caught, recorded, and the rest goes on.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8

from feature_extraction.claims import claim
from feature_extraction.encoder import Encoder
from feature_extraction.errors import SlideError
from feature_extraction.plan import plan_slide
from feature_extraction.reader import ReaderPool, ReadJob, ReadTiles, TileSource, map_ahead
from feature_extraction.resume import find_done
from feature_extraction.slides import SlideRecord, SlideTable
from feature_extraction.status import Outcome, write_record
from feature_extraction.work import EncoderFacts, Extraction, SlideWork, journal_path, side_by_side

TILES_A_JOB = 8
SLIDES_AHEAD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """How the machine is used; changes no result beyond the last bit.

    Attributes:
        device: Where the encoder computes.
        batch_size: Tiles in a batch; every batch has this size (the last is padded).
        n_threads: Reader threads.
        mix_slides: Whether a batch may hold tiles of several slides.
    """

    device: torch.device
    batch_size: int
    n_threads: int
    mix_slides: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """Tiles that were read and wait for a batch."""

    work: SlideWork
    tiles: UInt8[np.ndarray, "tile side side 3"]
    is_read: Bool[np.ndarray, " tile"]


class Extractor:
    """Embeds slides into one feature folder.

    Args:
        encoder: Loaded weights.
        extraction: What to make.
        throughput: How fast to make it.
        folder: The feature folder, named by `folder_name`.
        on_outcome: Called for each slide as soon as its fate is known.
        should_stop: Asked after every batch; True ends the run with the journals kept.
    """

    def __init__(
        self,
        encoder: Encoder,
        extraction: Extraction,
        throughput: Throughput,
        *,
        folder: Path,
        on_outcome: Callable[[Outcome], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._encoder = encoder
        self._extraction = extraction
        self._throughput = throughput
        self._device = throughput.device
        self._folder = folder
        self._on_outcome = on_outcome
        self._should_stop = should_stop
        self._facts = EncoderFacts(
            spec=encoder.spec,
            fingerprint=encoder.fingerprint,
            logit_scale=encoder.logit_scale,
            logit_bias=encoder.logit_bias,
        )
        self._fingerprint = extraction.fingerprint(encoder.spec, encoder.fingerprint)
        side = extraction.tiling.tile_px
        self._batch = torch.zeros((throughput.batch_size, 3, side, side), dtype=torch.uint8)
        self._waiting: deque[_Waiting] = deque()
        self._n_waiting = 0
        self._works: dict[str, SlideWork] = {}

    def run(self, table: SlideTable) -> None:
        """Do every slide of the table; each gets exactly one outcome."""
        for error in table.failures:
            self._on_outcome(Outcome.failed(error))  # without a record: an unsafe id must not become a file name
        with (
            ThreadPoolExecutor(1, thread_name_prefix="planner") as planner,
            ReaderPool(self._throughput.n_threads, n_ahead=self._jobs_ahead()) as readers,
        ):
            prepared = map_ahead(planner, self._prepare, table.records, SLIDES_AHEAD)
            for read in readers.read(self._jobs(prepared)):
                self._take(read)
                if self._should_stop():
                    break
            if not self._should_stop():
                self._embed_waiting(flush=True)
        for work in self._works.values():
            work.close()
            self._finish(Outcome(slide_id=work.slide_id, status="stopped", n_tiles=work.n_done))

    def _jobs_ahead(self) -> int:
        """Two batches beyond the one in use."""
        return 2 * self._throughput.batch_size // TILES_A_JOB + self._throughput.n_threads

    def _prepare(self, record: SlideRecord) -> SlideWork | Outcome:
        """Find a slide done, or claim and plan it. Runs on the planner's thread."""
        claimed = ExitStack()
        try:
            done = find_done(self._folder, record, self._extraction, self._fingerprint)
            lock = self._folder / ".work" / "locks" / f"{record.slide_id}.lock"
            if not claimed.enter_context(claim(lock)):
                return done or Outcome(slide_id=record.slide_id, status="elsewhere")
            # Another worker may have sealed it between the question and the claim.
            done = done or find_done(self._folder, record, self._extraction, self._fingerprint)
            if done is None:
                return self._plan(record, claimed)
            journal_path(self._folder, record.slide_id).unlink(missing_ok=True)  # left by a kill just after sealing
            return done
        except SlideError as error:
            return Outcome.failed(error)
        except OSError as error:
            return Outcome.failed(_disk_error(record.slide_id, error))
        finally:
            claimed.close()

    def _plan(self, record: SlideRecord, claimed: ExitStack) -> SlideWork:
        """Open the slide and its journal; the work takes the claim over."""
        rule = self._extraction
        try:
            plan = plan_slide(record, tiling=rule.tiling, tissue=rule.tissue, mpp=rule.mpp)
        except (OSError, MemoryError) as error:
            raise SlideError(
                slide_id=record.slide_id,
                stage="open",
                cause=f"{record.path.name} cannot be read: {error or type(error).__name__}",
                remedy="check the disk it lies on and its rights, then run the same command again",
                code="E-read",
            ) from error
        return SlideWork(plan, rule, self._facts, self._folder, claimed.pop_all())

    def _jobs(self, prepared: Iterable[SlideWork | Outcome]) -> Iterator[ReadJob]:
        """Cut slides into jobs, from the first row that is not in the journal."""
        for work in prepared:
            if self._should_stop():
                if isinstance(work, SlideWork):
                    self._works[work.slide_id] = work
                return
            if isinstance(work, Outcome):
                self._finish(work)
                continue
            self._works[work.slide_id] = work
            self._seal_if_complete(work)
            source = TileSource(
                slide_id=work.slide_id,
                path=work.plan.record.path,
                level=work.plan.level,
                size_lv0=work.plan.grid.size_lv0,
                side_px=self._extraction.tiling.tile_px,
            )
            coords = work.plan.coords_lv0
            for row in range(work.n_done, len(coords), TILES_A_JOB):
                if not work.is_open:
                    break  # it failed while its first tiles were read
                yield ReadJob(source=source, first_row=row, coords_lv0=coords[row : row + TILES_A_JOB])

    def _take(self, read: ReadTiles) -> None:
        """Queue the tiles of one job and embed whatever fills a batch."""
        work = self._works.get(read.job.source.slide_id)
        if work is None:
            return  # a late job of a slide that failed meanwhile
        try:
            work.check_bad(read.is_read, read.error)
        except SlideError as error:
            self._fail(work, error)
            return
        self._waiting.append(_Waiting(work=work, tiles=read.tiles, is_read=read.is_read))
        self._n_waiting += len(read.tiles)
        is_last = read.job.first_row + len(read.tiles) == len(work.plan.coords_lv0)
        self._embed_waiting(flush=is_last and not self._throughput.mix_slides)

    def _embed_waiting(self, *, flush: bool) -> None:
        """Embed full batches; with ``flush`` also the rest."""
        while self._n_waiting >= self._throughput.batch_size or (flush and self._n_waiting):
            members = self._next_batch()
            if not members:
                continue
            n_tiles = sum(len(member.tiles) for member in members)
            start = 0
            for member in members:
                end = start + len(member.tiles)
                self._batch[start:end] = torch.from_numpy(member.tiles).permute(0, 3, 1, 2)
                start = end
            self._batch[n_tiles:] = 0
            rows = self._embed_batch()
            start = 0
            for member in members:
                end = start + len(member.tiles)
                self._accept(member, rows[start:end])
                start = end

    def _embed_batch(self) -> Float32[np.ndarray, "tile width"]:
        """Rows of the batch, all spaces side by side."""
        rows = self._embed_in(torch.bfloat16) if self._extraction.precision == "bf16" else None
        if rows is None or not np.isfinite(rows).all():  # half precision overflowed: once more in float32
            rows = self._embed_in(None)
        return rows

    def _embed_in(self, dtype: torch.dtype | None) -> Float32[np.ndarray, "tile width"]:
        with torch.autocast(self._device.type, dtype, enabled=dtype is not None):
            embeddings = self._encoder.embed_tiles(self._batch, self._extraction.spaces)
        return side_by_side({space: v.float().numpy() for space, v in embeddings.items()}, self._extraction.spaces)

    def _next_batch(self) -> list[_Waiting]:
        """Take up to one batch of tiles from the queue, in order, without those of slides that failed."""
        members: list[_Waiting] = []
        room = self._throughput.batch_size
        while self._waiting and room:
            member = self._waiting.popleft()
            self._n_waiting -= len(member.tiles)
            if not member.work.is_open:
                continue
            if len(member.tiles) > room:
                rest = replace(member, tiles=member.tiles[room:], is_read=member.is_read[room:])
                member = replace(member, tiles=member.tiles[:room], is_read=member.is_read[:room])
                self._waiting.appendleft(rest)
                self._n_waiting += len(rest.tiles)
            members.append(member)
            room -= len(member.tiles)
        return members

    def _accept(self, member: _Waiting, rows: np.ndarray) -> None:
        """Give embedded rows to their slide, and seal it when they were the last."""
        if not member.work.is_open:
            return
        try:
            member.work.accept(rows, member.is_read)
        except SlideError as error:
            self._fail(member.work, error)
            return
        self._seal_if_complete(member.work)

    def _seal_if_complete(self, work: SlideWork) -> None:
        if not work.is_complete:
            return
        try:
            n_tiles = work.seal()
        except SlideError as error:
            self._fail(work, error)
            return
        del self._works[work.slide_id]
        self._finish(
            Outcome(
                slide_id=work.slide_id,
                status="done" if n_tiles else "empty",
                is_new=True,
                n_tiles=n_tiles,
                n_failed=work.n_bad,
                slide_mpp=work.plan.info.mpp.x,
                mpp_source=work.plan.info.mpp.source,
                file=work.path.name,
            )
        )

    def _fail(self, work: SlideWork, error: SlideError) -> None:
        del self._works[work.slide_id]
        work.close()
        self._finish(Outcome.failed(error))

    def _finish(self, outcome: Outcome) -> None:
        """Record what became of a slide, unless that is another worker's to say."""
        if outcome.status == "elsewhere":
            self._on_outcome(outcome)
            return
        try:
            write_record(self._folder / ".work" / "records", outcome)
        except OSError as error:
            outcome = Outcome.failed(_disk_error(outcome.slide_id, error))
        self._on_outcome(outcome)


def folder_name(encoder: Encoder, extraction: Extraction) -> str:
    """``<encoder>-<hash8>``: two configurations can never share a folder."""
    return f"{encoder.spec.name}-{extraction.fingerprint(encoder.spec, encoder.fingerprint)[:8]}"


def _disk_error(slide_id: str, error: OSError) -> SlideError:
    return SlideError(
        slide_id=slide_id,
        stage="write",
        cause=f"a file could not be read or written: {error.strerror or error}",
        remedy="check the space and the rights of out=…, then run the same command again",
        code="E-disk",
    )
