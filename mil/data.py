"""Bags for Lightning: packed batches, a draw of tiles in training, all tiles in evaluation."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mil.bag import Bag, BagBatch, Collate, Item
from mil.labels import Target


class BagDataset(Dataset[Item]):
    """Bags with their targets.

    Args:
        bags: In a fixed order.
        labels: Target of each, as the task made them.
        max_tiles: Tiles drawn anew from a larger bag (at each of its magnifications) at each visit; None for all.
        seed: Of the draws.

    Attributes:
        generator: Of the draws.
    """

    def __init__(self, bags: Sequence[Bag], labels: Sequence[Target], *, max_tiles: int | None, seed: int) -> None:
        self._bags = bags
        self._labels = labels
        self._max_tiles = max_tiles
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._bags)

    def __getitem__(self, row: int) -> Item:
        return tuple(self._drawn(one.stored()) for one in self._bags[row].scales()), self._labels[row], row

    def _drawn(self, tiles: Float[Tensor, "tile dim"]) -> Float[Tensor, "_ dim"]:
        if self._max_tiles is None or len(tiles) <= self._max_tiles:
            return tiles
        drawn = torch.randperm(len(tiles), generator=self.generator)[: self._max_tiles]
        return tiles[drawn.sort().values]


def drawn_tiles(bag: Bag, max_tiles: int) -> Float[Tensor, "tile dim"]:
    """Evenly spaced tiles of a bag, all of a smaller one."""
    tiles = bag.stored()
    return tiles[:: max(1, -(-len(tiles) // max_tiles))].float()


def train_loader(
    bags: Sequence[Bag], labels: Sequence[Target], *, batch_size: int, max_tiles: int, seed: int
) -> DataLoader[Item]:
    """Shuffled batches for training, the same for the same seed."""
    return DataLoader(
        BagDataset(bags, labels, max_tiles=max_tiles, seed=seed),
        batch_size=batch_size,
        shuffle=True,
        collate_fn=Collate(),
        generator=torch.Generator().manual_seed(seed),
    )


def generators_of(loader: DataLoader[Item]) -> dict[str, torch.Generator]:
    """Everything that a training loader draws from, by name."""
    dataset = loader.dataset
    if not isinstance(dataset, BagDataset) or loader.generator is None:
        raise TypeError("expected the loader that train_loader makes")
    return {"order": loader.generator, "tiles": dataset.generator}


def eval_loader(bags: Sequence[Bag], labels: Sequence[Target], *, batch_size: int) -> DataLoader[Item]:
    """Every tile of every bag, in order."""
    return DataLoader(BagDataset(bags, labels, max_tiles=None, seed=0), batch_size=batch_size, collate_fn=Collate())


def batches_of(loader: DataLoader[Item]) -> Iterator[BagBatch]:
    """The loader's batches under their true type."""
    yield from cast("DataLoader[BagBatch]", loader)
