"""The batch size: doubled while that pays, halved when memory runs out, and never another result."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from feature_extraction.batch_size import LEAST_GAIN, embed_in_chunks, find_batch_size


class Device:
    """A device with a memory and a speed: embedding ``n`` tiles takes ``seconds(n)`` of its clock."""

    def __init__(self, seconds: Callable[[int], float], fits: int = 1 << 20) -> None:
        self.now = 0.0
        self.tried: list[int] = []
        self._seconds = seconds
        self._fits = fits

    def embed(self, n_tiles: int) -> None:
        if n_tiles not in self.tried:
            self.tried.append(n_tiles)
        if n_tiles > self._fits:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {n_tiles} tiles")
        self.now += self._seconds(n_tiles)

    def find(self, start: int = 32, largest: int = 1024) -> int:
        return find_batch_size(self.embed, start=start, largest=largest, seconds=1.0, clock=lambda: self.now)


def gaining(factor: float, until: int) -> Callable[[int], float]:
    """Seconds for n tiles when doubling makes a tile ``factor`` faster up to ``until``, and nothing beyond."""

    def seconds(n_tiles: int) -> float:
        doublings = min(n_tiles, until).bit_length() - 1
        return 0.01 * n_tiles / factor**doublings

    return seconds


@pytest.mark.parametrize("until", [32, 64, 256])
def test_doubling_ends_where_it_gains_nothing(until: int):
    device = Device(gaining(1.5, until))
    assert device.find() == until
    assert device.tried[-1] == 2 * until


def test_a_gain_just_above_the_bound_is_taken_and_one_just_below_is_not():
    assert Device(gaining(LEAST_GAIN + 0.001, 1 << 20)).find() == 1024
    assert Device(gaining(LEAST_GAIN - 0.001, 1 << 20)).find() == 32


@pytest.mark.parametrize(("fits", "size"), [(1024, 1024), (1023, 512), (64, 64), (63, 32), (32, 32), (31, 16), (1, 1)])
def test_the_size_is_the_last_that_fits(fits: int, size: int):
    assert Device(gaining(1.5, 1 << 20), fits=fits).find() == size


def test_no_size_beyond_the_largest_is_tried():
    device = Device(gaining(1.5, 1 << 20))
    assert device.find(start=24, largest=100) == 96
    assert max(device.tried) == 96
    assert Device(gaining(1.5, 1 << 20)).find(start=32, largest=8) == 8


def test_a_device_without_room_for_one_tile_says_so():
    with pytest.raises(torch.OutOfMemoryError, match="1 tiles"):
        Device(gaining(1.5, 64), fits=0).find()


def test_the_first_call_of_a_size_is_not_timed():
    seen: set[int] = set()

    def seconds(n_tiles: int) -> float:
        is_first = n_tiles not in seen
        seen.add(n_tiles)
        return 0.01 * n_tiles + 10 * is_first

    assert Device(seconds).find() == 32  # were it timed, 64 would look nearly twice as fast


class Broken:
    """Fails at the first call and would be found out at a second."""

    def __init__(self) -> None:
        self.n_calls = 0

    def __call__(self, _: object) -> dict[str, Tensor]:
        self.n_calls += 1
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    "call", [lambda broken: find_batch_size(lambda n: print(broken(n))), lambda b: embed_in_chunks(b, TILES, 8)]
)
def test_any_other_error_is_not_taken_for_a_lack_of_memory(call: Callable[[Broken], object]):
    broken = Broken()
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        call(broken)
    assert broken.n_calls == 1


TILES = torch.randint(0, 256, (37, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def embed_rows(tiles: Tensor) -> dict[str, Tensor]:
    values = tiles.float().flatten(1)
    return {"joint": values[:, :5] / 7, "backbone": values.cumsum(1)}


def limited(fits: int, sizes: list[int], error: Exception) -> Callable[[Tensor], dict[str, Tensor]]:
    def embed(tiles: Tensor) -> dict[str, Tensor]:
        sizes.append(len(tiles))
        if len(tiles) > fits:
            raise error
        return embed_rows(tiles)

    return embed


@pytest.mark.parametrize(
    ("fits", "chunk", "kept"), [(99, 37, 37), (99, 64, 64), (99, 10, 10), (36, 37, 18), (5, 37, 4), (1, 64, 1)]
)
def test_rows_are_those_of_the_whole_batch_whatever_fits(fits: int, chunk: int, kept: int):
    sizes: list[int] = []
    rows, found = embed_in_chunks(limited(fits, sizes, torch.OutOfMemoryError("full")), TILES, chunk)
    expected = embed_rows(TILES)
    assert rows.keys() == expected.keys()
    for space, values in expected.items():
        assert torch.equal(rows[space], values)
    assert found == kept
    assert max(sizes) <= chunk


def test_the_chunk_that_fitted_needs_no_second_trial():
    sizes: list[int] = []
    embed = limited(10, sizes, torch.OutOfMemoryError("full"))
    _, chunk = embed_in_chunks(embed, TILES, 32)
    sizes.clear()
    embed_in_chunks(embed, TILES, chunk)
    assert max(sizes) <= 10


def test_one_tile_that_does_not_fit_is_the_error_itself():
    error = torch.OutOfMemoryError("full")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        embed_in_chunks(limited(0, [], error), TILES, 32)
    assert caught.value is error


@pytest.mark.parametrize("message", ["CUDA error: out of memory", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"])
def test_a_lack_of_memory_without_a_type_of_its_own_is_known_by_its_words(message: str):
    rows, chunk = embed_in_chunks(limited(20, [], RuntimeError(message)), TILES, 32)
    assert torch.equal(rows["joint"], embed_rows(TILES)["joint"])
    assert chunk == 16


def test_the_real_error_of_the_cpu_allocator_halves_the_chunk():
    def embed(tiles: Tensor) -> dict[str, Tensor]:
        torch.empty(1 << (54 if len(tiles) > 20 else 4), dtype=torch.uint8)
        return embed_rows(tiles)

    rows, chunk = embed_in_chunks(embed, TILES, 32)
    assert torch.equal(rows["joint"], embed_rows(TILES)["joint"])
    assert chunk == 16
