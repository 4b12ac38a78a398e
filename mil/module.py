"""Training of an aggregator as a Lightning module: loss, parameter groups, and the decay toward zero-shot."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import lightning
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from feature_extraction.errors import InputError
from mil.aggregator import Aggregator
from mil.bag import BagBatch
from mil.finite import DivergedError, NonFiniteLossError
from mil.parts import Init
from mil.task import Task
from mil.word_rows import word_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization:
    """How parameters move.

    Attributes:
        lr: Learning rate.
        residual_decay: Rate at which residuals of a text-initialised aggregator are pulled to zero.
        weight_decay: AdamW's decay on the matrices of an aggregator that starts at random.
        scale_lr_factor: The logit scale learns at this fraction of ``lr``.
        anchor: Loss on ``1 - cos(row, its word)``, divided by the training patients of the rarest class.
    """

    lr: float
    residual_decay: float
    weight_decay: float
    scale_lr_factor: float
    anchor: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value < math.inf:
                raise InputError(f"optimizer.{name}={value}: expected a number of at least 0")


class ProximalAdamW(torch.optim.AdamW):
    """AdamW whose groups may have a ``residual_decay``: after each step those parameters are divided by 1 + lr * decay.

    AdamW's own decay is undone by a step of constant size however large it is. The proximal step is not: as the decay
    grows the parameter goes to zero, and zero is the zero-shot model.

    Args:
        groups: As `parameter_groups` makes them.
        lr: Learning rate.

    Raises:
        DivergedError: A step would be larger than float32 holds, which torch ends with an error of its own.
    """

    def __init__(self, groups: list[dict[str, object]], lr: float) -> None:
        super().__init__(groups, lr=lr)
        for group in self.param_groups:
            longest = group["lr"] * max(1 / (1 - group["betas"][0]), group["weight_decay"])
            if longest > torch.finfo(torch.float32).max:
                raise DivergedError(
                    f"a step of {longest:.3g} is larger than float32 holds; train with a lower optimizer.lr"
                )

    # The two ignores: torch's stub says float, Lightning's closure returns a tensor.
    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step of AdamW, then the proximal step."""
        loss = super().step(closure)  # type: ignore[arg-type]
        for group in self.param_groups:
            divisor = 1 + group["lr"] * group.get("residual_decay", 0.0)
            for parameter in group["params"]:
                if divisor != 1 and parameter.grad is not None:  # AdamW, too, leaves one without a gradient alone
                    parameter.div_(divisor)
        return loss


class MilModule(lightning.LightningModule):
    """An aggregator in training.

    Args:
        aggregator: What is trained.
        task: What its logits mean.
        optimization: How it moves.
        init: Whether its zero is the text.
        shots: Training patients of the rarest class: the fewer, the stronger the anchor.
    """

    def __init__(
        self, aggregator: Aggregator, task: Task, optimization: Optimization, init: Init, shots: int = 1
    ) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.task = task
        self._optimization = optimization
        self._init: Init = init
        self._anchor = optimization.anchor / shots if init == "text" else 0.0
        self._val_logits: list[Tensor] = []
        self._val_labels: list[Tensor] = []
        self.val_loss = float("inf")

    def training_step(self, batch: BagBatch, batch_idx: int) -> Float[Tensor, ""]:
        """Loss of one packed batch.

        Raises:
            NonFiniteLossError: It is not finite; the message names the rows of the batch.
        """
        output = self.aggregator(batch.tiles, batch.packing)
        loss = self.task.loss(output.logits, batch.labels)
        loss = loss + self.aggregator.auxiliary(output, batch.labels, self.task)
        if self._anchor:
            loss = loss + self._anchor * distance_from_words(self.aggregator)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(loss.item(), batch.rows.tolist())
        return loss

    def validation_step(self, batch: BagBatch, batch_idx: int) -> None:
        """Keep the logits; the loss is computed once, over all of the part."""
        with torch.autocast(batch.tiles.device.type, enabled=False):  # as the start was, which is one of the candidates
            self._val_logits.append(self.aggregator(batch.tiles, batch.packing).logits)
        self._val_labels.append(batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Loss over the whole validation part."""
        self.val_loss = float(self.task.loss(torch.cat(self._val_logits), torch.cat(self._val_labels)))
        self._val_logits.clear()
        self._val_labels.clear()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One group for each combination of rate and decay."""
        return ProximalAdamW(
            parameter_groups(self.aggregator, self._optimization, self._init), lr=self._optimization.lr
        )

    def transfer_batch_to_device(self, batch: BagBatch, device: torch.device, dataloader_idx: int) -> BagBatch:
        """Move the tensors of a batch."""
        return batch.to(device)


def distance_from_words(aggregator: Aggregator) -> Float[Tensor, ""]:
    """Mean of ``1 - cos(row, its word)`` over every row that started from a word, zero without such rows."""
    rows = [kind for member in aggregator.of_scales() for kind in word_rows(member)]
    if not rows:
        return torch.zeros(())
    return 1 - torch.cat([cosine_similarity(kind.rows, kind.words)[kind.is_own] for kind in rows]).mean()


def parameter_groups(aggregator: Aggregator, optimization: Optimization, init: Init) -> list[dict[str, object]]:
    """Who learns how fast, and who is pulled to zero.

    From text: residuals decay by ``residual_decay``, nothing else does (a hidden layer's zero means nothing). From
    random: matrices decay by ``weight_decay``, as usual.
    """
    residuals = {id(parameter) for parameter in aggregator.residuals()} if init == "text" else set[int]()
    groups: dict[tuple[float, float, float], list[nn.Parameter]] = {}
    for name, parameter in aggregator.named_parameters():
        lr = optimization.lr * (optimization.scale_lr_factor if name.endswith("delta_log_scale") else 1.0)
        residual_decay = optimization.residual_decay if id(parameter) in residuals else 0.0
        weight_decay = optimization.weight_decay if init != "text" and parameter.ndim > 1 else 0.0
        groups.setdefault((lr, residual_decay, weight_decay), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "residual_decay": residual_decay, "weight_decay": weight_decay}
        for (lr, residual_decay, weight_decay), parameters in groups.items()
    ]
