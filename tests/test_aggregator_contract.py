"""Every yaml of conf/aggregator, found by itself, keeps the promises of an aggregator."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bags import CLASSES, bag, bank, facts
from torch.nn.functional import cross_entropy

from mil.aggregator import Aggregator, compose
from mil.checkpoint import ModelCard, read_model, write_model
from mil.contributions import explain
from mil.module import Optimization, ProximalAdamW, parameter_groups
from mil.packed import pack
from mil.parts import Pooling
from mil.tasks.classification import Classification
from mil.zeroshot import slide_logits

FOLDER = Path(__file__).parent.parent / "conf" / "aggregator"
MEMBERS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
OPTIMIZATION = Optimization(lr=0.01, residual_decay=0.1, weight_decay=0.01, scale_lr_factor=0.1)


def config_of(name: str) -> dict[str, object]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def make(name: str, rule: str = "margin", top_j: int = 3, init: str | None = None) -> Aggregator:
    torch.manual_seed(0)
    config = config_of(name)
    return compose(config, facts(rule, top_j, str(init or config["init"])))


def stepped(name: str, n_steps: int = 3) -> Aggregator:
    """A member after a few training steps, so that nothing is at its neutral start."""
    aggregator = make(name)
    init = str(config_of(name)["init"])
    optimizer = ProximalAdamW(parameter_groups(aggregator, OPTIMIZATION, init), lr=OPTIMIZATION.lr)
    tiles = torch.cat([bag(n, seed).tensor() for seed, n in enumerate((9, 14, 11))])
    for _ in range(n_steps):
        optimizer.zero_grad()
        cross_entropy(aggregator(tiles, pack([9, 14, 11])).logits, torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    return aggregator.eval()


def logits_of(aggregator: Aggregator, *bags_: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return aggregator.eval()(torch.cat(bags_), pack([len(b) for b in bags_])).logits


@pytest.mark.parametrize("name", MEMBERS)
def test_first_line_of_the_yaml_says_what_it_is(name: str):
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", MEMBERS)
def test_packing_changes_nothing(name: str):
    aggregator = stepped(name)
    bags_ = [bag(n, seed).tensor() for seed, n in enumerate((1, 7, 30))]
    together = logits_of(aggregator, *bags_)
    alone = torch.cat([logits_of(aggregator, b) for b in bags_])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MEMBERS)
def test_order_of_tiles_changes_nothing(name: str):
    aggregator = stepped(name)
    tiles = bag(25, seed=3).tensor()
    shuffled = tiles[torch.randperm(25, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(logits_of(aggregator, tiles), logits_of(aggregator, shuffled), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("n_tiles", [1, 2, 50])
def test_contributions_and_bias_sum_to_the_logit(name: str, n_tiles: int):
    aggregator = stepped(name)
    explanation = explain(aggregator, Classification(), bag(n_tiles, seed=5))
    total = explanation.contribution.sum(axis=0) + explanation.bias
    np.testing.assert_allclose(total, explanation.logits, atol=1e-5 * max(1, np.abs(explanation.logits).max()))
    single = logits_of(aggregator, bag(n_tiles, seed=5).tensor())[0]
    np.testing.assert_allclose(explanation.logits, single.numpy(), atol=1e-3)


@pytest.mark.parametrize("name", MEMBERS)
def test_attention_is_a_distribution_over_each_bag(name: str):
    aggregator = stepped(name)
    with torch.inference_mode():
        output = aggregator(torch.cat([bag(4, 1).tensor(), bag(9, 2).tensor()]), pack([4, 9]))
    assert (output.attention >= 0).all()
    for part in output.attention.split([4, 9]):
        torch.testing.assert_close(part.sum(dim=0), torch.ones(len(CLASSES)))


@pytest.mark.parametrize("name", MEMBERS)
def test_every_trainable_tensor_changes_within_two_steps(name: str):
    aggregator = make(name)
    before = {key: value.clone() for key, value in aggregator.named_parameters()}
    init = str(config_of(name)["init"])
    optimizer = ProximalAdamW(parameter_groups(aggregator, OPTIMIZATION, init), lr=OPTIMIZATION.lr)
    tiles = torch.cat([bag(n, seed).tensor() for seed, n in enumerate((9, 14, 11))])
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(aggregator(tiles, pack([9, 14, 11])).logits, torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    still = [key for key, value in aggregator.named_parameters() if torch.equal(before[key], value)]
    assert still == []


@pytest.mark.parametrize("name", MEMBERS)
def test_a_saved_model_predicts_the_same_when_loaded(name: str, tmp_path: Path):
    aggregator = stepped(name)
    config = config_of(name)
    card = ModelCard(
        aggregator=config,
        task={"_target_": "mil.tasks.classification.Classification"},
        classes=list(CLASSES),
        background="normal",
        concepts=[["alpha", "a one"], ["alpha", "a two"], ["beta", "b one"]],
        dim=16,
        space="joint",
        encoder="test",
        encoder_fingerprint="f",
        tile_mpp=1.0,
        tile_size_px=96,
        logit_scale=facts().logit_scale,
        rule="margin",
        top_j=3,
        init=config["init"],
        filter_nontask=False,
        licence="",
        licence_ancestry="[]",
    )
    write_model(tmp_path, aggregator, card)
    loaded, found = read_model(tmp_path)
    assert found == card
    tiles = bag(20, seed=8).tensor()
    assert torch.equal(logits_of(aggregator, tiles), logits_of(loaded, tiles))


def reference_attention(rule: str, top_j: int, scores: np.ndarray) -> np.ndarray:
    """a0 by a plain loop, for one class of one bag."""
    n = len(scores)
    count = {"mean": n, "max": 1}.get(rule, min(top_j, n))
    chosen = sorted(range(n), key=lambda i: (-scores[i], i))[:count]
    return np.array([1 / count if i in chosen else 0.0 for i in range(n)])


TEXT_MEMBERS = [name for name in MEMBERS if config_of(name)["init"] == "text"]


@pytest.mark.parametrize("name", TEXT_MEMBERS)
@pytest.mark.parametrize("rule", ["mean", "max", "topj", "margin"])
@pytest.mark.parametrize("n_tiles", [1, 2, 40])
def test_step_zero_is_the_members_own_zero_shot(name: str, rule: str, n_tiles: int):
    words = bank()
    aggregator = make(name, rule).double()
    one = bag(n_tiles, seed=n_tiles)
    with torch.inference_mode():
        output = aggregator.eval()(one.tensor(torch.float64), pack([n_tiles]))
    unit = one.features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    tau = math.exp(words.logit_scale)
    scores = tau * unit @ np.stack([words.class_vector(c) for c in CLASSES]).T
    if rule == "margin":
        scores = scores - scores[:, [CLASSES.index("normal")]]
    own_rule = "mean" if name == "mean" else rule
    expected = [reference_attention(own_rule, 3, scores[:, k]) @ scores[:, k] for k in range(len(CLASSES))]
    np.testing.assert_allclose(output.logits[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("rule", ["mean", "max", "topj", "margin"])
@pytest.mark.parametrize("n_tiles", [2, 40])
def test_prompt_starts_as_what_the_zeroshot_command_prints(rule: str, n_tiles: int):
    one = bag(n_tiles, seed=n_tiles)
    expected = slide_logits(one, bank(), CLASSES, Pooling(rule=rule, top_j=3))
    found = logits_of(make("prompt", rule), one.tensor())[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_concepts_move_the_choice_of_tiles_once_their_weight_is_not_zero():
    aggregator = make("prompt")
    tiles = bag(40, seed=1).tensor()
    before = aggregator(tiles, pack([40])).attention
    with torch.no_grad():
        aggregator.bank.rho.fill_(3.0)
    after = aggregator(tiles, pack([40])).attention
    assert not torch.equal(before[:, 0] > 0, after[:, 0] > 0)
    assert torch.equal(before[:, 2], after[:, 2])  # the background has no concept and no margin over itself


def test_strong_residual_decay_keeps_the_zero_shot_model():
    """Decay is a proximal step: as it grows, training returns to the words."""
    aggregator = make("prompt")
    start = logits_of(aggregator, bag(30, seed=2).tensor())
    strong = Optimization(lr=0.01, residual_decay=1e8, weight_decay=0.0, scale_lr_factor=0.1)
    optimizer = ProximalAdamW(parameter_groups(aggregator, strong, "text"), lr=strong.lr)
    tiles = torch.cat([bag(n, seed).tensor() for seed, n in enumerate((9, 14, 11))])
    aggregator.train()
    for _ in range(20):
        optimizer.zero_grad()
        cross_entropy(aggregator(tiles, pack([9, 14, 11])).logits, torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    torch.testing.assert_close(logits_of(aggregator, bag(30, seed=2).tensor()), start, atol=1e-3, rtol=0)


def test_weak_residual_decay_does_leave_it():
    start = logits_of(make("prompt"), bag(30, seed=2).tensor())
    assert (logits_of(stepped("prompt", 20), bag(30, seed=2).tensor()) - start).abs().max() > 0.1


def test_background_logit_is_zero_under_the_margin_rule_whatever_was_learned():
    logits = logits_of(stepped("prompt", 10), bag(30, seed=2).tensor())
    assert logits[0, CLASSES.index("normal")] == 0
    assert (logits[0, :2] != 0).all()


def test_a_bag_of_a_hundred_thousand_tiles_passes():
    logits = logits_of(make("prompt"), bag(100_000, seed=4).tensor())
    expected = slide_logits(bag(100_000, seed=4), bank(), CLASSES, Pooling(rule="margin", top_j=3))
    np.testing.assert_allclose(logits[0].numpy(), expected, atol=1e-4)
