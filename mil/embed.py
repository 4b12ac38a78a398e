"""Part 1 of an aggregator, embed: tiles to the vectors that are pooled."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from mil.parts import Embed, Facts


class UnitEmbed(Embed):
    """Unit vectors of the text's space, nothing trained: v = x / |x|, of backbone vectors v = norm(x P).

    Args:
        facts: Given by the composition.
    """

    projection: torch.Tensor | None
    offset: torch.Tensor | None

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        given = facts.projection
        self.width = facts.dim if given is None else given.weight.shape[1]
        self.register_buffer("projection", None if given is None else given.weight.clone())
        self.register_buffer("offset", None if given is None else given.bias.clone())

    def forward(self, tiles: Float[Tensor, "tile dim"]) -> Float[Tensor, "tile width"]:
        """Project and normalise."""
        if self.projection is not None and self.offset is not None:
            tiles = torch.addmm(self.offset, tiles, self.projection)
        return normalize(tiles, dim=-1)


class AdapterEmbed(UnitEmbed):
    """Unit vectors u with a residual adapter: v = norm(u + f(u)), f = 0 at the start.

    Args:
        facts: Given by the composition.
        hidden: Width of f's hidden layer.
        dropout: On f's hidden layer.
    """

    def __init__(self, facts: Facts, *, hidden: int, dropout: float = 0.0) -> None:
        super().__init__(facts)
        self.adapter = nn.Sequential(nn.Linear(self.width, hidden), nn.GELU(), nn.Dropout(dropout))
        self.out = nn.Linear(hidden, self.width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tiles: Float[Tensor, "tile dim"]) -> Float[Tensor, "tile width"]:
        """Normalise, adapt, normalise."""
        unit = super().forward(tiles)
        return normalize(unit + self.out(self.adapter(unit)), dim=-1)

    def residuals(self) -> Iterator[nn.Parameter]:
        """The last layer; the hidden one has no zero that means anything."""
        yield from self.out.parameters()


class StandardEmbed(Embed):
    """Each feature with mean 0 and variance 1 over the training tiles, nothing trained: one scale for any space."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.width = facts.dim
        self.register_buffer("mean", torch.zeros(facts.dim))
        self.register_buffer("deviation", torch.ones(facts.dim))

    @torch.no_grad()
    def fit(self, tiles: Float[Tensor, "tile dim"]) -> None:
        """Mean and standard deviation of each feature."""
        self.mean.copy_(tiles.mean(dim=0))
        self.deviation.copy_(tiles.std(dim=0, correction=0).clamp(min=1e-6))

    def forward(self, tiles: Float[Tensor, "tile dim"]) -> Float[Tensor, "tile width"]:
        """Standardise."""
        scale = 1 / self.deviation
        return torch.addcmul(-self.mean * scale, tiles, scale)  # one pass over the tiles instead of two


class LinearEmbed(StandardEmbed):
    """The classic start: standardise, then a random linear layer and ReLU, no text.

    Args:
        facts: Given by the composition.
        width: Of the output.
        dropout: On the output.
    """

    def __init__(self, facts: Facts, *, width: int, dropout: float = 0.0) -> None:
        super().__init__(facts)
        self.width = width
        self.layers = nn.Sequential(nn.Linear(facts.dim, width), nn.ReLU(inplace=True), nn.Dropout(dropout))

    def forward(self, tiles: Float[Tensor, "tile dim"]) -> Float[Tensor, "tile width"]:
        """Standardise and project."""
        return self.layers(super().forward(tiles))
