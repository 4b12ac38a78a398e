"""Part 4 of an aggregator, assign: tiles and prototypes find each other."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from mil.assign import Gate
from mil.packed import logsumexp_bags, softmax_bags, sum_bags
from mil.parts import Assign, Assignment, Facts, Tiles
from mil.route import required


class PrototypeAssign(Assign):
    """Relevance ``r_im = beta v_i . c_m + g(v_i)_m``; what follows from it is the subclass's.

    Args:
        facts: Given by the composition.
        beta: Factor on the cosine; None takes the encoder's. A constant.
        hidden: Of the gate g, one output a row, whose last layer starts at zero; 0 for none.
        n_rows: Of the bank, None for the words'.
    """

    def __init__(self, facts: Facts, *, beta: float | None = None, hidden: int = 0, n_rows: int | None = None) -> None:
        super().__init__()
        self.beta = facts.scale if beta is None else beta
        self.gate = None
        if hidden:
            n_rows = len(facts.named_rows[0]) if n_rows is None else n_rows
            self.gate = Gate(facts.width, hidden, n_rows, is_zero=True)

    def relevance(self, tiles: Tiles) -> Float[Tensor, "tile row"]:
        """How much each tile looks like each row."""
        relevance = self.beta * tiles.vectors @ required(tiles.prototypes).rows.T
        return relevance if self.gate is None else relevance + self.gate(tiles.vectors)

    def residuals(self) -> Iterator[nn.Parameter]:
        """The gate's last layer."""
        if self.gate is not None:
            yield from self.gate.out.parameters()


class TilesOfPrototype(PrototypeAssign):
    """Each row looks for its tiles: softmax over the tiles of a bag."""

    def forward(self, tiles: Tiles) -> Assignment:
        """Columns that sum to 1 over each bag."""
        return Assignment(weights=softmax_bags(self.relevance(tiles), tiles.packing))


class PrototypesOfTile(PrototypeAssign):
    """Each tile looks for its rows: softmax over the rows, every tile the same mass 1 / N.

    With ``beta = 1 / epsilon`` this is the E-step of a mixture of unit vectors with one spherical covariance epsilon.

    Args:
        facts: Given by the composition.
        beta: Factor on the cosine; None takes the encoder's.
        hidden: Of the gate, 0 for none.
        n_rows: Of the bank, None for the words'.
        em_steps: Times that the rows are moved toward each bag's tiles before the last assignment: to the mean of the
            tiles they have and ``prior`` times themselves.
        prior: See ``em_steps``.
    """

    def __init__(
        self,
        facts: Facts,
        *,
        beta: float | None = None,
        hidden: int = 0,
        n_rows: int | None = None,
        em_steps: int = 0,
        prior: float = 10.0,
    ) -> None:
        super().__init__(facts, beta=beta, hidden=hidden, n_rows=n_rows)
        self.em_steps = em_steps
        self.prior = prior

    def forward(self, tiles: Tiles) -> Assignment:
        """Weights that sum to 1 / N over the rows of a tile."""
        start = relevance = self.relevance(tiles)
        for _ in range(self.em_steps):
            relevance = start + self._moved(tiles, relevance.softmax(dim=1))
        sizes = tiles.packing.sizes[tiles.packing.bag_of_tile].unsqueeze(1)
        return Assignment(weights=relevance.softmax(dim=1) / sizes)

    def _moved(self, tiles: Tiles, shares: Float[Tensor, "tile row"]) -> Float[Tensor, "tile row"]:
        """What relevance gains when the rows of each bag move to where their tiles are (one row at a time)."""
        rows = required(tiles.prototypes).rows
        gains: list[Tensor] = []
        for m, row in enumerate(rows):
            pulled = sum_bags(shares[:, m : m + 1] * tiles.vectors, tiles.packing)
            new = normalize(self.prior * row + pulled, dim=-1)[tiles.packing.bag_of_tile]
            gains.append(self.beta * ((new - row) * tiles.vectors).sum(dim=1))
        return torch.stack(gains, dim=1)


class Transport(PrototypeAssign):
    """Entropic optimal transport between the tiles of a bag and the rows, both of uniform mass (Cuturi 2013).

    ``plan = argmax <plan, v c> + entropy / beta`` by Sinkhorn's iterations on logarithms; the tiles have the last turn.

    Args:
        facts: Given by the composition.
        beta: One over the entropy's weight; None takes the encoder's factor.
        hidden: Of the gate, 0 for none.
        n_rows: Of the bank, None for the words'.
        n_iterations: Of Sinkhorn; a constant, so that the plan is a differentiable function.
    """

    def __init__(
        self,
        facts: Facts,
        *,
        beta: float | None = None,
        hidden: int = 0,
        n_rows: int | None = None,
        n_iterations: int = 20,
    ) -> None:
        super().__init__(facts, beta=beta, hidden=hidden, n_rows=n_rows)
        self.n_iterations = n_iterations

    def forward(self, tiles: Tiles) -> Assignment:
        """A plan: mass 1 a bag, 1 / N a tile."""
        packing = tiles.packing
        kernel = self.relevance(tiles)
        log_mass = -packing.sizes.to(kernel).log()[packing.bag_of_tile].unsqueeze(1)
        log_tile = torch.zeros_like(log_mass)
        log_row = kernel.new_zeros((packing.n_bags, kernel.shape[1]))
        for _ in range(self.n_iterations):
            log_row = -math.log(kernel.shape[1]) - logsumexp_bags(kernel + log_tile, packing)
            log_tile = log_mass - (kernel + log_row[packing.bag_of_tile]).logsumexp(dim=1, keepdim=True)
        return Assignment(weights=(kernel + log_tile + log_row[packing.bag_of_tile]).exp())
