"""The anchor holds rows to their words, the harder the fewer patients there are."""

import pytest
import torch
from bags import CLASSES, CONCEPTS, bag, packed
from test_aggregator_contract import CONFIGS, make

from mil.aggregator import Aggregator
from mil.bag import BagBatch
from mil.drift import audit
from mil.module import MilModule, Optimization, distance_from_words
from mil.tasks.classification import Classification

TEXT_MEMBERS = sorted(name for name, config in CONFIGS.items() if "text" in config["inits"])


def trained(anchor: float, shots: int, name: str = "prompt") -> Aggregator:
    """A member after twenty steps on three bags."""
    aggregator = make(name)
    optimization = Optimization(lr=0.01, residual_decay=0.0, weight_decay=0.0, scale_lr_factor=0.1, anchor=anchor)
    module = MilModule(aggregator, Classification(), optimization, "text", shots)
    optimizer = module.configure_optimizers()
    tiles, packing = packed(len(aggregator.of_scales()), *(bag(n, seed).tensor() for seed, n in enumerate((9, 14, 11))))
    batch = BagBatch(tiles=tiles, packing=packing, labels=torch.tensor([0, 1, 2]), rows=torch.arange(3))
    for _ in range(20):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    return aggregator


def farthest(aggregator: Aggregator) -> float:
    return min(one.cosine for one in audit(aggregator, CLASSES, CONCEPTS))


def test_a_strong_anchor_keeps_every_row_at_its_word():
    assert farthest(trained(0.0, 1)) < 0.99
    assert farthest(trained(1e4, 1)) > 0.999


def test_the_fewer_the_patients_the_stronger_it_holds():
    assert farthest(trained(30.0, 1)) > farthest(trained(30.0, 1000)) > farthest(trained(0.0, 1))


@pytest.mark.parametrize("name", TEXT_MEMBERS)
def test_at_the_start_every_member_is_at_its_words(name: str):
    assert distance_from_words(make(name, init="text")).item() == pytest.approx(0, abs=1e-6)


def test_without_words_there_is_nothing_to_hold_to():
    assert distance_from_words(make("gated_abmil", init="random")).item() == 0
