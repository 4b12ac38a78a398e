"""An aggregator: six parts in a row, from a bag of tiles to one logit a class, with the exact share of each tile.

    embed -> context -> (bank) -> assign -> route -> head

For attention a, tile vectors v and head weights w, the logit is ``sum_i a_ik tau v_i . w_k + b_k``: pooling the
vectors and scoring the sum is the same as scoring the tiles and pooling the scores, and each summand is a tile's
contribution.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from feature_extraction.errors import InputError
from feature_extraction.targets import construct, resolve
from mil.packed import Packing, sum_bags
from mil.parts import (
    INITS,
    AggregatorOutput,
    Assign,
    Auxiliary,
    Bank,
    Context,
    Embed,
    Facts,
    Head,
    Part,
    Route,
    Tiles,
)
from mil.task import Targets, Task

PART_KINDS: dict[str, type[Part]] = {
    "embed": Embed,
    "context": Context,
    "bank": Bank,
    "assign": Assign,
    "route": Route,
    "head": Head,
}
OPTIONAL_PARTS = ("context", "bank")
OTHER_KEYS = ("name", "init", "inits", "losses", "scales")
PACKAGES = ("mil",)


class Aggregator(nn.Module, ABC):
    """Packed tiles in, one logit a class out."""

    @abstractmethod
    def forward(self, tiles: Float[Tensor, "tile dim"], packing: Packing) -> AggregatorOutput:
        """Logits of packed bags, and the share of each tile in them."""

    @abstractmethod
    def of_scales(self) -> tuple["SixParts", ...]:
        """What reads each magnification, the finest first."""

    @abstractmethod
    def pooled(self, output: AggregatorOutput) -> Float[Tensor, "bag class"]:
        """The logits by pooling first and scoring then: what the sum of contributions is held against."""

    @abstractmethod
    def auxiliary(self, output: AggregatorOutput, labels: Targets, task: Task) -> Float[Tensor, ""]:
        """The losses besides the task's, each with its factor."""

    def fit_parts(self, *tiles: Float[Tensor, "_ dim"]) -> None:
        """Let every part take its statistics from tiles of the training part, one tensor a magnification."""
        for member, of_scale in zip(self.of_scales(), tiles, strict=True):
            member.fit_to(of_scale)

    def residuals(self) -> Iterator[nn.Parameter]:
        """Parameters whose zero means "as the text says"."""
        for member in self.of_scales():
            for part in member.parts():
                yield from part.residuals()


class SixParts(Aggregator):
    """Six parts, composed.

    Args:
        embed: Tiles to vectors.
        context: Vectors to vectors within a bag, or None.
        bank: Prototypes, or None for an aggregator without.
        assign: How much each tile counts.
        route: Which query speaks for which class.
        head: What a tile says.
        losses: Besides the task's.
    """

    def __init__(
        self,
        *,
        embed: Embed,
        context: Context | None,
        bank: Bank | None,
        assign: Assign,
        route: Route,
        head: Head,
        losses: Sequence[Auxiliary] = (),
    ) -> None:
        super().__init__()
        self.embed = embed
        self.context = context
        self.bank = bank
        self.assign = assign
        self.route = route
        self.head = head
        self.losses = nn.ModuleList(losses)

    def forward(self, tiles: Float[Tensor, "tile dim"], packing: Packing) -> AggregatorOutput:
        """Logits of packed bags, and the share of each tile in them."""
        vectors = self.embed(tiles)
        if self.context is not None:
            vectors = self.context(vectors, packing)
        seen = Tiles(
            vectors=vectors,
            evidence=self.head.evidence(vectors),
            prototypes=self.bank() if self.bank is not None else None,
            packing=packing,
        )
        assignment = self.assign(seen)
        attention = self.route(assignment, seen)
        contribution = self.head.contributions(seen, assignment, attention)
        bias = self.head.bias_row()
        return AggregatorOutput(
            logits=sum_bags(contribution, packing) + bias,
            contribution=contribution,
            attention=attention,
            evidence=seen.evidence,
            bias=bias,
            assignment=assignment,
            tiles=seen,
        )

    def of_scales(self) -> tuple["SixParts", ...]:
        """One magnification."""
        return (self,)

    def pooled(self, output: AggregatorOutput) -> Float[Tensor, "bag class"]:
        """The head's."""
        return self.head.pooled(output.tiles, output.assignment, output.attention) + output.bias

    def auxiliary(self, output: AggregatorOutput, labels: Targets, task: Task) -> Float[Tensor, ""]:
        """Their sum."""
        total = output.logits.new_zeros(())
        for loss in self.losses:
            total = total + loss.weight * loss(output, labels, task)
        return total

    def fit_to(self, tiles: Float[Tensor, "tile dim"]) -> None:
        """Let embed take its statistics from training tiles, and every other part from those tiles embedded."""
        self.embed.fit(tiles)
        with torch.no_grad():
            vectors = self.embed.eval()(tiles)
        self.embed.train(self.training)
        for part in self.parts():
            if part is not self.embed:
                part.fit(vectors)

    def parts(self) -> Iterator[Part]:
        """Every part, losses too."""
        for module in (*self.children(), *self.losses):
            if isinstance(module, Part):
                yield module


