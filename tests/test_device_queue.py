"""Batches reach the device in order, ahead of the work, and their memory may be used again at once."""

import threading
import time

import numpy as np
import pytest
import torch

from feature_extraction.device_queue import DEPTH, DeviceQueue
from feature_extraction.encoder import resize, resized_as_floats

CPU = torch.device("cpu")


def batch(value: int) -> np.ndarray:
    return np.full((4, 8, 8, 3), value, np.uint8)


@pytest.mark.parametrize("is_ahead", [False, True])
def test_every_batch_is_worked_on_once_in_order_and_as_it_was_when_submitted(is_ahead: bool):
    seen: list[int] = []
    memory = batch(0)
    with DeviceQueue(CPU, is_ahead=is_ahead) as queue:
        for value in range(20):
            memory[:] = value  # the ring's memory is written again for each batch
            queue.submit(memory, lambda tiles: (time.sleep(0.002), seen.append(int(tiles.max()))))
            memory[:] = 255
    assert seen == list(range(20))


def test_a_batch_travels_while_the_one_before_is_in_work():
    may_go_on = threading.Event()
    begun: list[int] = []

    def task(tiles: torch.Tensor) -> None:
        begun.append(int(tiles.max()))
        may_go_on.wait(120)

    with DeviceQueue(CPU, is_ahead=True) as queue:
        for value in range(DEPTH):
            queue.submit(batch(value), task)  # does not wait for the first, which cannot end yet
        assert len(begun) <= 1
        may_go_on.set()
    assert begun == list(range(DEPTH))


@pytest.mark.parametrize("is_ahead", [False, True])
def test_what_the_work_raises_reaches_whoever_submits(is_ahead: bool):
    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("no such kernel")

    def submit_some() -> None:
        with DeviceQueue(CPU, is_ahead=is_ahead) as queue:
            for _ in range(DEPTH + 1):
                queue.submit(batch(0), fail)

    with pytest.raises(RuntimeError, match="no such kernel"):
        submit_some()


def test_tiles_arrive_with_channels_last_and_unchanged():
    tiles = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3)).astype(np.uint8)
    seen: list[torch.Tensor] = []
    for is_ahead in (False, True):
        with DeviceQueue(CPU, is_ahead=is_ahead) as queue:
            queue.submit(tiles, seen.append)
    for found in seen:
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), tiles)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("side", [24, 40, 100])
def test_tiles_resized_as_floats_differ_by_one_step_where_nothing_overshoots(mode, side: int):
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(90, 166, (3, 3, 64, 64), dtype=torch.uint8, generator=generator)
    difference = resize(tiles, side, mode).int() - resized_as_floats(tiles, side, mode).int()
    assert difference.abs().max() <= 1
    assert resize(tiles, side, mode).dtype == torch.uint8
