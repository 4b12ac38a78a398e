"""Train several models of one configuration as one: a step of all of them costs the launches of a step of one.

On a GPU a step on small bags waits for launches, not for numbers. Here the parameters of K models (folds and seeds of
one sweep) are stacked for each step and `torch.vmap` runs all of them, each on its own batch.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from feature_extraction.errors import InputError, PromptmilError
from mil.aggregator import Aggregator
from mil.bag import BagBatch
from mil.data import batches_of, eval_loader, train_loader
from mil.finite import NonFiniteLossError, in_words
from mil.fit import Fitted, Fold, Labelled, Training
from mil.module import Optimization, ProximalAdamW, distance_from_words, parameter_groups
from mil.packed import Packing
from mil.parts import Init, Part
from mil.stacked_batches import stack_batches
from mil.task import Task

MOST_TOGETHER = 32
"""Models trained as one. With 8 bags of 4,096 tiles of width 1,024 a step of each has 0.13 GiB of tiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One of the models; all have the same parts, and tensors of the same shapes.

    Attributes:
        aggregator: At its start; trained in place.
        task: Fitted to its own training part.
        fold: What it may see.
        seed: Of the order of its bags and the draws of tiles.
    """

    aggregator: Aggregator
    task: Task
    fold: Fold
    seed: int


def apart_because(parts: Iterable[Part | type[Part]], *, n_scales: int) -> str:
    """Why models with these parts are trained one by one; empty when they can be trained as one.

    Args:
        parts: Of the aggregator.
        n_scales: Magnifications that it reads.
    """
    if n_scales > 1:
        return "which tiles are of which magnification differs from model to model"
    return next((part.apart_because for part in parts if part.apart_because), "")


def fit_together(
    members: Sequence[Member],
    *,
    optimization: Optimization,
    training: Training,
    init: Init,
    on_epoch: Callable[[], None] = lambda: None,
) -> list[Fitted | PromptmilError]:
    """Train in place and leave in each aggregator the weights that its own validation part chose.

    Each model has its own batches, draws of tiles, loss, optimiser state and best epoch, and rests when its own epoch
    is over before the others': the result is that of `mil.fit.fit` with each, within the precision of the sums. Only
    what a forward pass draws (dropout) is another draw from the same distribution, which depends on the company. When
    the device's memory does not hold all, each half begins again by itself.

    Args:
        members: At least one.
        optimization: How parameters move.
        training: How long and how wide; its seed is not used.
        init: What the aggregators start from.
        on_epoch: Called after each epoch of all.

    Returns:
        What training chose for each; for a model whose loss was not finite the error, which costs no other model.

    Raises:
        InputError: The aggregators have a part that cannot be trained as one, or there is no such device.
        torch.OutOfMemoryError: The device does not hold one model's step.
    """
    first = members[0].aggregator
    reason = apart_because(
        (part for part in first.modules() if isinstance(part, Part)), n_scales=len(first.of_scales())
    )
    if reason:
        raise InputError(f"these models cannot be trained as one: {reason}; use parallel=1")
    if training.max_epochs == 0:
        return [Fitted(best_epoch=0, val_losses=[], train_losses=[]) for _ in members]
    starts = [copy.deepcopy(member.aggregator.state_dict()) for member in members]
    try:
        return _fit(members, optimization, training, init, on_epoch)
    except torch.OutOfMemoryError:
        if len(members) == 1:
            raise
    for member, start in zip(members, starts, strict=True):  # not in the handler, which would keep the tensors alive
        member.aggregator.cpu().load_state_dict(start)
    half = len(members) // 2
    return [
        fitted
        for some in (members[:half], members[half:])
        for fitted in fit_together(some, optimization=optimization, training=training, init=init, on_epoch=on_epoch)
    ]


def _fit(
    members: Sequence[Member],
    optimization: Optimization,
    training: Training,
    init: Init,
    on_epoch: Callable[[], None],
) -> list[Fitted | PromptmilError]:
    device = device_of(training.accelerator)
    models = [_Model(member, training, device) for member in members]
    together = _Together(models, optimization, training, init)
    for _ in range(training.max_epochs):
        together.epoch()
        for model in models:
            model.end_epoch()
        on_epoch()
    return [model.fitted() for model in models]


def device_of(accelerator: str) -> torch.device:
    """The device that Lightning's name of an accelerator means.

    Raises:
        InputError: There is none.
    """
    if accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available()):
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        raise InputError(f"trainer.accelerator={accelerator}: this machine has none; use trainer.accelerator=cpu")
    return found


class _Model:
    """One member in training: its batches, its losses and the best weights so far.

    Args:
        member: Which.
        training: How long and how wide.
        device: Where it is trained.
    """

    def __init__(self, member: Member, training: Training, device: torch.device) -> None:
        self.member = member
        self.aggregator = member.aggregator.to(device)
        self.step_losses: list[Tensor] = []
        self.failure: PromptmilError | None = None
        self._device = device
        self._batch_size = training.batch_size
        self._train_losses: list[float] = []
        train = member.fold.train
        self._loader = train_loader(
            train.bags, train.labels, batch_size=training.batch_size, max_tiles=training.max_tiles, seed=member.seed
        )
        self._val_losses = [self._val_loss(member.fold.val)] if member.fold.val.bags else []
        self._best_epoch = 0
        self._best_state = copy.deepcopy(self.aggregator.state_dict())

    def batches(self) -> Iterator[BagBatch]:
        """Of the next epoch; none after a failure."""
        n_batches = 0 if self.failure is not None else len(self._loader)
        # Like Lightning, never asked for one more than there are: at its end the sampler draws another order.
        return islice(batches_of(self._loader), n_batches)

    def anchor(self, strength: float) -> Tensor | float:
        """Of its rows to their words."""
        return strength / self.member.fold.shots * distance_from_words(self.aggregator) if strength else 0.0

    def fail(self, error: NonFiniteLossError) -> None:
        """Train no further; the error names the slides."""
        self.failure = in_words(error, self.member.fold.train.bags, epoch=len(self._train_losses) + 1)

    def end_epoch(self) -> None:
        """Average the steps, ask the validation part, and keep what is best."""
        if self.failure is not None:
            return
        self._train_losses.append(float(torch.stack(self.step_losses).mean()))
        self.step_losses.clear()
        if not self._val_losses:
            return
        loss = self._val_loss(self.member.fold.val)
        if loss < min(self._val_losses):
            self._best_epoch = len(self._val_losses)
            self._best_state = copy.deepcopy(self.aggregator.state_dict())
        self._val_losses.append(loss)

    def fitted(self) -> Fitted | PromptmilError:
        """What was chosen; its weights are in the aggregator, on the CPU."""
        self.aggregator.cpu().eval()
        self.aggregator.zero_grad()
        if self.failure is not None:
            return self.failure
        if self._val_losses:
            self.aggregator.load_state_dict(self._best_state)
        return Fitted(
            best_epoch=self._best_epoch if self._val_losses else len(self._train_losses),
            val_losses=self._val_losses,
            train_losses=self._train_losses,
        )

    @torch.no_grad()
    def _val_loss(self, val: Labelled) -> float:
        """Over the whole part: all tiles, evaluation mode, float32."""
        self.aggregator.eval()
        logits: list[Tensor] = []
        for batch in batches_of(eval_loader(val.bags, val.labels, batch_size=self._batch_size)):
            here = batch.to(self._device)
            logits.append(self.aggregator(here.tiles, here.packing).logits)
        return float(self.member.task.loss(torch.cat(logits), torch.tensor(list(val.labels), device=self._device)))


class _Together:
    """The steps of all models.

    Args:
        models: On their device.
        optimization: How parameters move.
        training: How long and how wide.
        init: What the aggregators start from.
    """

    def __init__(self, models: Sequence[_Model], optimization: Optimization, training: Training, init: Init) -> None:
        self._models = models
        self._is_bf16 = training.precision == "bf16"
        self._parameters = [dict(model.aggregator.named_parameters()) for model in models]
        self._buffers = [dict(model.aggregator.named_buffers()) for model in models]
        first, *others = self._buffers
        # Not stacked: what is the same for all may decide about shapes, which under vmap it could not.
        self._shared = {name for name, one in first.items() if all(torch.equal(one, other[name]) for other in others)}
        groups = zip(*(parameter_groups(model.aggregator, optimization, init) for model in models), strict=True)
        merged = [group[0] | {"params": [p for one in group for p in _listed(one["params"])]} for group in groups]
        self._anchor = optimization.anchor if init == "text" else 0.0
        self._optimizer = ProximalAdamW(merged, lr=optimization.lr)

    def epoch(self) -> None:
        """One epoch of each model; who is through before the others rests."""
        for model in self._models:
            model.aggregator.train()
        streams = [model.batches() for model in self._models]
        for batches in zip_longest(*streams):
            batch_of = {k: batch for k, batch in enumerate(batches) if batch and self._models[k].failure is None}
            if batch_of:
                self._step(batch_of)

    def _step(self, batch_of: dict[int, BagBatch]) -> None:
        """Move the models that have a batch; the others have no gradient and do not move at all."""
        self._optimizer.zero_grad()
        device = next(iter(self._parameters[0].values())).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._is_bf16):
            logits = self._logits(batch_of, device)
            losses = [
                self._models[k].member.task.loss(row[: batch.packing.n_bags], batch.labels.to(device))
                + self._models[k].anchor(self._anchor)
                for row, (k, batch) in zip(logits, batch_of.items(), strict=True)
            ]
        stacked = torch.stack(losses)
        is_finite = torch.isfinite(stacked.detach()).tolist()
        for is_number, loss, (k, batch) in zip(is_finite, losses, batch_of.items(), strict=True):
            model = self._models[k]
            model.step_losses.append(loss.detach())
            if not is_number:
                model.fail(NonFiniteLossError(loss.item(), batch.rows.tolist()))
        stacked.sum().backward()  # a loss that is no number reaches the parameters of its own model only
        self._optimizer.step()

    def _logits(self, batch_of: dict[int, BagBatch], device: torch.device) -> Float[Tensor, "model bag class"]:
        """Logits of the batches, each by its own model; the rows after a batch's own are of no bag."""
        skeleton = self._models[0].aggregator
        parameters = {name: torch.stack([self._parameters[k][name] for k in batch_of]) for name in self._parameters[0]}
        buffers = {
            name: one if name in self._shared else torch.stack([self._buffers[k][name] for k in batch_of])
            for name, one in self._buffers[0].items()
        }

        def logits_of_one(
            weights: dict[str, Tensor],
            constants: dict[str, Tensor],
            tiles: Float[Tensor, "tile dim"],
            offsets: Int[Tensor, " bag_and_end"],
            bag_of_tile: Int[Tensor, " tile"],
        ) -> Tensor:
            packing = Packing(offsets=offsets, bag_of_tile=bag_of_tile, is_stacked=True)
            return functional_call(skeleton, (weights, constants), (tiles, packing)).logits

        in_dims = (0, {name: None if name in self._shared else 0 for name in buffers}, 0, 0, 0)
        tiles, offsets, bag_of_tile = (one.to(device) for one in stack_batches(list(batch_of.values())))
        run = torch.vmap(logits_of_one, in_dims=in_dims, randomness="different")
        return run(parameters, buffers, tiles, offsets, bag_of_tile)


def _listed(parameters: object) -> list[object]:
    return list(parameters) if isinstance(parameters, list) else []
