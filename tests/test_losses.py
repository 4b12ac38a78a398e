"""The losses besides the task's equal plain float64 loops, for bags of every size down to one tile."""

import math

import numpy as np
import pytest
import torch
from bags import facts

from mil.losses import Diversity, FirstTier, InstanceClusters
from mil.packed import pack, softmax_bags, sum_bags
from mil.parts import AggregatorOutput, Assignment, Tiles
from mil.tasks.classification import Classification

N_CLASSES, WIDTH = 3, 16
SIZES = pytest.mark.parametrize(
    "sizes", [[40, 16, 15, 5, 2, 1], [1], [1, 1], [7]], ids=["every size", "one tile", "two of one tile", "N < 2B"]
)


def output(sizes: list[int], n_queries: int = N_CLASSES, n_groups: int = 3) -> AggregatorOutput:
    """What an aggregator might return, of random numbers; tiles dealt to pseudo-bags in turn."""
    generator = torch.Generator().manual_seed(sum(sizes))
    packing = pack(sizes)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    vectors, evidence, bias = drawn(sum(sizes), WIDTH), drawn(sum(sizes), N_CLASSES), drawn(N_CLASSES)
    attention = softmax_bags(drawn(sum(sizes), N_CLASSES), packing)
    groups, in_group, n_before = [], [], 0
    for size in sizes:
        own = np.arange(size) % n_groups
        groups.append(own + n_before)
        in_group.append(np.array([1 / (own == g).sum() for g in own]))
        n_before += min(size, n_groups)
    contribution = attention * evidence
    return AggregatorOutput(
        logits=sum_bags(contribution, packing) + bias,
        contribution=contribution,
        attention=attention,
        evidence=evidence,
        bias=bias,
        assignment=Assignment(
            weights=softmax_bags(3 * drawn(sum(sizes), n_queries), packing),
            groups=torch.from_numpy(np.concatenate(groups)),
            in_group=torch.from_numpy(np.concatenate(in_group)).unsqueeze(1).expand(-1, n_queries),
        ),
        tiles=Tiles(vectors=vectors, evidence=evidence, prototypes=None, packing=packing),
    )


def labels_of(sizes: list[int]) -> torch.Tensor:
    return torch.tensor([bag % N_CLASSES for bag in range(len(sizes))])


def cross_entropy(scores: list[float], target: int) -> float:
    peak = max(scores)
    return peak + math.log(math.fsum(math.exp(s - peak) for s in scores)) - scores[target]


def bounds(sizes: list[int]) -> list[range]:
    ends = np.cumsum(sizes)
    return [range(int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True)]


@SIZES
def test_instance_loss_is_that_of_clam_with_at_most_half_of_the_bag_on_each_side(sizes: list[int]):
    given, labels = output(sizes), labels_of(sizes)
    loss = InstanceClusters(facts(), n_tiles=8).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.copy_(torch.randn_like(parameter))
    weight, bias = loss.residual.weight.detach().numpy(), loss.residual.bias.detach().numpy()
    terms: list[float] = []
    for bag, tiles in enumerate(bounds(sizes)):
        b = min(8, len(tiles) // 2)
        for k in range(N_CLASSES if b else 0):
            order = sorted(tiles, key=lambda i, k=k: -float(given.attention[i, k]))
            is_own = k == int(labels[bag])
            judged = [(i, int(is_own)) for i in order[:b]] + ([(i, 0) for i in order[-b:]] if is_own else [])
            costs: list[float] = []
            for i, target in judged:
                learned = weight[2 * k : 2 * k + 2] @ given.vectors[i].numpy() + bias[2 * k : 2 * k + 2]
                half = float(given.evidence[i, k]) / 2
                costs.append(cross_entropy([learned[0] - half, learned[1] + half], target))
            terms.append(math.fsum(costs) / len(costs))
    expected = math.fsum(terms) / len(terms) if terms else 0.0
    assert float(loss(given, labels, Classification()).detach()) == pytest.approx(expected, abs=1e-9)


@SIZES
def test_first_tier_is_the_tasks_loss_of_the_pseudo_bags(sizes: list[int]):
    given, labels = output(sizes), labels_of(sizes)
    task = Classification()
    task.fit(torch.tensor([0, 0, 0, 1, 1, 2]), N_CLASSES)
    weights = [6 / (3 * count) for count in (3, 2, 1)]
    total = norm = 0.0
    for bag, tiles in enumerate(bounds(sizes)):
        label = int(labels[bag])
        for first in range(min(3, len(tiles))):
            members = tiles[first::3]
            logits = [
                math.fsum(float(given.evidence[i, k]) for i in members) / len(members) + float(given.bias[k])
                for k in range(N_CLASSES)
            ]
            total += weights[label] * cross_entropy(logits, label)
            norm += weights[label]
    # Class weights are kept in single precision.
    assert float(FirstTier(facts())(given, labels, task)) == pytest.approx(total / norm, rel=1e-6)


@SIZES
def test_diversity_is_the_mean_cosine_between_what_the_queries_look_at(sizes: list[int]):
    given = output(sizes, n_queries=4)
    weights = given.assignment.weights.numpy()
    cosines: list[float] = []
    for tiles in bounds(sizes):
        columns = weights[tiles.start : tiles.stop].T
        for first in range(4):
            for second in range(first + 1, 4):
                a, b = columns[first], columns[second]
                cosines.append(float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)))
    found = float(Diversity(facts())(given, labels_of(sizes), Classification()))
    assert found == pytest.approx(math.fsum(cosines) / len(cosines), abs=1e-9)


def test_diversity_of_one_query_is_zero():
    assert float(Diversity(facts())(output([5, 3], n_queries=1), labels_of([5, 3]), Classification())) == 0


def test_losses_of_one_tile_can_be_differentiated():
    given = output([1])
    evidence = given.evidence.requires_grad_()
    for loss in (InstanceClusters(facts()).double(), FirstTier(facts()), Diversity(facts())):
        value = loss(given, labels_of([1]), Classification()) + 0 * evidence.sum()
        (gradient,) = torch.autograd.grad(value, evidence)
        assert torch.isfinite(gradient).all()
