"""Part 1 of an aggregator, embed: tiles to the vectors that are pooled."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from mil.parts import Embed, Facts


class UnitEmbed(Embed):
    """Unit vectors of the encoder's space, nothing trained: v = x / |x|."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.width = facts.dim

    def forward(self, tiles: Float[Tensor, "tile dim"]) -> Float[Tensor, "tile width"]:
        """Normalise."""
        return normalize(tiles, dim=-1)


class AdapterEmbed(Embed):
    """Unit vectors with a residual adapter: v = norm(x + f(x)), x of unit length, f = 0 at the start.

    Args:
        facts: Given by the composition.
        hidden: Width of f's hidden layer.
        dropout: On f's hidden layer.
    """

    def __init__(self, facts: Facts, *, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.width = facts.dim
        self.adapter = nn.Sequential(nn.Linear(facts.dim, hidden), nn.GELU(), nn.Dropout(dropout))
        self.out = nn.Linear(hidden, facts.dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tiles: Float[Tensor, "tile dim"]) -> Float[Tensor, "tile width"]:
        """Normalise, adapt, normalise."""
        unit = normalize(tiles, dim=-1)
        return normalize(unit + self.out(self.adapter(unit)), dim=-1)

    def residuals(self) -> Iterator[nn.Parameter]:
        """The last layer; the hidden one has no zero that means anything."""
        yield from self.out.parameters()


class LinearEmbed(Embed):
    """The classic start: a random linear layer and ReLU, no text.

    Args:
        facts: Given by the composition.
        width: Of the output.
        dropout: On the input and the output.
    """

    def __init__(self, facts: Facts, *, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.width = width
        # LayerNorm makes the layer see the same scale whether rows are unit length or raw backbone output.
        self.layers = nn.Sequential(
            nn.LayerNorm(facts.dim), nn.Dropout(dropout), nn.Linear(facts.dim, width), nn.ReLU(), nn.Dropout(dropout)
        )

    def forward(self, tiles: Float[Tensor, "tile dim"]) -> Float[Tensor, "tile width"]:
        """Project."""
        return self.layers(tiles)


class StandardEmbed(Embed):
    """Rows with mean 0 and variance 1 over their own values, nothing trained: one scale for any space."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.width = facts.dim
        self.norm = nn.LayerNorm(facts.dim, elementwise_affine=False)

    def forward(self, tiles: Float[Tensor, "tile dim"]) -> Float[Tensor, "tile width"]:
        """Standardise each row."""
        return self.norm(tiles)
