"""Fit an aggregator on one fold: the start is candidate 0, the validation part chooses, the test part is not seen."""

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import lightning
import numpy as np
import torch
from jaxtyping import Float64
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor
from torch.utils.data import DataLoader

from feature_extraction.errors import InputError
from mil.aggregator import Aggregator
from mil.bag import Bag
from mil.data import Item, batches_of, eval_loader, generators_of, train_loader
from mil.finite import NonFiniteLossError, in_words, require_finite_logits
from mil.labels import Target
from mil.module import MilModule, Optimization
from mil.parts import Init
from mil.resume import Checkpoints, KeepState, StateFiles
from mil.task import Task

PRECISIONS: dict[str, Literal["32-true", "bf16-mixed"]] = {"float32": "32-true", "bf16": "bf16-mixed"}
"""Names in a configuration, and Lightning's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How long and how wide.

    Attributes:
        max_epochs: 0 keeps the start.
        batch_size: Bags a step.
        max_tiles: Tiles drawn from a bag in training.
        accelerator: Lightning's name of it.
        precision: Of the training steps, ``float32`` or ``bf16``; evaluation is always in float32.
        seed: Of the order of bags and the draws of tiles.
    """

    max_epochs: int
    batch_size: int
    max_tiles: int
    accelerator: str
    precision: str
    seed: int

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"trainer.precision={self.precision}: expected {' or '.join(PRECISIONS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Bags with their targets.

    Attributes:
        bags: In a fixed order.
        labels: Target of each, as the task made them.
    """

    bags: Sequence[Bag]
    labels: Sequence[Target]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """What training may see; there is no test part in it.

    Attributes:
        train: Learned from.
        val: Chosen by; may be empty.
        shots: Training patients of the rarest class.
    """

    train: Labelled
    val: Labelled
    shots: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What training chose.

    Attributes:
        best_epoch: 0 is the start, before any step.
        val_losses: Of the start and after each epoch; empty without a validation part.
        train_losses: Mean of the steps of each epoch.
    """

    best_epoch: int
    val_losses: list[float]
    train_losses: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What goes along with training and changes nothing in it.

    Attributes:
        on_epoch: Called after each epoch.
        on_resume: Called when training goes on from a checkpoint, with the number of epochs done before.
        checkpoints: Where the state of training is kept; None keeps none.
    """

    on_epoch: Callable[[], None] = lambda: None
    on_resume: Callable[[int], None] = lambda _done: None
    checkpoints: Checkpoints | None = None


ALONE = Course()
"""Nobody is told, nothing is kept."""


class KeepBest(lightning.Callback):
    """Remembers the weights with the lowest validation loss; the start takes part.

    Args:
        start_loss: Validation loss of the start.
        start_state: Weights of the start.
    """

    def __init__(self, start_loss: float, start_state: dict[str, Tensor]) -> None:
        self.losses = [start_loss]
        self.best_epoch = 0
        self.best_state = start_state

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compare the epoch that ended."""
        if not isinstance(pl_module, MilModule):
            raise TypeError(f"expected a MilModule, got {type(pl_module).__name__}")
        if pl_module.val_loss < min(self.losses):
            self.best_epoch = len(self.losses)
            self.best_state = copy.deepcopy(pl_module.aggregator.state_dict())
        self.losses.append(pl_module.val_loss)

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"losses": list(self.losses), "best_epoch": self.best_epoch, "best_state": dict(self.best_state)}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """From a checkpoint."""
        self.losses = cast("list[float]", state_dict["losses"])
        self.best_epoch = cast("int", state_dict["best_epoch"])
        self.best_state = cast("dict[str, Tensor]", state_dict["best_state"])


class TrainLosses(lightning.Callback):
    """Mean loss of the steps of each epoch, fetched once an epoch.

    Args:
        on_epoch: Called after each epoch.
    """

    def __init__(self, on_epoch: Callable[[], None]) -> None:
        self._on_epoch = on_epoch
        self.epochs: list[float] = []
        self._steps: list[Tensor] = []

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Keep the step's loss where it is."""
        if isinstance(outputs, dict):
            self._steps.append(outputs["loss"].detach())

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Average."""
        self.epochs.append(float(torch.stack(self._steps).mean()))
        self._steps.clear()
        self._on_epoch()

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint, which is made between two epochs."""
        return {"epochs": list(self.epochs)}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """From a checkpoint."""
        self.epochs = cast("list[float]", state_dict["epochs"])


