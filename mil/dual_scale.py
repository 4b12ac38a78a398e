"""Two magnifications of a slide, each read by an aggregator of its own, their logits mixed."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mil.aggregator import Aggregator, SixParts
from mil.packed import Packing, at_scale
from mil.parts import AggregatorOutput, Assignment, Tiles
from mil.task import Targets, Task


class DualScale(Aggregator):
    """``l_k = sum_s omega_s l_sk``, omega the softmax of a parameter that starts at zero: the mean of both.

    Every layer of the output is that of each magnification: contributions and attention carry the factor omega_s, so
    that they still sum to the logit and to 1; the evidence is what a tile would say in its own magnification.

    Args:
        members: One a magnification, the finest first.
    """

    def __init__(self, members: Sequence[SixParts]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.mix = nn.Parameter(torch.zeros(len(members)))

    def forward(self, tiles: Float[Tensor, "tile dim"], packing: Packing) -> AggregatorOutput:
        """Logits of packed bags, and the share of each tile in them.

        Raises:
            InputError: The bags hold one magnification only.
        """
        shares = self.mix.softmax(dim=0)
        chosen = [at_scale(packing, scale) for scale in range(len(self.members))]
        outputs = [member(tiles[rows], own) for member, (rows, own) in zip(self.of_scales(), chosen, strict=True)]
        row_of_tile = torch.cat([rows for rows, _ in chosen]).argsort()

        def together(layers: Sequence[Tensor]) -> Tensor:
            return torch.cat(list(layers))[row_of_tile]

        attention = together([share * one.attention for share, one in zip(shares, outputs, strict=True)])
        evidence = together([one.evidence for one in outputs])
        vectors = together([one.vectors for one in outputs])
        mixed = [(share * one.logits, share * one.bias) for share, one in zip(shares, outputs, strict=True)]
        return AggregatorOutput(
            logits=torch.stack([logits for logits, _ in mixed]).sum(dim=0),
            contribution=together([share * one.contribution for share, one in zip(shares, outputs, strict=True)]),
            attention=attention,
            evidence=evidence,
            bias=torch.stack([bias for _, bias in mixed]).sum(dim=0),
            assignment=Assignment(weights=attention),
            tiles=Tiles(vectors=vectors, evidence=evidence, prototypes=None, packing=packing),
            of_scales=tuple(outputs),
        )

    def of_scales(self) -> tuple[SixParts, ...]:
        """The members."""
        return tuple(member for member in self.members if isinstance(member, SixParts))

    def pooled(self, output: AggregatorOutput) -> Float[Tensor, "bag class"]:
        """The members', mixed."""
        of_members = [member.pooled(one) for member, one in zip(self.of_scales(), output.of_scales, strict=True)]
        return torch.einsum("s,sbk->bk", self.mix.softmax(dim=0), torch.stack(of_members))

    def auxiliary(self, output: AggregatorOutput, labels: Targets, task: Task) -> Float[Tensor, ""]:
        """The mean of the members'."""
        losses = [
            member.auxiliary(one, labels, task) for member, one in zip(self.of_scales(), output.of_scales, strict=True)
        ]
        return torch.stack(losses).mean()

    def residuals(self) -> Iterator[nn.Parameter]:
        """The members', and the mix: its zero is the mean."""
        yield from super().residuals()
        yield self.mix
