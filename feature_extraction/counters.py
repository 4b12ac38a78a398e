"""Where a run's time went: seconds counted while it runs, one sentence that says what limits it, and what is left."""

import math
import os
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Activity = Literal["embedding", "waiting_tiles", "waiting_writer"]
Verdict = Literal["short run", "model-bound", "balanced", "write-bound", "planning-bound", "disk-bound", "decode-bound"]

SHORT_S = 2.0
"""Below, opening the first slide and warming the device up outweigh what would repeat in a longer run."""
FEW_BATCHES = 3
"""Below, no batch was read while another was embedded and a third waited: the pipeline never ran as one."""
DEVICE_BUSY = 0.85
"""Share of the wall time from which the model is the limit: all else for nothing would win 1 / .85 = 18 % at most."""
MUCH_WAITING = 0.1
"""Share of the wall time the main loop must wait for one thing to name it: below, its removal wins 11 % at most."""
READERS_BUSY = 0.7
"""Share of the reader threads busy from which reading is the limit. Below, a thread was mostly free when a tile was
wanted, so what lacked was a slide ready to be read. Not higher: the pool runs empty at every start and end."""
DECODING = 0.5
"""Share of the readers' busy time spent computing from which decoding outweighs waiting for bytes. Decoding from memory
computes for nearly all of it, so half leaves room for the interpreter's lock."""
CORES_BUSY = 0.85
"""Share of our cores' time in use, by anybody, from which a thread that is not computing waits for a core, not for
bytes; and from which more threads gain nothing without more cores."""


class Counters:
    """Counts what one run does, from its making to `as_record`. Safe to use from any thread.

    Args:
        n_readers: Reader threads.
    """

    def __init__(self, *, n_readers: int) -> None:
        self._lock = threading.Lock()
        self._n_readers = n_readers
        self._begin = time.perf_counter()
        self._cores_begin = _core_ticks()
        self._seconds: dict[str, float] = dict.fromkeys(
            ("embedding", "waiting_tiles", "waiting_writer", "reading", "reading_cpu"), 0.0
        )
        self._n_slides = self._n_tiles = self._n_batches = self._n_samples = 0
        self._fill = 0.0

    @contextmanager
    def timing(self, activity: Activity) -> Generator[None, None, None]:
        """Count the block's wall seconds."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(activity, time.perf_counter() - begin)

    @contextmanager
    def reading(self) -> Generator[None, None, None]:
        """Count the block as this reader thread's work, waiting and computing apart."""
        begin, begin_cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.add_reading(time.perf_counter() - begin, time.thread_time() - begin_cpu)

    def add_seconds(self, activity: Activity, seconds: float) -> None:
        """Count seconds measured elsewhere, such as those a device counted itself."""
        with self._lock:
            self._seconds[activity] += seconds

    def add_reading(self, wall_s: float, cpu_s: float) -> None:
        """Count a reader's work measured elsewhere, such as in another process."""
        with self._lock:
            self._seconds["reading"] += wall_s
            self._seconds["reading_cpu"] += cpu_s

    def add_batch(self, n_tiles: int) -> None:
        """Count an embedded batch of so many tiles, padding left out."""
        with self._lock:
            self._n_batches += 1
            self._n_tiles += n_tiles

    def add_slide(self) -> None:
        """Count a slide that was sealed."""
        with self._lock:
            self._n_slides += 1

    def sample_queue(self, n_ready: int, capacity: int) -> None:
        """Note how many batches of tiles are read and wait, of how many there is room for; once a batch."""
        with self._lock:
            self._n_samples += 1
            self._fill += n_ready / capacity

    @property
    def tiles_per_s(self) -> float:
        """Tiles embedded per second of wall time."""
        return self.as_record()["tiles_per_s"]

    @property
    def device_share(self) -> float:
        """Share of the wall time in which the device was embedding."""
        return self.as_record()["device_share"]

    @property
    def readers_share(self) -> float:
        """Share of the reader threads that were busy, averaged over the wall time."""
        return self.as_record()["readers_share"]

    def as_record(self) -> dict[str, int | float]:
        """Everything as plain data: what ``diagnose`` reads and ``summary.json`` keeps.

        Seconds end in ``_s``; ``_share`` is of the wall time, from 0 to 1, of all readers together for ``readers``, of
        the room for ``queue``, and of all our cores for ``cores`` (busy with anybody's work; nan where unknown).
        """
        wall = max(time.perf_counter() - self._begin, 1e-9)
        cores_share = _busy_share(self._cores_begin, _core_ticks())
        with self._lock:
            return {
                "wall_s": wall,
                "n_slides": self._n_slides,
                "n_tiles": self._n_tiles,
                "n_batches": self._n_batches,
                "n_readers": self._n_readers,
                **{f"{activity}_s": seconds for activity, seconds in self._seconds.items()},
                "tiles_per_s": self._n_tiles / wall,
                "device_share": self._seconds["embedding"] / wall,
                "readers_share": self._seconds["reading"] / (wall * self._n_readers),
                "cores_share": cores_share,
                "queue_share": self._fill / self._n_samples if self._n_samples else 0.0,
            }


