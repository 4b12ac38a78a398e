"""The counters add up, the diagnosis follows its numbers on both sides of every bound, and the rest is estimated."""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

import bounded
import pytest

from feature_extraction.counters import (
    CORES_BUSY,
    DECODING,
    DEVICE_BUSY,
    FEW_BATCHES,
    MUCH_WAITING,
    READERS_BUSY,
    SHORT_S,
    Counters,
    Eta,
    _busy_share,
    _core_ticks,
    diagnose,
    duration,
    progress_line,
    remaining_tiles,
    verdict_of,
)

LESS = 1e-6


def record(**changed: float) -> dict[str, int | float]:
    """A run of 100 s that is bound by decoding: 14.2 of 16 readers busy, a device at 31 %."""
    plain: dict[str, int | float] = {
        "wall_s": 100.0,
        "n_slides": 4,
        "n_tiles": 50_000,
        "n_batches": 200,
        "n_readers": 16,
        "embedding_s": 31.0,
        "waiting_tiles_s": 60.0,
        "waiting_writer_s": 2.0,
        "reading_s": 1420.0,
        "reading_cpu_s": 1300.0,
        "tiles_per_s": 500.0,
        "device_share": 0.31,
        "readers_share": 1420 / 1600,
        "cores_share": 0.95,
        "queue_share": 0.1,
    }
    assert changed.keys() <= plain.keys()
    return plain | changed


SLOW_DISK = {"reading_cpu_s": 142.0, "cores_share": 0.1}
DECODE = "decode-bound: 14.2 of 16 reader threads busy, cuda:0 31 % busy; "
STAGE = "the readers mostly wait for bytes; stage.dir=<fast local disk> copies the next slides ahead"
ONE_BY_ONE = "slides are opened (and copied) one by one; the same command run once more beside it shares them"
SLOW_WRITER = {"waiting_tiles_s": 2.0, "waiting_writer_s": 60.0}


@pytest.mark.parametrize(
    ("changed", "device", "sentence"),
    [
        (
            {},
            "cuda:0",
            DECODE + "add cores (threads=…) or a second machine",
        ),
        (
            {"cores_share": 0.4},
            "cuda:0",
            DECODE + "cores 40 % in use: more reader threads (threads=…) would help",
        ),
        (
            {"device_share": 0.97, "readers_share": 0.55, "n_readers": 2},
            "cpu",
            "model-bound: cpu 97 % busy, 1.1 of 2 reader threads busy; a GPU or precision=bf16 would help",
        ),
        (
            {"device_share": 0.97},
            "cuda:0",
            "model-bound: cuda:0 97 % busy, 14.2 of 16 reader threads busy; another GPU or precision=bf16 would help",
        ),
        (
            SLOW_DISK,
            "cuda:0",
            "disk-bound: 14.2 of 16 reader threads busy, computing 10 % of it, cuda:0 31 % busy; " + STAGE,
        ),
        (SLOW_WRITER, "cpu", "write-bound: 60 % of the time waiting for the writer; put out=… on a faster disk"),
        (
            {"readers_share": 0.2},
            "cpu",
            "planning-bound: 3.2 of 16 reader threads busy, cpu 31 % busy; " + ONE_BY_ONE,
        ),
        (
            {"waiting_tiles_s": 5.0, "device_share": 0.7},
            "cpu",
            "balanced: cpu 70 % busy, 14.2 of 16 reader threads busy, little waiting; a larger batch_size may help",
        ),
        ({"wall_s": 1.24, "n_batches": 2}, "cpu", "short run: too little to judge (1.2 s, 2 batches)"),
    ],
)
def test_the_diagnosis_is_one_sentence_with_its_numbers(changed: dict[str, float], device: str, sentence: str):
    assert diagnose(record(**changed), device) == sentence


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"wall_s": SHORT_S, "waiting_writer_s": 0.0}, "decode-bound"),
        ({"wall_s": SHORT_S - LESS, "waiting_writer_s": 0.0}, "short run"),
        ({"n_batches": FEW_BATCHES}, "decode-bound"),
        ({"n_batches": FEW_BATCHES - 1}, "short run"),
        ({"device_share": DEVICE_BUSY}, "model-bound"),
        ({"device_share": DEVICE_BUSY - LESS}, "decode-bound"),
        ({"device_share": DEVICE_BUSY, **SLOW_WRITER}, "model-bound"),
        ({"waiting_tiles_s": 100 * MUCH_WAITING}, "decode-bound"),
        ({"waiting_tiles_s": 100 * MUCH_WAITING - LESS}, "balanced"),
        ({"waiting_tiles_s": 0.0, "waiting_writer_s": 100 * MUCH_WAITING}, "write-bound"),
        ({"waiting_tiles_s": 0.0, "waiting_writer_s": 100 * MUCH_WAITING - LESS}, "balanced"),
        ({"waiting_tiles_s": 30.0, "waiting_writer_s": 30.0}, "write-bound"),
        ({"waiting_tiles_s": 30.0, "waiting_writer_s": 30.0 - LESS}, "decode-bound"),
        ({"readers_share": READERS_BUSY}, "decode-bound"),
        ({"readers_share": READERS_BUSY - LESS}, "planning-bound"),
        ({"cores_share": 0.1, "reading_cpu_s": 1420 * DECODING}, "decode-bound"),
        ({"cores_share": 0.1, "reading_cpu_s": 1420 * DECODING - LESS}, "disk-bound"),
        ({**SLOW_DISK, "cores_share": CORES_BUSY}, "decode-bound"),  # they wait for cores, not for bytes
        ({**SLOW_DISK, "cores_share": CORES_BUSY - LESS}, "disk-bound"),
        ({**SLOW_DISK, "cores_share": math.nan}, "disk-bound"),
        ({"cores_share": math.nan}, "decode-bound"),
        ({"n_batches": 0, "n_tiles": 0, "reading_s": 0.0, "reading_cpu_s": 0.0}, "short run"),
    ],
)
def test_each_bound_has_two_sides(changed: dict[str, float], verdict: str):
    assert verdict_of(record(**changed)) == verdict


