"""Batches of several models brought to one shape, for models that are trained as one."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mil.bag import BagBatch
from mil.packed import Packing, pack


def stack_batches(
    batches: Sequence[BagBatch],
) -> tuple[Float[Tensor, "model tile dim"], Int[Tensor, "model bag_and_end"], Int[Tensor, "model tile"]]:
    """Bring batches to one shape: tiles, offsets and bags of tiles as in `mil.packed.Packing`, one row a model.

    After a batch's own bags come bags of copies of its first tile, at least one, none of them empty: numbers that every
    part can compute with. Their logits are to be left out.
    """
    n_bags = 1 + max(batch.packing.n_bags for batch in batches)
    n_tiles = max(len(batch.tiles) + n_bags - batch.packing.n_bags for batch in batches)
    tiles = batches[0].tiles.new_empty((len(batches), n_tiles, batches[0].tiles.shape[1]))
    packings: list[Packing] = []
    for row, batch in zip(tiles, batches, strict=True):
        n_own, n_added = len(batch.tiles), n_bags - batch.packing.n_bags
        row[:n_own] = batch.tiles
        row[n_own:] = batch.tiles[0]
        last = n_tiles - n_own - (n_added - 1)
        packings.append(pack([*batch.packing.sizes.tolist(), *[1] * (n_added - 1), last]))
    offsets, bag_of_tile = ([getattr(one, name) for one in packings] for name in ("offsets", "bag_of_tile"))
    return tiles, torch.stack(offsets), torch.stack(bag_of_tile)