class Eta:
    """How many tiles are left. Slides that are not planned yet count as the mean of those that are.

    Args:
        n_slides: Slides of the run.
    """

    def __init__(self, n_slides: int) -> None:
        self._n_slides = n_slides
        self._planned_slides = self._planned_tiles = self._n_lost = 0

    def plan(self, n_tiles: int) -> None:
        """Note a slide that is planned, with the tiles still to embed."""
        self._planned_slides += 1
        self._planned_tiles += n_tiles

    def skip(self) -> None:
        """Note a slide that will not be planned: found done, another worker's, or failed before."""
        self._n_slides -= 1

    def lose(self, n_tiles: int) -> None:
        """Note tiles that were planned and will not be embedded: their slide failed."""
        self._n_lost += n_tiles

    def remaining(self, done_tiles: int) -> int | None:
        """Tiles left after ``done_tiles`` were embedded, None before anything is planned."""
        return remaining_tiles(
            planned_tiles=self._planned_tiles,
            planned_slides=self._planned_slides,
            n_slides=self._n_slides,
            done_tiles=done_tiles + self._n_lost,
        )


def remaining_tiles(*, planned_tiles: int, planned_slides: int, n_slides: int, done_tiles: int) -> int | None:
    """Tiles of ``n_slides`` slides, estimated by the mean of the planned ones, less those done; None without any.

    Never below what is planned and not done.
    """
    if n_slides == 0:
        return 0
    if planned_slides == 0:
        return None
    unplanned = max(0, n_slides - planned_slides)
    return max(0, planned_tiles - done_tiles + round(unplanned * planned_tiles / planned_slides))


def progress_line(record: Mapping[str, int | float], device: str, remaining: int | None) -> str:
    """One line such as ``1,234 tiles/s, cpu 95 %, 2 h 10 min left``.

    Args:
        record: Of `Counters.as_record`.
        device: Its name.
        remaining: Tiles left, None while unknown.
    """
    rate = record["tiles_per_s"]
    left = "time left not known yet" if remaining is None or not rate else f"{duration(remaining / rate)} left"
    return f"{rate:,.0f} tiles/s, {device} {_percent(record['device_share'])}, {left}"


def duration(seconds: float) -> str:
    """Seconds in words, in at most two units, rounded up so that it does not promise too much."""
    if seconds <= 59:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def diagnose(record: Mapping[str, int | float], device: str) -> str:
    """One sentence: what limits the run, by which numbers, and what would help.

    Args:
        record: Of `Counters.as_record`.
        device: Name of the device that embeds, such as ``cuda:0``.
    """
    verdict = verdict_of(record)
    if verdict == "short run":
        return f"short run: too little to judge ({record['wall_s']:.1f} s, {record['n_batches']:.0f} batches)"
    n_busy = record["readers_share"] * record["n_readers"]
    readers = f"{n_busy:.1f} of {record['n_readers']:.0f} reader threads busy"
    embedding = f"{device} {_percent(record['device_share'])} busy"
    seen = {
        "model-bound": f"{embedding}, {readers}",
        "balanced": f"{embedding}, {readers}, little waiting",
        "write-bound": f"{_percent(record['waiting_writer_s'] / record['wall_s'])} of the time waiting for the writer",
        "disk-bound": f"{readers}, computing {_percent(_computing(record))} of it, {embedding}",
    }.get(verdict, f"{readers}, {embedding}")
    return f"{verdict}: {seen}; {_remedy(verdict, record, device)}"


def verdict_of(record: Mapping[str, int | float]) -> Verdict:
    """What limits a run: the device first, then whatever the main loop waited for most.

    Readers that are busy without computing wait for bytes, unless every core is taken: then they wait for a core.
    """
    if record["wall_s"] < SHORT_S or record["n_batches"] < FEW_BATCHES:
        return "short run"
    if record["device_share"] >= DEVICE_BUSY:
        return "model-bound"
    if max(record["waiting_tiles_s"], record["waiting_writer_s"]) < MUCH_WAITING * record["wall_s"]:
        return "balanced"
    if record["waiting_writer_s"] >= record["waiting_tiles_s"]:
        return "write-bound"
    if record["readers_share"] < READERS_BUSY:
        return "planning-bound"
    is_decoding = _computing(record) >= DECODING or record["cores_share"] >= CORES_BUSY
    return "decode-bound" if is_decoding else "disk-bound"


def _remedy(verdict: Verdict, record: Mapping[str, int | float], device: str) -> str:
    if verdict == "model-bound":
        more = "a GPU" if device == "cpu" else "another GPU"
        return f"{more} or precision=bf16 would help"
    if verdict == "decode-bound" and record["cores_share"] < CORES_BUSY:  # False where it is unknown (nan)
        return f"cores {_percent(record['cores_share'])} in use: more reader threads (threads=…) would help"
    return {
        "decode-bound": "add cores (threads=…) or a second machine",
        "disk-bound": "the readers mostly wait for bytes; stage.dir=<fast local disk> copies the next slides ahead",
        "planning-bound": (
            "slides are opened (and copied) one by one; the same command run once more beside it shares them"
        ),
        "write-bound": "put out=… on a faster disk",
    }.get(verdict, "a larger batch_size may help")


def _computing(record: Mapping[str, int | float]) -> float:
    """Share of the readers' busy seconds in which they computed."""
    return record["reading_cpu_s"] / max(record["reading_s"], 1e-9)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _core_ticks() -> tuple[int, int]:
    """Ticks (idle or waiting for a disk, all) of the cores we may use; zeros where the system does not say."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    except (OSError, AttributeError):  # not Linux
        return 0, 0
    # user, nice, system, idle, waiting for a disk, interrupts, soft interrupts, stolen; guests are part of user.
    ticks = [
        [int(text) for text in line.split()[1:9]] for line in lines if line.split()[:1] and line.split()[0] in ours
    ]
    return sum(core[3] + core[4] for core in ticks), sum(sum(core) for core in ticks)


def _busy_share(begin: tuple[int, int], end: tuple[int, int]) -> float:
    """Share of the ticks between that were not idle, nan without any."""
    total = end[1] - begin[1]
    return 1 - (end[0] - begin[0]) / total if total > 0 else math.nan