def test_more_threads_are_advised_only_while_cores_are_free():
    assert "more reader threads" in diagnose(record(cores_share=CORES_BUSY - LESS), "cpu")
    assert "add cores" in diagnose(record(cores_share=CORES_BUSY), "cpu")
    assert "add cores" in diagnose(record(cores_share=math.nan), "cpu")


def test_a_record_has_all_that_the_diagnosis_reads():
    counters = Counters(n_readers=2)
    assert counters.as_record().keys() == record().keys()
    assert diagnose(counters.as_record(), "cpu").startswith("short run")


def test_counts_and_shares_follow_what_was_added():
    counters = Counters(n_readers=4)
    counters.add_seconds("embedding", 3.0)
    counters.add_seconds("embedding", 1.0)
    counters.add_seconds("waiting_tiles", 2.0)
    counters.add_seconds("waiting_writer", 0.5)
    counters.add_reading(6.0, 5.0)
    counters.add_reading(2.0, 1.0)
    counters.add_batch(32)
    counters.add_batch(7)
    counters.add_slide()
    counters.sample_queue(0, 4)
    counters.sample_queue(3, 4)
    found = counters.as_record()
    wall = found["wall_s"]
    assert found | {"wall_s": 0, "cores_share": 0} == {
        "wall_s": 0,
        "n_slides": 1,
        "n_tiles": 39,
        "n_batches": 2,
        "n_readers": 4,
        "embedding_s": 4.0,
        "waiting_tiles_s": 2.0,
        "waiting_writer_s": 0.5,
        "reading_s": 8.0,
        "reading_cpu_s": 6.0,
        "tiles_per_s": 39 / wall,
        "device_share": 4.0 / wall,
        "readers_share": 8.0 / (4 * wall),
        "cores_share": 0,
        "queue_share": 0.375,
    }
    assert 0 < counters.tiles_per_s <= found["tiles_per_s"]
    assert 0 < counters.device_share <= found["device_share"]
    assert 0 < counters.readers_share <= found["readers_share"]


def wait() -> None:
    time.sleep(0.1)


def compute() -> None:
    begin = time.thread_time()
    while time.thread_time() < begin + 0.1:
        pass


