"""CONTRACT of the parts an aggregator is made of, and the facts every part is given.

A part is a module whose constructor takes the `Facts` and its own options from the yaml. The six kinds: `Embed`,
`Context`, `Bank`, `Assign`, `Route`, `Head`. Facts that a file knows (widths, classes, text) are never in a yaml.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mil.packed import Packing

Rule = Literal["mean", "max", "topj", "margin"]
Init = Literal["text", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """How tile scores become a slide's score.

    Attributes:
        rule: ``mean``, ``max``, ``topj`` (mean of the J largest), or ``margin`` (the same, of the margin over the
            background class).
        top_j: J; ignored by ``mean`` and ``max``.
    """

    rule: Rule
    top_j: int

    @property
    def n_chosen(self) -> int | None:
        """How many tiles of a bag count, None for all."""
        return {"mean": None, "max": 1}.get(self.rule, self.top_j)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrototypes:
    """The words of a task in the joint space, unit length.

    Attributes:
        classes: One row a class, in the order of the task.
        concepts: One row a concept of a class.
        membership: 1 where a concept (row) belongs to a class (column).
    """

    classes: Float[Tensor, "class dim"]
    concepts: Float[Tensor, "concept dim"]
    membership: Float[Tensor, "concept class"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the files say, given to every part.

    Attributes:
        dim: Width of the embeddings in the bags.
        n_classes: Number of classes of the task.
        background: Index of the class that every slide contains, None without one.
        text: The text bank, None when trained without.
        logit_scale: Natural logarithm of the encoder's factor on the cosine.
        pooling: How tile scores become a slide's score.
        init: Whether prototypes and head start from text or at random.
    """

    dim: int
    n_classes: int
    background: int | None
    text: TextPrototypes | None
    logit_scale: float
    pooling: Pooling
    init: Init

    @property
    def margin_class(self) -> int | None:
        """The class whose score is subtracted from the others', None when the rule is another."""
        return self.background if self.pooling.rule == "margin" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prototypes:
    """What the bank gives to the other parts in one forward pass.

    Attributes:
        classes: Trainable class rows.
        concepts: Trainable concept rows.
        selection: Rows that tiles are ranked by, one a class, concepts mixed in, the background subtracted.
    """

    classes: Float[Tensor, "class width"]
    concepts: Float[Tensor, "concept width"]
    selection: Float[Tensor, "class width"]


class Part(nn.Module):
    """Any part. Residuals are the parameters whose zero means "as the text says"; only they decay."""

    @torch.no_grad()
    def fit(self, tiles: Float[Tensor, "tile dim"]) -> None:
        """Take statistics from tiles of the training part, and from no other, before training."""

    def residuals(self) -> Iterator[nn.Parameter]:
        """Parameters pulled to zero by weight decay."""
        yield from ()


class Embed(Part, ABC):
    """Tiles to the vectors that are pooled.

    Attributes:
        width: Of those vectors.
    """

    width: int

    @abstractmethod
    def forward(self, tiles: Float[Tensor, "tile dim"]) -> Float[Tensor, "tile width"]:
        """Embed tiles; each row depends on its own tile only."""


class Context(Part, ABC):
    """Lets the tiles of a bag see each other."""

    @abstractmethod
    def forward(self, vectors: Float[Tensor, "tile width"], packing: Packing) -> Float[Tensor, "tile width"]:
        """Update each tile by the others of its bag."""


class Bank(Part, ABC):
    """Prototypes that tiles are compared with."""

    @abstractmethod
    def forward(self) -> Prototypes:
        """The prototypes as they are now."""


class Assign(Part, ABC):
    """How much each tile of a bag counts, for each query."""

    @abstractmethod
    def forward(
        self, vectors: Float[Tensor, "tile width"], prototypes: Prototypes | None, packing: Packing
    ) -> Float[Tensor, "tile query"]:
        """Weights that are not negative and sum to 1 over each bag."""


class Route(Part, ABC):
    """Which query speaks for which class."""

    @abstractmethod
    def forward(self, weights: Float[Tensor, "tile query"]) -> Float[Tensor, "tile class"]:
        """Attention of each class."""


class Head(Part, ABC):
    """What a tile says for each class, linear in its vector.

    Attributes:
        bias: Added to each class's sum.
    """

    @abstractmethod
    def evidence(self, vectors: Float[Tensor, "tile width"]) -> Float[Tensor, "tile class"]:
        """Score of each tile for each class."""

    @abstractmethod
    def bias_row(self) -> Float[Tensor, " class"]:
        """What is added to each class's sum."""