def fit(
    aggregator: Aggregator,
    task: Task,
    *,
    fold: Fold,
    optimization: Optimization,
    training: Training,
    init: Init,
    course: Course = ALONE,
) -> Fitted:
    """Train in place and leave the chosen weights in the aggregator.

    Without a validation part (few-shot) the epochs are fixed and the last weights stay. With ``course.checkpoints``
    training goes on from the checkpoint that a killed one left, to the same result as one that was not killed.

    Raises:
        DamagedFileError: A slide has features that are not finite.
        DivergedError: Loss or logits are not finite though the features are.
    """
    train, val = fold.train, fold.val
    if training.max_epochs == 0:
        return Fitted(best_epoch=0, val_losses=[], train_losses=[])
    module = MilModule(aggregator, task, optimization, init, fold.shots)
    has_val = len(val.bags) > 0
    best = KeepBest(float("inf"), {})
    if has_val:
        start = torch.tensor(logits_of(aggregator, val.bags, batch_size=training.batch_size), dtype=torch.float32)
        start_loss = float(task.loss(start, torch.tensor(list(val.labels))))
        best = KeepBest(start_loss, copy.deepcopy(aggregator.state_dict()))
    losses = TrainLosses(course.on_epoch)
    batch_size = training.batch_size
    loader = train_loader(
        train.bags, train.labels, batch_size=batch_size, max_tiles=training.max_tiles, seed=training.seed
    )
    aggregator.train()  # the start was evaluated: without this, dropout would stay off
    val_batches = eval_loader(val.bags, val.labels, batch_size=batch_size) if has_val else None
    try:
        _run(module, training, course, [losses, best] if has_val else [losses], loader, val_batches)
    except NonFiniteLossError as error:
        raise in_words(error, train.bags, epoch=len(losses.epochs) + 1) from error
    aggregator.cpu()
    if has_val:
        aggregator.load_state_dict(best.best_state)
    aggregator.eval()
    return Fitted(
        best_epoch=best.best_epoch if has_val else training.max_epochs,
        val_losses=best.losses if has_val else [],
        train_losses=losses.epochs,
    )


def _run(
    module: MilModule,
    training: Training,
    course: Course,
    callbacks: list[lightning.Callback],
    loader: DataLoader[Item],
    val_batches: DataLoader[Item] | None,
) -> None:
    """Lightning's part; from the last checkpoint where there is one."""
    kept, done = course.checkpoints, 0
    files: list[StateFiles] = []
    if kept is not None:
        callbacks = [*callbacks, KeepState(kept, generators_of(loader))]
        files = [StateFiles(kept.made_by())]
        done = kept.epochs_done()
    if done:
        course.on_resume(done)
    with warnings.catch_warnings():
        quiet = (
            "does not have many workers|GPU available but not used|LeafSpec|have no `val_dataloader`|The `srun` command"
        )
        warnings.filterwarnings("ignore", message=f".*({quiet}).*")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        trainer = lightning.Trainer(
            max_epochs=training.max_epochs,
            accelerator=training.accelerator,
            devices=1,
            precision=PRECISIONS[training.precision],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=callbacks,
            # Within Slurm, Lightning would write pickles of its own when stopped, and look for them here.
            plugins=[LightningEnvironment(), *files],
            default_root_dir=None if kept is None else kept.path.parent,
        )
        trainer.fit(module, loader, val_batches, ckpt_path=kept.path if kept is not None and done else None)


@torch.inference_mode()
def logits_of(aggregator: Aggregator, bags: Sequence[Bag], *, batch_size: int) -> Float64[np.ndarray, "bag class"]:
    """Logits of bags, all tiles, in evaluation mode.

    Raises:
        DamagedFileError: A slide has features that are not finite.
        DivergedError: The logits are not finite though the features are.
    """
    aggregator.eval()
    loader = eval_loader(bags, [0] * len(bags), batch_size=batch_size)
    rows = [aggregator(batch.tiles, batch.packing).logits for batch in batches_of(loader)]
    logits = torch.cat(rows).double().numpy()
    require_finite_logits(logits, bags)
    return logits
