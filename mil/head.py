"""Part 6 of an aggregator, head: what a tile says for each class, linear in its vector."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from feature_extraction.errors import InputError
from mil.parts import Facts, Head

SCALE_RANGE = (0.0, math.log(200.0))
"""Limits of the logarithm of the scale in training."""


class TextHead(Head):
    """Class words as weights: e = tau v . w, w_k = t_k + Delta_k, Delta = b = 0 at the start, tau from the encoder.

    Under the margin rule ``w_k = (t_k - t_n) + Delta_k``, not normalised again, and the background class n has the
    logit 0 by definition: no row of Delta, no bias. With ``init=random`` the words are random unit vectors.

    Args:
        facts: Given by the composition.
    """

    base: torch.Tensor
    is_trained: torch.Tensor

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        if facts.text is None:
            raise InputError("this head starts from words: give bank=… (made with `promptmil prompts`)")
        words = facts.text.classes
        if facts.init == "random":
            words = normalize(torch.randn_like(words), dim=-1)
        is_trained = torch.ones(facts.n_classes, 1)
        if facts.margin_class is not None:
            words = words - words[facts.margin_class]
            is_trained[facts.margin_class] = 0
        self.log_scale = facts.logit_scale
        self.register_buffer("base", words.clone())
        self.register_buffer("is_trained", is_trained)
        self.delta = nn.Parameter(torch.zeros_like(words))
        self.bias = nn.Parameter(torch.zeros(facts.n_classes))
        self.delta_log_scale = nn.Parameter(torch.zeros(()))

    def scale(self) -> Float[Tensor, ""]:
        """Tau as it is now."""
        return (self.log_scale + self.delta_log_scale).clamp(*SCALE_RANGE).exp()

    def evidence(self, vectors: Float[Tensor, "tile width"]) -> Float[Tensor, "tile class"]:
        """Tau times the projection on each class's weight."""
        return self.scale() * (vectors @ (self.base + self.is_trained * self.delta).T)

    def bias_row(self) -> Float[Tensor, " class"]:
        """One number a class, 0 for the background under the margin rule."""
        return self.bias * self.is_trained[:, 0]

    def residuals(self) -> Iterator[nn.Parameter]:
        """Everything trainable: zero is the text."""
        yield from (self.delta, self.bias, self.delta_log_scale)


class LinearHead(Head):
    """The classic start: a random linear layer.

    Args:
        facts: Given by the composition.
    """

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.linear = nn.Linear(facts.width, facts.n_classes)

    def evidence(self, vectors: Float[Tensor, "tile width"]) -> Float[Tensor, "tile class"]:
        """Projection on each class's weight."""
        return vectors @ self.linear.weight.T

    def bias_row(self) -> Float[Tensor, " class"]:
        """One number a class."""
        return self.linear.bias
