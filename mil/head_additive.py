"""Part 6 of an aggregator, head: what is additive in the tiles without being linear in them."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from feature_extraction.errors import InputError
from mil.head import LinearHead, TextHead
from mil.packed import sum_bags
from mil.parts import Assignment, Facts, Head, Tiles

TERMS = ("mean", "share", "shift", "spread")
"""Parts of a `MixtureHead`."""


class AdditiveHead(Head):
    """Each weighted tile is classified and the classifications are summed (Javed et al. 2022, arXiv 2206.01794).

    ``c_ik = a_ik e_ik + psi(a_ik v_i)_k`` with a linear part e (the words, or a random layer) and a network psi whose
    last layer is zero at a text start.

    Args:
        facts: Given by the composition.
        hidden: Of psi.
    """

    def __init__(self, facts: Facts, *, hidden: int) -> None:
        super().__init__()
        self.linear = TextHead(facts) if facts.init == "text" else LinearHead(facts)
        self.starts_at_zero = facts.init == "text"
        self.margin_class = facts.margin_class
        self.hidden = nn.Sequential(nn.Linear(facts.width, hidden), nn.GELU())
        self.out = nn.Linear(hidden, facts.n_classes, bias=False)
        if self.starts_at_zero:
            nn.init.zeros_(self.out.weight)

    def evidence(self, vectors: Float[Tensor, "tile width"]) -> Float[Tensor, "tile class"]:
        """What the tile would say with all the attention."""
        return self.linear.evidence(vectors) + self._psi(vectors)

    def bias_row(self) -> Float[Tensor, " class"]:
        """Of the linear part."""
        return self.linear.bias_row()

    def contributions(
        self, tiles: Tiles, assignment: Assignment, attention: Float[Tensor, "tile class"]
    ) -> Float[Tensor, "tile class"]:
        """c_ik: exact, and no multiple of the evidence."""
        curved = [self._psi(a.unsqueeze(1) * tiles.vectors)[:, k] for k, a in enumerate(attention.T)]
        return attention * self.linear.evidence(tiles.vectors) + torch.stack(curved, dim=1)

    def pooled(
        self, tiles: Tiles, assignment: Assignment, attention: Float[Tensor, "tile class"]
    ) -> Float[Tensor, "bag class"]:
        """The linear part of the pooled vector, and the sum of the rest."""
        curved = [self._psi(a.unsqueeze(1) * tiles.vectors)[:, k] for k, a in enumerate(attention.T)]
        return self.linear.pooled(tiles, assignment, attention) + sum_bags(torch.stack(curved, dim=1), tiles.packing)

    def residuals(self) -> Iterator[nn.Parameter]:
        """The linear part's, and psi's last layer."""
        if self.starts_at_zero:
            yield from (*self.linear.residuals(), *self.out.parameters())

    def _psi(self, vectors: Float[Tensor, "tile width"]) -> Float[Tensor, "tile class"]:
        """Psi less its value at zero: a tile without attention says nothing, nor does any for a margin's background."""
        curved = self.out(self.hidden(vectors) - self.hidden(vectors.new_zeros((1, vectors.shape[1]))))
        if self.margin_class is None or not self.starts_at_zero:
            return curved
        keep = torch.ones(curved.shape[1]).to(curved)
        keep[self.margin_class] = 0
        return curved * keep


