"""A training that was killed goes on from its last checkpoint, to the same result as one that was not."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import lightning
import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from feature_extraction.errors import DamagedFileError
from mil.state_file import read_state, write_state

CHECKPOINT = ".last.safetensors"
"""Name in the run folder; hidden, so that it is no file of the run: `mil.runs` neither lists nor checks it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """Where and how often training keeps its state.

    Attributes:
        path: Of the one file, replaced each time.
        cell: What is trained; a checkpoint of another cell is not gone on from.
        every_s: Least seconds from one checkpoint to the next, and from the start to the first; 0 for each epoch.
    """

    path: Path
    cell: str
    every_s: float

    def made_by(self) -> dict[str, str]:
        """What must be the same for training to go on: other versions would not end in the same result."""
        return {"cell": self.cell, "torch": torch.__version__, "lightning": lightning.__version__}

    def epochs_done(self) -> int:
        """Epochs that the checkpoint holds; 0 when there is none, or none to go on from (a warning says why).

        Raises:
            OSError: It is there and cannot be read.
        """
        try:
            state = read_state(self.path, self.made_by())
        except FileNotFoundError:
            return 0
        except DamagedFileError as error:
            _log.warning("%s; training starts anew", error)
            return 0
        return int(cast("int", state["epoch"])) + 1  # Lightning counts from 0 and saves before it counts on


def tidy(folder: Path) -> None:
    """Remove what a sealed run no longer needs: the checkpoint, and what kills left of files being written.

    What stays harms nobody (a folder may be read-only by now), so no error stops here.
    """
    with suppress(OSError):
        for path in [folder / CHECKPOINT, *folder.glob(".tmp-*")]:
            path.unlink(missing_ok=True)


class StateFiles(CheckpointIO):
    """Lightning's door to checkpoints: through it go our files instead of pickles.

    Args:
        made_by: Whose they are.
    """

    def __init__(self, made_by: Mapping[str, str]) -> None:
        self._made_by = made_by

    def save_checkpoint(self, checkpoint: dict[str, object], path: str | Path, storage_options: object = None) -> None:
        """Publish."""
        write_state(Path(path), checkpoint, self._made_by)

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, object]:
        """Read; the tensors are on the CPU."""
        return read_state(Path(path), self._made_by)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove."""
        Path(path).unlink(missing_ok=True)


class KeepState(lightning.Callback):
    """Writes a checkpoint at the end of an epoch when it is time; the last of the callbacks, whose states it keeps.

    The random states are part of it: torch's own (dropout), the GPU's, and those of ``generators``.

    Args:
        checkpoints: Where and how often.
        generators: Those that training draws from besides torch's own, by name.
        clock: Seconds.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        generators: Mapping[str, torch.Generator],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._checkpoints = checkpoints
        self._generators = generators
        self._clock = clock
        self._last_s = clock()
        self._to_restore: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write, unless the last one is young."""
        if self._clock() - self._last_s < self._checkpoints.every_s:
            return
        trainer.save_checkpoint(self._checkpoints.path, weights_only=False)
        self._last_s = self._clock()

    def state_dict(self) -> dict[str, object]:
        """The random states."""
        own = {name: generator.get_state() for name, generator in self._generators.items()}
        states = {"torch": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            states["cuda"] = torch.cuda.get_rng_state()
        return {"generators": own, "global": states}

    def load_state_dict(self, state_dict: dict[str, dict[str, Tensor]]) -> None:
        """Set the generators, before Lightning makes the iterator of the loader, which draws; keep the rest."""
        for name, generator in self._generators.items():
            generator.set_state(state_dict["generators"][name])
        self._to_restore = state_dict["global"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Set the global states as late as possible: nothing between here and the first step draws from them."""
        if "torch" in self._to_restore:
            torch.set_rng_state(self._to_restore["torch"])
        if "cuda" in self._to_restore and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(self._to_restore["cuda"])
        self._to_restore = {}
