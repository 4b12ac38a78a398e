"""NaN and inf in training: which slide they come from, in words for people."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from feature_extraction.errors import DamagedFileError, PromptmilError
from mil.bag import Bag


class DivergedError(PromptmilError):
    """Training left the finite numbers, from features that are finite."""


class NonFiniteLossError(FloatingPointError):
    """The loss of a step is not a finite number; `in_words` says it for people.

    Attributes:
        loss: The loss.
        rows: Of the batch: index of each bag in the data it came from.
    """

    def __init__(self, loss: float, rows: list[int]) -> None:
        super().__init__(f"the loss is {loss} on the bags {rows}")
        self.loss = loss
        self.rows = rows


def require_finite(bags: Sequence[Bag]) -> None:
    """Refuse features that are not finite. Reads every tile: asked when a result shows that something is not.

    Raises:
        DamagedFileError: The message names the first slide.
    """
    for bag in [of_scale for one in bags for of_scale in one.scales()]:
        is_bad = ~np.isfinite(bag.features).all(axis=1)
        if is_bad.any():
            raise DamagedFileError(
                f"slide={bag.slide_id}: {is_bad.sum()} of its {len(bag)} tiles have nan or inf in their features, the "
                f"first is row {is_bad.argmax()}; delete its feature file and extract the slide again, or leave it out"
            )


def require_finite_logits(logits: Float64[np.ndarray, "bag class"], bags: Sequence[Bag]) -> None:
    """Refuse logits that are not finite.

    Raises:
        DamagedFileError: The features of such a slide are not finite.
        DivergedError: They are, so the weights are not.
    """
    bad = [bags[int(row)] for row in np.flatnonzero(~np.isfinite(logits).all(axis=1))]
    if bad:
        require_finite(bad)
        raise DivergedError(
            f"slide={bad[0].slide_id}: its logits are not finite though its features are; train with a lower "
            "optimizer.lr, or with trainer.precision=float32"
        )


def in_words(error: NonFiniteLossError, bags: Sequence[Bag], *, epoch: int) -> PromptmilError:
    """The slide at fault; the slides of the batch when all their features are finite.

    Args:
        error: What the step raised.
        bags: The training part.
        epoch: That did not end, from 1.
    """
    batch = [bags[row] for row in error.rows]
    try:
        require_finite(batch)
    except DamagedFileError as damaged:
        return damaged
    names = ", ".join(f"slide={bag.slide_id}" for bag in batch)
    return DivergedError(
        f"{names}: the loss of this batch is {error.loss} in epoch {epoch}, though the features are finite; "
        "train with a lower optimizer.lr, or with trainer.precision=float32"
    )
