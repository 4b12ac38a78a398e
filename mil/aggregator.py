"""An aggregator: six parts in a row, from a bag of tiles to one logit a class, with the exact share of each tile.

    embed -> context -> (bank) -> assign -> route -> head

For attention a, tile vectors v and head weights w, the logit is ``sum_i a_ik tau v_i . w_k + b_k``: pooling the
vectors and scoring the sum is the same as scoring the tiles and pooling the scores, and each summand is a tile's
contribution.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from feature_extraction.errors import InputError
from feature_extraction.targets import construct
from mil.packed import Packing, sum_bags
from mil.parts import Assign, Bank, Context, Embed, Facts, Head, Part, Route

PART_KINDS: dict[str, type[Part]] = {
    "embed": Embed,
    "context": Context,
    "bank": Bank,
    "assign": Assign,
    "route": Route,
    "head": Head,
}
OPTIONAL_PARTS = ("context", "bank")
PACKAGES = ("mil",)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorOutput:
    """What every aggregator returns.

    Attributes:
        logits: One a class for each bag.
        attention: a_ik, not negative, sums to 1 over the tiles of a bag for each class.
        evidence: e_ik = tau v_i . w_k, what tile i would say for class k if it counted fully.
        bias: b_k.
        vectors: v_i.
        packing: Which tile belongs to which bag.
    """

    logits: Float[Tensor, "bag class"]
    attention: Float[Tensor, "tile class"]
    evidence: Float[Tensor, "tile class"]
    bias: Float[Tensor, " class"]
    vectors: Float[Tensor, "tile width"]
    packing: Packing

    def contributions(self) -> Float[Tensor, "tile class"]:
        """c_ik = a_ik e_ik; over the tiles of a bag they sum to the logit less the bias."""
        return self.attention * self.evidence

    def bag_vectors(self) -> Float[Tensor, "bag class width"]:
        """z_k = sum_i a_ik v_i."""
        return torch.stack([sum_bags(a.unsqueeze(1) * self.vectors, self.packing) for a in self.attention.T], dim=1)


class Aggregator(nn.Module):
    """Six parts, composed.

    Args:
        embed: Tiles to vectors.
        context: Vectors to vectors within a bag, or None.
        bank: Prototypes, or None for an aggregator without.
        assign: How much each tile counts.
        route: Which query speaks for which class.
        head: What a tile says.
    """

    def __init__(
        self, *, embed: Embed, context: Context | None, bank: Bank | None, assign: Assign, route: Route, head: Head
    ) -> None:
        super().__init__()
        self.embed = embed
        self.context = context
        self.bank = bank
        self.assign = assign
        self.route = route
        self.head = head

    def forward(self, tiles: Float[Tensor, "tile dim"], packing: Packing) -> AggregatorOutput:
        """Logits of packed bags, and the share of each tile in them."""
        vectors = self.embed(tiles)
        if self.context is not None:
            vectors = self.context(vectors, packing)
        prototypes = self.bank() if self.bank is not None else None
        attention = self.route(self.assign(vectors, prototypes, packing))
        evidence = self.head.evidence(vectors)
        bias = self.head.bias_row()
        return AggregatorOutput(
            logits=sum_bags(attention * evidence, packing) + bias,
            attention=attention,
            evidence=evidence,
            bias=bias,
            vectors=vectors,
            packing=packing,
        )

    def fit_parts(self, tiles: Float[Tensor, "tile dim"]) -> None:
        """Let every part take its statistics from tiles of the training part."""
        for module in self.children():
            if isinstance(module, Part):
                module.fit(tiles)

    def residuals(self) -> Iterator[nn.Parameter]:
        """Parameters whose zero means "as the text says"."""
        for module in self.children():
            if isinstance(module, Part):
                yield from module.residuals()


def compose(config: Mapping[str, object], facts: Facts) -> Aggregator:
    """Build the aggregator that a yaml of ``conf/aggregator`` describes.

    Args:
        config: One key a part (`PART_KINDS`), each with a ``_target_`` inside this package and that part's options;
            ``context`` and ``bank`` may be null. The keys ``name`` and ``init`` are not parts.
        facts: What the files say; given to every part.

    Raises:
        InputError: An unknown key, a missing part, or a part of the wrong kind.
    """
    unknown = sorted(set(config) - set(PART_KINDS) - {"name", "init"})
    if unknown:
        raise InputError(f"aggregator: unknown key {', '.join(unknown)}; the parts are {', '.join(PART_KINDS)}")
    parts: dict[str, Part | None] = {}
    for name, kind in PART_KINDS.items():
        options = config.get(name)
        if options is None and name in OPTIONAL_PARTS:
            parts[name] = None
        elif isinstance(options, Mapping):
            parts[name] = construct(options, kind=kind, packages=PACKAGES, facts=facts)
        else:
            raise InputError(f"aggregator: needs the part {name} (a mapping with _target_), got {options!r}")
    return construct({"_target_": "mil.aggregator.Aggregator"}, kind=Aggregator, packages=PACKAGES, **parts)
