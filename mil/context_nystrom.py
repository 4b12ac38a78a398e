"""Part 2 of an aggregator, context: attention through landmarks and a convolution of positions, linear in the tiles.

TransMIL (Shao et al. 2021, arXiv 2106.00908): layer, convolution on a square of tiles, layer, layer norm. The attention
is Nystrom's (Xiong et al. 2021, arXiv 2102.03902).
"""

import math
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, scaled_dot_product_attention

from feature_extraction.errors import InputError
from mil.context import ResidualContext
from mil.packed import Packing
from mil.parts import Facts

PINV_STEPS = 6
"""Of the iterative pseudo-inverse; the number of both papers."""
KERNELS = (7, 5, 3)
"""Sides of the convolutions, in tiles."""


class NystromContext(ResidualContext):
    """Two layers of Nystrom attention with a convolution of positions (PPEG) between.

    A bag has no order, and the convolution needs a square. The tiles are sorted along a fixed random direction, cut
    into as many rows as each has tiles, and each row is sorted along a second direction: neighbours look alike, and the
    order of the tiles changes nothing. The first tiles fill up the last row, as in the paper, and are left out after.

    Args:
        facts: Given by the composition.
        heads: Attention heads; must divide the width.
        n_landmarks: Means of neighbours that stand for all tiles; None takes half of the width, as the paper does. A
            bag with fewer tiles has one a tile.
        dropout: After each attention.

    Raises:
        InputError: The width is no multiple of ``heads``.
    """

    apart_because: ClassVar[str] = "it sorts one bag after the other onto a square"
    directions: torch.Tensor

    def __init__(self, facts: Facts, *, heads: int = 8, n_landmarks: int | None = None, dropout: float = 0.0) -> None:
        super().__init__(facts)
        if facts.width % heads:
            raise InputError(f"aggregator.context.heads={heads}: must divide the width of the vectors, {facts.width}")
        n_landmarks = max(1, facts.width // 2) if n_landmarks is None else n_landmarks
        self.first = _Layer(facts.width, heads, n_landmarks, dropout)
        self.positions = SquareConvolution(facts.width)
        self.second = _Layer(facts.width, heads, n_landmarks, dropout)
        self.norm = nn.LayerNorm(facts.width)
        self.register_buffer("directions", torch.randn(2, facts.width))

    def block(self, vectors: Float[Tensor, "tile width"], packing: Packing) -> Float[Tensor, "tile width"]:
        """What the layers change."""
        return torch.cat([self._of_bag(vectors[a:b]) for a, b in pairwise(packing.offsets.tolist())]) - vectors

    def _of_bag(self, vectors: Float[Tensor, "tile width"]) -> Float[Tensor, "tile width"]:
        with torch.autocast(vectors.device.type, enabled=False):  # eight bits would leave the order to chance
            places = vectors.detach().to(self.directions) @ self.directions.T
        tile_of_cell, cell_of_tile = square(places)
        cells = self.first(vectors[tile_of_cell])
        return self.norm(self.second(self.positions(cells))[cell_of_tile])


def square(places: Float[Tensor, "tile 2"]) -> tuple[Int[Tensor, " cell"], Int[Tensor, " tile"]]:
    """Arrange tiles on the smallest square that holds them, whatever their order.

    Args:
        places: Where each tile lies along two directions.

    Returns:
        The tile in each cell, row by row, some first tiles twice; and the cell of each tile.
    """
    n_tiles = len(places)
    side = math.isqrt(n_tiles - 1) + 1
    seat = torch.arange(side * side, device=places.device)
    tile = places[:, 0].argsort(stable=True)[seat % n_tiles]
    in_row = places[tile, 1].view(side, side).argsort(dim=1, stable=True)
    seat_of_cell = seat.view(side, side).gather(1, in_row).flatten()
    is_copy = seat_of_cell >= n_tiles
    tile_of_cell = tile[seat_of_cell]
    cell_of_tile = torch.empty(n_tiles, dtype=torch.long, device=places.device)
    cell_of_tile[tile_of_cell[~is_copy]] = seat[~is_copy]
    return tile_of_cell, cell_of_tile


class SquareConvolution(nn.Module):
    """PPEG: x + conv7(x) + conv5(x) + conv3(x), each channel by itself, zeros around the square.

    Args:
        width: Of the vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width, width, side, groups=width) for side in KERNELS)

    def forward(self, cells: Float[Tensor, "cell width"]) -> Float[Tensor, "cell width"]:
        """Convolve the square that the rows are, row by row."""
        side = math.isqrt(len(cells))
        layers = [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]
        # One convolution by the sum of the kernels: a third of the reads of three, and the same numbers.
        kernels = [pad(layer.weight, [(KERNELS[0] - layer.kernel_size[0]) // 2] * 4) for layer in layers]
        bias = torch.stack([layer.bias for layer in layers if layer.bias is not None]).sum(dim=0)
        image = cells.T.reshape(1, -1, side, side)
        seen = conv2d(image, torch.stack(kernels).sum(dim=0), bias, padding=KERNELS[0] // 2, groups=cells.shape[1])
        return cells + seen[0].flatten(1).T


class _Layer(nn.Module):
    """x + Attention(norm(x))."""

    def __init__(self, width: int, heads: int, n_landmarks: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.n_landmarks = n_landmarks
        self.norm = nn.LayerNorm(width)
        self.project_in = nn.Linear(width, 3 * width, bias=False)
        self.project_out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Float[Tensor, "cell width"]) -> Float[Tensor, "cell width"]:
        projected = self.project_in(self.norm(vectors))
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3).unsqueeze(1)
        attended = nystrom_attention(query, key, value, self.n_landmarks)[0].transpose(0, 1).flatten(1)
        return vectors + self.dropout(self.project_out(attended))


def nystrom_attention(
    query: Float[Tensor, "1 head cell depth"],
    key: Float[Tensor, "1 head cell depth"],
    value: Float[Tensor, "1 head cell depth"],
    n_landmarks: int,
) -> Float[Tensor, "1 head cell depth"]:
    """``softmax(Q K~) pinv(softmax(Q~ K~)) softmax(Q~ K) V``, Q~ and K~ means of runs of rows, all over sqrt(depth).

    From the right to the left, so that nothing is held that is larger than the values (Xiong et al. 2021, eq. 13).
    The runs differ by at most one row in length: no zero rows are put before the first.
    """
    landmark_query, landmark_key = landmarks(query, n_landmarks), landmarks(key, n_landmarks)
    summary = scaled_dot_product_attention(landmark_query, key, value)
    between = (landmark_query @ landmark_key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(dim=-1)
    with torch.autocast(between.device.type, enabled=False):  # the iteration does not converge with eight bits
        inverse = pseudo_inverse(between.to(torch.promote_types(between.dtype, torch.float32)))
    return scaled_dot_product_attention(query, landmark_key, (inverse @ summary.to(inverse)).to(query))


def landmarks(rows: Float[Tensor, "1 head cell depth"], n_landmarks: int) -> Float[Tensor, "1 head landmark depth"]:
    """Means of ``n_landmarks`` runs of rows, the rows themselves when there are no more."""
    n_rows = rows.shape[2]
    count = min(n_landmarks, n_rows)
    run = torch.arange(n_rows, device=rows.device) * count // n_rows
    sums = rows.new_zeros((*rows.shape[:2], count, rows.shape[3])).index_add(2, run, rows)
    return sums / torch.bincount(run, minlength=count).to(rows).unsqueeze(1)


def pseudo_inverse(matrix: Float[Tensor, "1 head n n"]) -> Float[Tensor, "1 head n n"]:
    """Moore and Penrose's, by iteration (Xiong et al. 2021, eq. 11), each head from a start of its own."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    norms = matrix.sum(dim=-2).amax(dim=-1) * matrix.sum(dim=-1).amax(dim=-1)  # of a matrix without negative entries
    found = matrix.transpose(-1, -2) / norms[..., None, None]
    for _ in range(PINV_STEPS):
        product = matrix @ found
        found = found @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product))) / 4
    return found