@pytest.mark.parametrize(("work", "is_computing"), [(wait, False), (compute, True)])
def test_a_reader_that_waits_is_told_from_one_that_computes(work: Callable[[], None], is_computing: bool):
    counters = Counters(n_readers=1)

    def read() -> None:
        with counters.reading():
            work()

    thread = threading.Thread(target=read)
    thread.start()
    bounded.join(thread)
    found = counters.as_record()
    assert found["wall_s"] >= found["reading_s"] >= 0.1 - 1e-3
    assert (found["reading_cpu_s"] >= 0.1 - 1e-3) == is_computing


def test_a_block_that_raises_is_counted_too():
    counters = Counters(n_readers=1)

    def fail() -> None:
        with counters.timing("waiting_writer"), counters.reading():
            time.sleep(0.01)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fail()
    found = counters.as_record()
    assert found["waiting_writer_s"] >= found["reading_s"] >= 0.01
    assert found["embedding_s"] == found["waiting_tiles_s"] == 0


def test_no_count_is_lost_between_threads():
    counters = Counters(n_readers=8)

    def work() -> None:
        for _ in range(2000):
            counters.add_batch(3)
            counters.add_reading(0.5, 0.25)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    bounded.join(*threads)
    found = counters.as_record()
    assert (found["n_tiles"], found["reading_s"], found["reading_cpu_s"]) == (48_000, 8000.0, 4000.0)


def test_the_share_of_busy_cores_is_of_the_time_between():
    assert _busy_share((100, 1000), (150, 1200)) == 0.75
    assert math.isnan(_busy_share((0, 0), (0, 0)))
    idle, total = _core_ticks()
    assert 0 <= idle <= total
    assert (total > 0) == Path("/proc/stat").is_file()


def test_slides_not_planned_count_as_the_mean_of_the_planned():
    assert remaining_tiles(planned_tiles=300, planned_slides=3, n_slides=10, done_tiles=120) == 880
    assert remaining_tiles(planned_tiles=300, planned_slides=3, n_slides=3, done_tiles=120) == 180
    assert remaining_tiles(planned_tiles=300, planned_slides=3, n_slides=3, done_tiles=300) == 0
    assert remaining_tiles(planned_tiles=0, planned_slides=2, n_slides=9, done_tiles=0) == 0
    assert remaining_tiles(planned_tiles=0, planned_slides=0, n_slides=9, done_tiles=0) is None
    assert remaining_tiles(planned_tiles=0, planned_slides=0, n_slides=0, done_tiles=0) == 0


def test_the_estimate_reaches_nothing_left_whatever_becomes_of_the_slides():
    eta = Eta(4)
    assert eta.remaining(0) is None
    eta.skip()
    eta.plan(100)
    assert eta.remaining(40) == 260
    eta.plan(300)
    assert eta.remaining(100) == 500
    eta.lose(250)  # the second slide failed after 50 of its tiles
    assert eta.remaining(150) == 200
    eta.skip()
    assert eta.remaining(150) == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 s"),
        (0.2, "1 s"),
        (59.0, "59 s"),
        (59.1, "1 min"),
        (60.0, "1 min"),
        (60.1, "2 min"),
        (3540.0, "59 min"),
        (3541.0, "1 h 0 min"),
        (7800.0, "2 h 10 min"),
        (86_340.0, "23 h 59 min"),
        (86_341.0, "1 d 0 h"),
        (273_600.0, "3 d 4 h"),
    ],
)
def test_a_duration_is_rounded_up_and_has_two_units(seconds: float, words: str):
    assert duration(seconds) == words


def test_the_progress_line_says_rate_device_and_time_left():
    now = record(tiles_per_s=1234.4, device_share=0.954)
    assert progress_line(now, "cpu", round(7790 * 1234.4)) == "1,234 tiles/s, cpu 95 %, 2 h 10 min left"
    assert progress_line(now, "cpu", None) == "1,234 tiles/s, cpu 95 %, time left not known yet"
    assert progress_line(record(tiles_per_s=0.0), "cpu", 10) == "0 tiles/s, cpu 31 %, time left not known yet"
