"""Planted evidence, and models that learned it: signed maps tell for from against, and figures expose a decoy."""

import numpy as np
import torch
from bags import DIM, bag
from test_kept_tiles import CONFIGS

from mil.aggregator import Aggregator, compose
from mil.bag import Bag
from mil.fit import Fold, Labelled, Training, fit
from mil.heatmap.contributions import auc_against, explain
from mil.heatmap.faithfulness import Said, measure
from mil.heatmap.kept_tiles import reader_of
from mil.module import Optimization
from mil.parts import AggregatorOutput, Auxiliary, Facts, Pooling
from mil.task import Targets, Task
from mil.tasks.classification import Classification

TASK = Classification()
FACTS = Facts(
    dim=DIM, width=DIM, n_classes=2, background=None, text=None, logit_scale=0.0, pooling=Pooling(rule="mean", top_j=5),
    init="random",
)  # fmt: skip
FOR, AGAINST, DECOY = 0, 1, 2
N_TILES = 40
SHOWN = 0.75
"""Of the attention."""


def planted(seed: int, n_for: int, n_against: int, n_decoy: int = 0) -> tuple[Bag, np.ndarray]:
    """A bag, and what each tile is: FOR, AGAINST or DECOY, -1 for none of these."""
    kinds = np.repeat([FOR, AGAINST, DECOY, -1], [n_for, n_against, n_decoy, N_TILES - n_for - n_against - n_decoy])
    kinds = np.random.default_rng(seed).permutation(kinds)
    slide = bag(N_TILES, seed)
    slide.features[:] *= 0.5
    for axis in (FOR, AGAINST, DECOY):
        slide.features[kinds == axis, axis] += 3
    return slide, kinds


class ShownElsewhere(Auxiliary):
    """Holds most of the attention on decoys, so that training makes a model that looks where it takes nothing from."""

    weight = 40.0

    def forward(self, output: AggregatorOutput, labels: Targets, task: Task) -> torch.Tensor:
        is_decoy = output.tiles.vectors[:, DECOY] > 1
        return (output.attention[is_decoy, 0].sum() / len(output.logits) - SHOWN).square()


def trained(bags: list[Bag], labels: list[int], seed: int, loss: Auxiliary | None = None) -> Aggregator:
    """Gated attention after some epochs on these bags, 0 is the class that the planted tiles speak for."""
    torch.manual_seed(seed)
    aggregator = compose(CONFIGS["gated_abmil"] | {"embed": {"_target_": "mil.embed.StandardEmbed"}}, FACTS)
    if loss is not None:
        aggregator.losses.append(loss)
    aggregator.fit_parts(torch.cat([one.tensor() for one in bags]))
    fit(
        aggregator,
        TASK,
        fold=Fold(train=Labelled(bags=bags, labels=labels), val=Labelled(bags=[], labels=[])),
        optimization=Optimization(lr=0.02, residual_decay=0.0, weight_decay=1.0, scale_lr_factor=0.1),
        training=Training(
            max_epochs=20, batch_size=8, max_tiles=N_TILES, accelerator="cpu", precision="float32", seed=seed
        ),
        init="random",
    )
    return aggregator.eval()


def test_a_trained_models_signed_maps_separate_for_from_against_where_attention_does_not():
    """The label says which kind of tile is more, so that both are looked at and speak for opposite classes."""
    generator = np.random.default_rng(1)
    bags, labels = [], [number % 2 for number in range(120)]
    for number, label in enumerate(labels):
        many, few = int(generator.integers(8, 12)), int(generator.integers(2, 5))
        counts = (many, few) if label == 0 else (few, many)
        bags.append(planted(number, *counts)[0])
    aggregator = trained(bags, labels, seed=1)
    aucs: dict[str, list[float]] = {"contribution": [], "evidence": [], "attention": []}
    predicted: list[int] = []
    for seed in range(1000, 1010):
        slide, kinds = planted(seed, *((12, 3) if seed % 2 else (3, 12)))
        (one,) = explain(aggregator, TASK, slide)
        predicted.append(int(one.probabilities.argmax()))
        is_planted = kinds >= 0
        for name, values in aucs.items():
            values.append(auc_against(getattr(one, name)[is_planted, 0], kinds[is_planted] == FOR))
    assert np.mean(np.array(predicted) == np.array([1, 0] * 5)) >= 0.8  # it did learn
    means = {name: np.mean(values) for name, values in aucs.items()}
    assert means["contribution"] >= 0.95
    assert means["evidence"] >= 0.95
    assert 0.2 < means["attention"] < 0.8


def test_a_decoy_that_a_model_was_trained_to_look_at_is_exposed_by_the_figures():
    n_planted = 6
    labels = [number % 2 for number in range(120)]
    bags = [planted(number, 0 if label else n_planted, 0, n_planted)[0] for number, label in enumerate(labels)]
    aggregator = trained(bags, labels, seed=2, loss=ShownElsewhere())
    decoys: list[float] = []
    signed, attention = [], []
    for seed in range(2000, 2004):
        slide, kinds = planted(seed, n_planted, 0, n_planted)
        (one,) = explain(aggregator, TASK, slide)
        decoys.append(np.mean(kinds[np.argsort(-one.attention[:, 0])[:n_planted]] == DECOY))
        layers = {"contribution": one.contribution[:, 0], "attention": one.attention[:, 0]}
        report = measure(Said(reader_of(aggregator, slide), TASK, 0), layers, n_planted / N_TILES)
        assert report is not None
        signed.append(report.layers["contribution"])
        attention.append(report.layers["attention"])
    assert np.mean(decoys) >= 0.8  # attention alone points at them
    for name in ("gain", "sufficiency", "necessity"):
        assert max(getattr(one, name).p for one in signed) <= 0.1
        assert min(getattr(one, name).p for one in attention) > 0.1
        assert min(getattr(one, name).value for one in signed) > max(getattr(one, name).value for one in attention)