class MixtureHead(Head):
    """A linear score of a mixture: of how much of it there is, where it lies and how wide it is, for each prototype.

    ``l_k = sum_m pi_m (alpha_mk + w_mk . mu_m + gamma_mk . var_m) + b_k`` with ``pi_m = sum_i A_im``, ``mu_m`` and
    ``var_m`` the weighted mean and variance of the tiles of prototype m (PANTHER: Song et al. 2024, arXiv 2405.11643).
    Given the assignment A it is a sum over the tiles, ``c_ik = sum_m A_im (alpha_mk + w_mk . v_i + gamma_mk . (v_i -
    mu_m)^2)``. At a text start ``w_mk`` is tau times class k's word for every m, and alpha = gamma = 0.

    Args:
        facts: Given by the composition.
        n_rows: Of the bank, None for the words'.
        terms: Which parts there are: ``mean``, what w has in common for all m (from the words, or random); ``share``,
            alpha; ``shift``, what w_mk adds for one m; ``spread``, gamma.

    Raises:
        InputError: An unknown term.
    """

    keep: torch.Tensor

    def __init__(self, facts: Facts, *, n_rows: int | None = None, terms: Sequence[str] = TERMS) -> None:
        super().__init__()
        if not terms or not set(terms) <= set(TERMS):
            raise InputError(f"aggregator.head.terms={list(terms)}: expected some of {', '.join(TERMS)}")
        n_rows = len(facts.named_rows[0]) if n_rows is None else n_rows
        self.starts_at_zero = facts.init == "text"
        self.linear = None
        if "mean" in terms:
            self.linear = TextHead(facts) if self.starts_at_zero else LinearHead(facts)
        keep = torch.ones(facts.n_classes)
        if self.starts_at_zero and facts.margin_class is not None:
            keep[facts.margin_class] = 0
        self.register_buffer("keep", keep)
        shapes = {"share": (), "shift": (facts.width,), "spread": (facts.width,)}
        self.weights = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros(n_rows, facts.n_classes, *shape))
                for name, shape in shapes.items()
                if name in terms
            }
        )

    def evidence(self, vectors: Float[Tensor, "tile width"]) -> Float[Tensor, "tile class"]:
        """The part that is the same for every prototype."""
        return vectors.new_zeros(len(vectors), len(self.keep)) if self.linear is None else self.linear.evidence(vectors)

    def bias_row(self) -> Float[Tensor, " class"]:
        """Of that part; zero without it."""
        return self.keep * 0 if self.linear is None else self.linear.bias_row()

    def contributions(
        self, tiles: Tiles, assignment: Assignment, attention: Float[Tensor, "tile class"]
    ) -> Float[Tensor, "tile class"]:
        """c_ik, exact given the assignment."""
        total = assignment.weights.sum(dim=1, keepdim=True) * tiles.evidence
        for m, weight in enumerate(assignment.weights.T):
            mean, _ = self._moments(tiles, weight.unsqueeze(1))
            off = (tiles.vectors - mean[tiles.packing.bag_of_tile]).square()
            total = total + weight.unsqueeze(1) * self._own(m, tiles.vectors, off) * self.keep
        return total

    def pooled(
        self, tiles: Tiles, assignment: Assignment, attention: Float[Tensor, "tile class"]
    ) -> Float[Tensor, "bag class"]:
        """From the mixture's own numbers."""
        logits = self.evidence(sum_bags(assignment.weights.sum(dim=1, keepdim=True) * tiles.vectors, tiles.packing))
        for m, weight in enumerate(assignment.weights.T):
            mean, variance = self._moments(tiles, weight.unsqueeze(1))
            amount = sum_bags(weight.unsqueeze(1), tiles.packing)
            logits = logits + amount * self._own(m, mean, variance) * self.keep
        return logits

    def _own(
        self, m: int, place: Float[Tensor, "row width"], square: Float[Tensor, "row width"]
    ) -> Float[Tensor, "row class"]:
        """``alpha_mk + w_mk . place + gamma_mk . square`` of prototype m, without the part that all have."""
        own = place.new_zeros(len(place), len(self.keep))
        if "share" in self.weights:
            own = own + self.weights["share"][m]
        if "shift" in self.weights:
            own = own + place @ self.weights["shift"][m].T
        if "spread" in self.weights:
            own = own + square @ self.weights["spread"][m].T
        return own

    def _moments(
        self, tiles: Tiles, weight: Float[Tensor, "tile 1"]
    ) -> tuple[Float[Tensor, "bag width"], Float[Tensor, "bag width"]]:
        """Weighted mean and variance of each bag's tiles."""
        amount = sum_bags(weight, tiles.packing).clamp(min=1e-12)
        mean = sum_bags(weight * tiles.vectors, tiles.packing) / amount
        square = sum_bags(weight * tiles.vectors.square(), tiles.packing) / amount
        return mean, square - mean.square()

    def residuals(self) -> Iterator[nn.Parameter]:
        """Everything trainable: zero is the text."""
        if self.starts_at_zero:
            yield from self.weights.values()
            if self.linear is not None:
                yield from self.linear.residuals()
