"""Keep the device busy: the next batch travels to it while it works on the one before.

On a CPU there is nothing to travel and nothing to overlap: a batch is embedded where it lies, at once.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

DEPTH = 2
"""Batches on the device at a time: one in work, one that has arrived."""


class DeviceQueue:
    """Hands batches to a task that embeds them, in order. Use as a context manager: leaving it waits for all.

    Args:
        device: Where the task computes.
        is_ahead: Whether batches are copied ahead of the work; by default wherever the device has its own memory.
    """

    def __init__(self, device: torch.device, *, is_ahead: bool | None = None) -> None:
        self._device = device
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._is_ahead = device.type != "cpu" if is_ahead is None else is_ahead
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._staging: Tensor | None = None
        self._waiting: list[Future[None]] = []

    def __enter__(self) -> "DeviceQueue":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self.drain()

    def submit(
        self, tiles: UInt8[np.ndarray, "place side side 3"], task: Callable[[UInt8[Tensor, "place 3 side side"]], None]
    ) -> None:
        """Embed a batch; when this returns, its memory may be used again.

        Args:
            tiles: RGB.
            task: Called with the same tiles on the device, channels last in memory.

        Raises:
            Exception: What this task, or an earlier one, raised.
        """
        planes = torch.from_numpy(tiles).permute(0, 3, 1, 2)
        if not self._is_ahead:
            task(planes)
            return
        while len(self._waiting) >= DEPTH:
            self._waiting.pop(0).result()
        self._waiting.append(self._executor.submit(task, self._brought(planes)))

    def drain(self) -> None:
        """Wait for every batch.

        Raises:
            Exception: What a task raised.
        """
        while self._waiting:
            self._waiting.pop(0).result()

    def _brought(self, planes: UInt8[Tensor, "place 3 side side"]) -> UInt8[Tensor, "place 3 side side"]:
        """A copy on the device. CUDA copies page-locked memory on a stream of its own, beside the computing."""
        if self._side is None:
            return planes.to(self._device, copy=True)
        if self._staging is None or self._staging.shape != planes.shape:
            self._staging = torch.empty_like(planes, pin_memory=True)
        self._staging.copy_(planes)
        with torch.cuda.stream(self._side):
            brought = self._staging.to(self._device, non_blocking=True)
        self._side.synchronize()  # the staging memory is written again for the next batch
        brought.record_stream(torch.cuda.current_stream(self._device))
        return brought
