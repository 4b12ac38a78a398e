"""CONTRACT of the parts an aggregator is made of, and the facts every part is given.

A part is a module whose constructor takes the `Facts` and its own options from the yaml. The six kinds: `Embed`,
`Context`, `Bank`, `Assign`, `Route`, `Head`; and `Auxiliary`, a loss besides the task's. Facts that a file knows
(widths, classes, text) are never in a yaml.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from feature_extraction.encoder import Projection
from feature_extraction.errors import InputError
from mil.packed import Packing, sum_bags
from mil.task import Targets, Task

Rule = Literal["mean", "max", "topj", "margin"]
Init = Literal["text", "random", "kmeans"]
INITS: tuple[Init, ...] = ("text", "random", "kmeans")


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
        width: Width of the vectors that come from embed.
        n_classes: Number of classes of the task.
        background: Index of the class that every slide contains, None without one.
        text: The text bank, None when trained without.
        logit_scale: Natural logarithm of the encoder's factor on the cosine.
        pooling: How tile scores become a slide's score.
        init: Whether prototypes and head start from text, at random or (prototypes only) from clusters of tiles.
        projection: Takes the embeddings in the bags to the space of the text, None when they are in it already.
    """

    dim: int
    width: int
    n_classes: int
    background: int | None
    text: TextPrototypes | None
    logit_scale: float
    pooling: Pooling
    init: Init
    projection: Projection | None = None

    @property
    def named_rows(self) -> tuple[Float[Tensor, "row dim"], Float[Tensor, "row class"]]:
        """What speaks for the classes, and for which: their concepts, or the name of a class that has none.

        Raises:
            InputError: There are no words.
        """
        if self.text is None:
            raise InputError("this aggregator's prototypes are words: give bank=… (made with `promptmil prompts`)")
        unnamed = (self.text.membership.sum(dim=0) == 0).nonzero()[:, 0]
        rows = torch.cat([self.text.concepts, self.text.classes[unnamed]])
        own = torch.eye(self.n_classes, device=rows.device)[unnamed]
        return rows, torch.cat([self.text.membership, own])

    @property
    def scale(self) -> float:
        """The encoder's factor on the cosine."""
        return math.exp(self.logit_scale)

    @property
    def margin_class(self) -> int | None:
        """The class whose score is subtracted from the others', None when the rule is another."""
        return self.background if self.pooling.rule == "margin" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prototypes:
    """What the bank gives to the other parts in one forward pass.

    Attributes:
        rows: What tiles are compared with.
        membership: 1 where a row speaks for a class; a row without one speaks for none in particular.
        classes: Class rows; None when the rows have no names.
        concepts: Concept rows; None when the rows have no names.
        selection: Rows that tiles are ranked by, one a class, concepts mixed in, the background subtracted; None when
            the rows have no names.
    """

    rows: Float[Tensor, "row width"]
    membership: Float[Tensor, "row class"]
    classes: Float[Tensor, "class width"] | None = None
    concepts: Float[Tensor, "concept width"] | None = None
    selection: Float[Tensor, "class width"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """What is known of the tiles of some bags when they are weighed.

    Attributes:
        vectors: v_i.
        evidence: e_ik, what tile i would say for class k if it counted fully.
        prototypes: Of the bank, None without one.
        packing: Which tile belongs to which bag.
    """

    vectors: Float[Tensor, "tile width"]
    evidence: Float[Tensor, "tile class"]
    prototypes: Prototypes | None
    packing: Packing


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """How much each tile counts.

    Attributes:
        weights: Not negative, one column a query; all of a bag's or each of its columns sums to 1.
        groups: For two tiers: the pseudo-bag of each tile, numbered through all bags.
        in_group: For two tiers: weight of each tile in its pseudo-bag.
    """

    weights: Float[Tensor, "tile query"]
    groups: Int[Tensor, " tile"] | None = None
    in_group: Float[Tensor, "tile query"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorOutput:
    """What every aggregator returns.

    Attributes:
        logits: One a class for each bag.
        contribution: c_ik; over the tiles of a bag they sum to the logit less the bias.
        attention: a_ik, not negative.
        evidence: e_ik, what tile i would say for class k if it counted fully.
        bias: b_k.
        assignment: How much each tile counts for each query; of several magnifications: the attention.
        tiles: What the attention was computed from.
        of_scales: The output of each magnification, where there are several.
    """

    logits: Float[Tensor, "bag class"]
    contribution: Float[Tensor, "tile class"]
    attention: Float[Tensor, "tile class"]
    evidence: Float[Tensor, "tile class"]
    bias: Float[Tensor, " class"]
    assignment: Assignment
    tiles: Tiles
    of_scales: tuple["AggregatorOutput", ...] = ()

    @property
    def vectors(self) -> Float[Tensor, "tile width"]:
        """v_i."""
        return self.tiles.vectors

    @property
    def packing(self) -> Packing:
        """Which tile belongs to which bag."""
        return self.tiles.packing


class Part(nn.Module):
    """Any part. Residuals are the parameters whose zero means "as the text says"; only they decay.

    Attributes:
        apart_because: Why models with this part are not trained as one (`mil.stacked`); empty when they are.
    """

    apart_because: ClassVar[str] = ""

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
    def forward(self, tiles: Tiles) -> Assignment:
        """Weigh the tiles."""


class Route(Part, ABC):
    """Which query speaks for which class."""

    @abstractmethod
    def forward(self, assignment: Assignment, tiles: Tiles) -> Float[Tensor, "tile class"]:
        """Attention of each class: not negative, sums to 1 over a bag, or to less where a class may have few tiles."""


class Head(Part, ABC):
    """What a tile says for each class; linear in its vector unless a head says otherwise."""

    @abstractmethod
    def evidence(self, vectors: Float[Tensor, "tile width"]) -> Float[Tensor, "tile class"]:
        """Score of each tile for each class."""

    @abstractmethod
    def bias_row(self) -> Float[Tensor, " class"]:
        """What is added to each class's sum."""

    def contributions(
        self, tiles: Tiles, assignment: Assignment, attention: Float[Tensor, "tile class"]
    ) -> Float[Tensor, "tile class"]:
        """c_ik = a_ik e_ik, for a linear head."""
        return attention * tiles.evidence

    def pooled(
        self, tiles: Tiles, assignment: Assignment, attention: Float[Tensor, "tile class"]
    ) -> Float[Tensor, "bag class"]:
        """The logits less the bias by pooling first and scoring then: what the sum of contributions is held against."""
        columns = [
            self.evidence(sum_bags(weight.unsqueeze(1) * tiles.vectors, tiles.packing))[:, k]
            for k, weight in enumerate(attention.T)
        ]
        return torch.stack(columns, dim=1)


class Auxiliary(Part, ABC):
    """A loss besides the task's, in training only.

    Attributes:
        weight: Its factor.
    """

    weight: float
    apart_because: ClassVar[str] = "a loss besides the task's looks at one bag after the other"

    @abstractmethod
    def forward(self, output: AggregatorOutput, labels: Targets, task: Task) -> Float[Tensor, ""]:
        """The loss of a batch, before its factor."""
