"""How many tiles the encoder takes at once: found by trial, and smaller when memory runs out."""

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

LEAST_GAIN = 1.05
"""Twice the batch must be this much faster to be worth its memory; timings of one device differ by a few percent."""
SECONDS = 0.3
"""Of timed work for each size: many kernels long, and a few seconds for all sizes together."""
NO_MEMORY = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")
"""Said by CUDA, by the allocator of the CPU, and by cuBLAS and cuDNN, in errors that have no type of their own."""
Out = TypeVar("Out")


def find_batch_size(
    embed: Callable[[int], None],
    *,
    start: int = 32,
    largest: int = 1024,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Double the batch until tiles a second grow by less than 5 %, or memory runs out.

    Args:
        embed: Embeds that many tiles, and returns when the device is done with them.
        start: The first size tried.
        largest: No size beyond it is tried.
        seconds: Of timed work for each size, after one call that is not timed.
        clock: Seconds.

    Returns:
        The last size that was worth doubling to. When ``start`` does not fit, the first of its halves that does.

    Raises:
        RuntimeError: Not even one tile fits (`torch.OutOfMemoryError` on a GPU), or another error of ``embed``.
    """
    size = max(1, min(start, largest))
    best = _unless_out_of_memory(partial(_tiles_per_s, embed, size, seconds, clock))
    if best is None:
        return _first_half_that_fits(embed, size)
    while size * 2 <= largest:
        rate = _unless_out_of_memory(partial(_tiles_per_s, embed, size * 2, seconds, clock))
        if rate is None or rate < best * LEAST_GAIN:
            break
        size, best = size * 2, rate
    return size


def embed_in_chunks(
    embed: Callable[[UInt8[Tensor, "tile 3 height width"]], dict[str, Tensor]],
    tiles: UInt8[Tensor, "tile 3 height width"],
    chunk: int,
) -> tuple[dict[str, Float[Tensor, "tile dim"]], int]:
    """Embed a batch in chunks, in smaller ones when memory runs out.

    Args:
        embed: Gives one row for each tile, in every space; a row depends on its own tile only.
        tiles: At least one.
        chunk: Most tiles at once, at least 1.

    Returns:
        The rows in the order of the tiles, and the chunk that fitted, to begin with the next time.

    Raises:
        RuntimeError: Not even one tile fits (`torch.OutOfMemoryError` on a GPU), or another error of ``embed``.
    """
    parts: list[dict[str, Tensor]] = []
    start = 0
    while start < len(tiles):
        members = tiles[start : start + chunk]
        rows = embed(members) if len(members) == 1 else _unless_out_of_memory(partial(embed, members))
        if rows is None:
            chunk = len(members) // 2
            continue
        parts.append(rows)
        start += len(members)
    return {space: torch.cat([part[space] for part in parts]) for space in parts[0]}, chunk


def _first_half_that_fits(embed: Callable[[int], None], too_large: int) -> int:
    size = too_large // 2
    while size > 1:
        if _unless_out_of_memory(partial(_embed_once, embed, size)):
            return size
        size //= 2
    embed(1)
    return 1


def _embed_once(embed: Callable[[int], None], size: int) -> bool:
    embed(size)
    return True


def _tiles_per_s(embed: Callable[[int], None], size: int, seconds: float, clock: Callable[[], float]) -> float:
    embed(size)  # the first call of a size also allocates, and picks kernels
    begin = clock()
    n_calls = 0
    while (elapsed := clock() - begin) < seconds or not n_calls:
        embed(size)
        n_calls += 1
    return n_calls * size / elapsed


def _unless_out_of_memory(call: Callable[[], Out]) -> Out | None:
    """The result, or None when memory ran out; what the device still caches is given back then."""
    try:
        return call()
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)):
            raise
    # Only here, outside the handler, are the tensors of the failed call free: the error's traceback held them.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
