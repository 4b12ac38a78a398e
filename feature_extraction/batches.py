"""Fill batches with tiles of whichever slides come next, while the device works on those before.

The tiles lie in a ring of batches that the reader process writes and the encoder reads in place: nothing is copied.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, UInt8

from feature_extraction.ahead import Ahead
from feature_extraction.errors import SlideError
from feature_extraction.plan import SlidePlan
from feature_extraction.reader import TileSource
from feature_extraction.reader_process import Answer, ReadTiles, TilesRead
from feature_extraction.readers import ReaderService
from feature_extraction.slides import SlideRecord
from feature_extraction.work import SlideWork

TILES_A_JOB = 8
"""Neighbours read by one thread in one go: enough to make the message cheap, few enough to keep all threads busy."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A slide that is being read, for one or several encoders.

    Attributes:
        plan: What of it.
        works: Who wants its rows.
        side_px: Side of a tile.
    """

    plan: SlidePlan
    works: tuple[SlideWork, ...]
    side_px: int

    @property
    def record(self) -> SlideRecord:
        """Which slide."""
        return self.plan.record

    @property
    def is_open(self) -> bool:
        """Whether anybody still wants its rows."""
        return any(work.is_open for work in self.works)

    def first_row(self) -> int:
        """The first row that somebody lacks."""
        return min(work.n_done for work in self.works)

    def source(self) -> TileSource:
        """How its tiles are read."""
        return TileSource(
            slide_id=self.record.slide_id,
            path=self.record.path,
            decoder=self.plan.decoder,
            level=self.plan.level,
            size_lv0=self.plan.grid.size_lv0,
            side_px=self.side_px,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The tiles of one slide within a batch.

    Attributes:
        reading: The slide.
        first_row: Row of the first of them in the slide's plan.
        start: Place of the first of them in the batch.
        is_read: Which of them are there.
        error: The first error, None when all are there.
    """

    reading: Reading
    first_row: int
    start: int
    is_read: Bool[np.ndarray, " tile"]
    error: SlideError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A full batch. Its memory is used again once the next one is asked for.

    Attributes:
        tiles: RGB; places without a tile are black.
        parts: Whose tiles they are.
        n_tiles: That were asked for.
        wall_seconds: That reader threads spent on it.
        cpu_seconds: That they computed.
    """

    tiles: UInt8[np.ndarray, "place side side 3"]
    parts: tuple[Part, ...]
    n_tiles: int
    wall_seconds: float
    cpu_seconds: float


@dataclass(slots=True)
class _Filling:
    """A batch on its way: what was asked for, and the answers to come."""

    slot: int
    n_tiles: int = 0
    asked: list[tuple[Reading, int, int, list["Future[Answer]"]]] = field(default_factory=list)

    def is_read(self) -> bool:
        """Whether every answer is there."""
        return all(answer.done() for *_, answers in self.asked for answer in answers)


class Stopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """The run was asked to stop while tiles were on their way."""


class BatchFiller:
    """Asks for tiles ahead and hands out full batches, in the order of the slides.

    Args:
        readers: Where tiles come from; its memory holds ``n_batches`` batches.
        batch_size: Tiles in a batch.
        n_batches: In the ring, one of them in use.
        mix_slides: Whether a batch may hold tiles of several slides.
        should_stop: Asked while waiting.
        on_starved: Called when there is nothing to read and nothing to embed but the tiles of an unfilled batch.
    """

    def __init__(
        self,
        readers: ReaderService,
        *,
        batch_size: int,
        n_batches: int,
        mix_slides: bool,
        should_stop: Callable[[], bool],
        on_starved: Callable[[], None],
    ) -> None:
        self._readers = readers
        self._batch_size = batch_size
        self._n_batches = n_batches
        self._mix_slides = mix_slides
        self._should_stop = should_stop
        self._on_starved = on_starved
        self._n_begun = 0
        self._current: _Filling | None = None
        self._waiting: deque[_Filling] = deque()

    def n_ready(self) -> int:
        """Batches that are read and wait for the device."""
        return sum(filling.is_read() for filling in self._waiting)

    def filled(self, readings: Ahead[SlideRecord, Reading | None]) -> Iterator[Batch]:
        """Batches of all the slides, None among them being slides without work.

        Raises:
            Stopped: The run was asked to stop.
        """
        while True:
            # A slide that is still being planned must not keep the device from what is there.
            while self._waiting and not readings.is_ready():
                yield self._taken()
            while not readings.is_ready():
                self._refuse_to_wait_when_stopped()
                readings.wait(POLL_SECONDS)
                if not readings.is_ready():
                    self._on_starved()
            self._refuse_to_wait_when_stopped()
            try:
                reading = next(readings)
            except StopIteration:
                break
            if reading is not None:
                yield from self._filled_with(reading)
        self._close_current()
        while self._waiting:
            yield self._taken()

    def _filled_with(self, reading: Reading) -> Iterator[Batch]:
        """Ask for every row of a slide, and hand out the batches that are in the way of doing so."""
        row, end = reading.first_row(), len(reading.plan.coords_lv0)
        while row < end and reading.is_open:
            if self._current is None:
                while len(self._waiting) >= self._n_batches - 1:
                    yield self._taken()
                self._current = _Filling(slot=self._n_begun % self._n_batches)
                self._n_begun += 1
            row += self._assign(self._current, reading, row)
            if self._current.n_tiles == self._batch_size:
                self._close_current()
        if not self._mix_slides:
            self._close_current()

    def _close_current(self) -> None:
        if self._current is not None:
            self._waiting.append(self._current)
            self._current = None

    def _refuse_to_wait_when_stopped(self) -> None:
        if self._should_stop():
            raise Stopped

    def _assign(self, filling: _Filling, reading: Reading, row: int) -> int:
        """Ask for as many rows of a slide as the batch has room for; returns how many."""
        coords = reading.plan.coords_lv0[row : row + self._batch_size - filling.n_tiles]
        source = reading.source()
        place = filling.slot * self._batch_size + filling.n_tiles
        answers = [
            self._readers.ask(
                ReadTiles(source=source, coords_lv0=coords[start : start + TILES_A_JOB], first=place + start)
            )
            for start in range(0, len(coords), TILES_A_JOB)
        ]
        filling.asked.append((reading, row, filling.n_tiles, answers))
        filling.n_tiles += len(coords)
        return len(coords)

    def _taken(self) -> Batch:
        """The oldest batch, once it is read."""
        filling = self._waiting.popleft()
        read = [(*asked[:3], [self._wait_for(answer) for answer in asked[3]]) for asked in filling.asked]
        first = filling.slot * self._batch_size
        tiles = self._readers.tiles[first : first + self._batch_size]
        tiles[filling.n_tiles :] = 0
        done = [answer for *_, answers in read for answer in answers if isinstance(answer, TilesRead)]
        ends = [*(start for _, _, start, _ in read[1:]), filling.n_tiles]
        return Batch(
            tiles=tiles,
            parts=tuple(_part(*asked, end) for asked, end in zip(read, ends, strict=True)),
            n_tiles=filling.n_tiles,
            wall_seconds=sum((answer.wall_seconds for answer in done), 0.0),
            cpu_seconds=sum((answer.cpu_seconds for answer in done), 0.0),
        )

    def _wait_for(self, answer: "Future[Answer]") -> Answer:
        while True:
            try:
                return answer.result(POLL_SECONDS)
            except NotYet:
                self._refuse_to_wait_when_stopped()


def _part(reading: Reading, first_row: int, start: int, answers: list[Answer], end: int) -> Part:
    """Join the answers of the jobs of one slide; a job that took the reader down has none of its tiles."""
    is_read = np.zeros(end - start, dtype=bool)
    errors: list[SlideError] = []
    for position, answer in zip(range(0, end - start, TILES_A_JOB), answers, strict=True):
        if isinstance(answer, TilesRead):
            is_read[position : position + len(answer.is_read)] = answer.is_read
            if answer.error is not None:
                errors.append(answer.error)
        elif isinstance(answer, SlideError):
            errors.append(answer)
    return Part(reading=reading, first_row=first_row, start=start, is_read=is_read, error=errors[0] if errors else None)
