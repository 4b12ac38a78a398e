"""Packed bags give what a loop over single bags gives."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.packed import Packing, is_top, logsumexp_bags, pack, softmax_bags, sum_bags


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_operation_equals_a_loop_over_bags(sizes: list[int], top_j: int, seed: int):
    scores = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(seed))
    packing = pack(sizes)
    parts = scores.split(sizes)
    torch.testing.assert_close(sum_bags(scores, packing), torch.stack([part.sum(0) for part in parts]))
    torch.testing.assert_close(softmax_bags(scores, packing), torch.cat([part.softmax(0) for part in parts]))
    chosen = is_top(scores, packing, top_j).split(sizes)
    for part, flags in zip(parts, chosen, strict=True):
        count = min(top_j, len(part))
        for column in range(3):
            assert flags[:, column].sum() == count
            assert part[flags[:, column], column].min() >= part[:, column].sort(descending=True).values[count - 1]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_packings_of_several_models_at_once_give_what_each_gives(sizes: list[int], top_j: int, seed: int):
    packings = [pack(sizes), pack(sizes[::-1])]
    scores = torch.randint(0, 5, (2, sum(sizes), 3), generator=torch.Generator().manual_seed(seed)).float()  # with ties

    def of_one(scores: torch.Tensor, offsets: torch.Tensor, bag_of_tile: torch.Tensor) -> tuple[torch.Tensor, ...]:
        packing = Packing(offsets=offsets, bag_of_tile=bag_of_tile, is_stacked=True)
        return everything(scores, packing, top_j)

    offsets, bags_of_tiles = (torch.stack([getattr(p, n) for p in packings]) for n in ("offsets", "bag_of_tile"))
    found = torch.vmap(of_one)(scores, offsets, bags_of_tiles)
    apart = [everything(own, packing, top_j) for own, packing in zip(scores, packings, strict=True)]
    for together, *expected in zip(found, *apart, strict=True):
        torch.testing.assert_close(together, torch.stack(expected))


def everything(scores: torch.Tensor, packing: Packing, top_j: int) -> tuple[torch.Tensor, ...]:
    chosen = is_top(scores, packing, top_j)
    return sum_bags(scores, packing), softmax_bags(scores, packing), logsumexp_bags(scores, packing), chosen


def test_ties_go_to_the_earlier_row():
    flags = is_top(torch.zeros(6, 1), pack([2, 4]), 2)
    assert flags[:, 0].tolist() == [True, True, True, True, False, False]