def compose(config: Mapping[str, object], facts: Facts) -> Aggregator:
    """Build the aggregator that a yaml of ``conf/aggregator`` describes.

    Args:
        config: One key a part (`PART_KINDS`), each with a ``_target_`` inside this package and that part's options, or
            such a mapping for each init; ``context`` and ``bank`` may be null. ``inits`` lists the inits it knows
            (without it: every one), ``losses`` the auxiliary losses; ``scales: 2`` builds all of it for each of two
            magnifications. ``name`` and ``init`` are for others.
        facts: What the files say; given to every part.

    Raises:
        InputError: An unknown key, a missing part, a part of the wrong kind, or an init that it does not know.
    """
    unknown = sorted(set(config) - set(PART_KINDS) - set(OTHER_KEYS))
    if unknown:
        raise InputError(f"aggregator: unknown key {', '.join(unknown)}; the parts are {', '.join(PART_KINDS)}")
    known = _listed(config, "inits")
    if known and facts.init not in known:
        raise InputError(f"aggregator.init={facts.init}: {config.get('name')} knows {', '.join(map(str, known))}")
    if n_scales(config) == 1:
        return _six_parts(config, facts)
    members = [_six_parts(config, facts) for _ in range(n_scales(config))]
    return construct({"_target_": "mil.dual_scale.DualScale"}, kind=Aggregator, packages=PACKAGES, members=members)


def n_scales(config: Mapping[str, object]) -> int:
    """How many magnifications an aggregator reads.

    Raises:
        InputError: Neither one nor two.
    """
    asked = config.get("scales", 1)
    if isinstance(asked, bool) or asked not in (1, 2):
        raise InputError(f"aggregator.scales={asked}: expected 1 or 2")
    return 1 if asked == 1 else 2


def _six_parts(config: Mapping[str, object], facts: Facts) -> SixParts:
    parts: dict[str, object] = {}
    for name, kind in PART_KINDS.items():
        options = _of_init(config.get(name), facts.init)
        if options is None and name in OPTIONAL_PARTS:
            parts[name] = None
        elif isinstance(options, Mapping):
            part = construct(options, kind=kind, packages=PACKAGES, facts=facts)
            facts = replace(facts, width=part.width) if isinstance(part, Embed) else facts
            parts[name] = part
        else:
            raise InputError(f"aggregator: needs the part {name} (a mapping with _target_), got {options!r}")
    losses = [
        construct(options, kind=Auxiliary, packages=PACKAGES, facts=facts)
        for options in _listed(config, "losses")
        if isinstance(options, Mapping)
    ]
    return construct({"_target_": "mil.aggregator.SixParts"}, kind=SixParts, packages=PACKAGES, losses=losses, **parts)


def _listed(config: Mapping[str, object], key: str) -> list[object]:
    given = config.get(key) or []
    if not isinstance(given, list):
        raise InputError(f"aggregator.{key}: expected a list, got {given!r}")
    return list(given)


def _of_init(options: object, init: object) -> object:
    """The options of this init, where a part has them for each."""
    if isinstance(options, Mapping) and options and set(options) <= set(INITS):
        return options.get(init)
    return options


def part_types(config: Mapping[str, object]) -> Iterator[type[Part]]:
    """The classes that a yaml names for its own init, losses at the end; nothing is built.

    Raises:
        InputError: It names none of the right kind.
    """
    named = [(_of_init(config.get(name), config.get("init")), kind) for name, kind in PART_KINDS.items()]
    for options, kind in (*named, *((loss, Auxiliary) for loss in _listed(config, "losses"))):
        if isinstance(options, Mapping):
            yield resolve(str(options.get("_target_")), kind=kind, packages=PACKAGES)
