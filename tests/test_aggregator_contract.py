"""Every yaml of conf/aggregator, found by itself, keeps the promises of an aggregator."""

import math
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
import zero_shot_loops
from bags import CLASSES, CONCEPTS, bag, bank, facts, packed, rows, scaled
from torch.nn.functional import cross_entropy, normalize

from feature_extraction.encoder import Projection
from feature_extraction.encoder_table import with_table
from mil.aggregator import Aggregator, compose, n_scales
from mil.aggregator_table import MARKS, aggregator_table
from mil.bag import BagBatch
from mil.checkpoint import ModelCard, read_model, write_model
from mil.context import SelfAttentionContext
from mil.heatmap.contributions import explain
from mil.module import MilModule, Optimization, ProximalAdamW, parameter_groups
from mil.packed import pack
from mil.parts import Pooling
from mil.tasks.classification import Classification
from mil.zeroshot import slide_logits

FOLDER = Path(__file__).parent.parent / "conf" / "aggregator"
MEMBERS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
CONFIGS = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in MEMBERS}
STARTS = [pytest.param(name, init, id=f"{name}-{init}") for name in MEMBERS for init in CONFIGS[name]["inits"]]
"""Every member from every start that it knows."""
OPTIMIZATION = Optimization(lr=0.01, residual_decay=0.1, weight_decay=0.01, scale_lr_factor=0.1)


def make(name: str, rule: str = "margin", top_j: int = 3, init: str | None = None) -> Aggregator:
    torch.manual_seed(0)
    aggregator = compose(CONFIGS[name], facts(rule, top_j, init or str(CONFIGS[name]["init"])))
    tiles = torch.cat([bag(60, seed).tensor() for seed in range(3)])
    aggregator.fit_parts(*[tiles] * n_scales(CONFIGS[name]))
    return aggregator


def take_steps(aggregator: Aggregator, init: str, n_steps: int) -> None:
    """Train on three small bags, with every loss that the member has."""
    module = MilModule(aggregator, Classification(), OPTIMIZATION, init)
    optimizer = module.configure_optimizers()
    sizes = [9, 14, 11]
    tiles, packing = packed(len(aggregator.of_scales()), *(bag(n, seed).tensor() for seed, n in enumerate(sizes)))
    batch = BagBatch(
        tiles=tiles,
        packing=packing,
        labels=torch.tensor([0, 1, 2]),
        rows=torch.arange(3),
    )
    for _ in range(n_steps):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()


def stepped(name: str, n_steps: int = 3, init: str | None = None) -> Aggregator:
    """A member after a few training steps, so that nothing is at its neutral start."""
    aggregator = make(name, init=init)
    take_steps(aggregator, init or str(CONFIGS[name]["init"]), n_steps)
    return aggregator.eval()


def logits_of(aggregator: Aggregator, *bags_: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return aggregator.eval()(*packed(len(aggregator.of_scales()), *bags_)).logits


@pytest.mark.parametrize("name", MEMBERS)
def test_first_line_of_the_yaml_says_what_it_is(name: str):
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")


def test_the_readme_lists_every_member():
    readme = (FOLDER.parent.parent / "README.md").read_text()
    assert with_table(readme, aggregator_table(FOLDER), marks=MARKS) == readme, "run `make fix`"


@pytest.mark.parametrize(("name", "init"), STARTS)
def test_packing_changes_nothing(name: str, init: str):
    aggregator = stepped(name, init=init)
    bags_ = [bag(n, seed).tensor() for seed, n in enumerate((1, 7, 30))]
    together = logits_of(aggregator, *bags_)
    alone = torch.cat([logits_of(aggregator, b) for b in bags_])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "init"), STARTS)
def test_order_of_tiles_changes_nothing(name: str, init: str):
    aggregator = stepped(name, init=init)
    tiles = bag(25, seed=3).tensor()
    shuffled = tiles[torch.randperm(25, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(logits_of(aggregator, tiles), logits_of(aggregator, shuffled), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "init"), STARTS)
@pytest.mark.parametrize("n_tiles", [1, 2, 50])
def test_contributions_and_bias_sum_to_the_logit(name: str, init: str, n_tiles: int):
    aggregator = stepped(name, init=init)
    explanations = explain(aggregator, Classification(), scaled(n_scales(CONFIGS[name]), bag(n_tiles, seed=5)))
    explanation = explanations[0]
    assert len(explanations) == n_scales(CONFIGS[name])
    for one in explanations:
        np.testing.assert_allclose(
            one.contribution.sum(axis=0) + one.elsewhere, sum(e.contribution.sum(axis=0) for e in explanations)
        )
    total = explanation.contribution.sum(axis=0) + explanation.elsewhere + explanation.bias
    np.testing.assert_allclose(total, explanation.logits, atol=1e-5 * max(1, np.abs(explanation.logits).max()))
    single = logits_of(aggregator, bag(n_tiles, seed=5).tensor())[0]
    np.testing.assert_allclose(explanation.logits, single.numpy(), atol=1e-3)


@pytest.mark.parametrize(("name", "init"), STARTS)
def test_attention_is_a_distribution_over_each_bag(name: str, init: str):
    aggregator = stepped(name, init=init)
    with torch.inference_mode():
        output = aggregator(*packed(n_scales(CONFIGS[name]), bag(4, 1).tensor(), bag(9, 2).tensor()))
    assert (output.attention >= 0).all()
    for part in output.attention.split([4 * n_scales(CONFIGS[name]), 9 * n_scales(CONFIGS[name])]):
        torch.testing.assert_close(part.sum(dim=0), torch.ones(len(CLASSES)))


@pytest.mark.parametrize(("name", "init"), STARTS)
def test_every_trainable_tensor_changes_within_two_steps(name: str, init: str):
    aggregator = make(name, init=init)
    before = {key: value.clone() for key, value in aggregator.named_parameters()}
    take_steps(aggregator, init, 2)
    still = [key for key, value in aggregator.named_parameters() if torch.equal(before[key], value)]
    assert still == []


@pytest.mark.parametrize(("name", "init"), STARTS)
def test_a_saved_model_predicts_the_same_when_loaded(name: str, init: str, tmp_path: Path):
    aggregator = stepped(name, init=init)
    config = CONFIGS[name] | {"init": init}
    card = ModelCard(
        aggregator=config,
        task={"_target_": "mil.tasks.classification.Classification"},
        classes=list(CLASSES),
        background="normal",
        concepts=[["alpha", "a one"], ["alpha", "a two"], ["beta", "b one"]],
        dim=16,
        text_dim=None,
        space="joint",
        encoder="test",
        encoder_fingerprint="f",
        tile_mpp=[1.0],
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


TEXT_MEMBERS = [name for name in MEMBERS if "text" in CONFIGS[name]["inits"]]


def of_text(options: dict[str, object]) -> dict[str, object]:
    """A part's options at a text start."""
    return options.get("text", options)


@pytest.mark.parametrize("name", TEXT_MEMBERS)
@pytest.mark.parametrize("rule", ["mean", "max", "topj", "margin"])
@pytest.mark.parametrize("n_tiles", [1, 2, 40])
def test_step_zero_is_the_members_own_zero_shot(name: str, rule: str, n_tiles: int):
    words, given = bank(), facts(rule)
    aggregator = make(name, rule, init="text").double()
    one = bag(n_tiles, seed=n_tiles)
    with torch.inference_mode():
        output = aggregator.eval()(*packed(n_scales(CONFIGS[name]), one.tensor(torch.float64)))
    classes = np.stack([words.class_vector(c) for c in CLASSES])
    concepts = np.stack([words.concept_vector(*pair) for pair in CONCEPTS])
    tau = math.exp(words.logit_scale)
    config, of_each = CONFIGS[name], []
    for of_scale, member in zip(scaled(n_scales(config), one).scales(), aggregator.of_scales(), strict=True):
        unit = of_scale.features.astype(np.float64)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        scores = tau * unit @ classes.T
        if rule == "margin":
            scores = scores - scores[:, [CLASSES.index("normal")]]
        start = zero_shot_loops.Start(
            unit=unit,
            scores=scores,
            classes=classes,
            rows=np.concatenate([concepts, classes[[CLASSES.index("normal")]]]),  # the class that has no concept
            membership=np.concatenate([given.text.membership.numpy(), np.eye(3)[[CLASSES.index("normal")]]]),
            tau=tau,
            rule=rule,
            top_j=3,
            weights={key: value.numpy() for key, value in member.state_dict().items()},
        )
        of_each.append(zero_shot_loops.logits(start, of_text(config["assign"]), of_text(config["route"])))
    np.testing.assert_allclose(output.logits[0].numpy(), np.mean(of_each, axis=0), atol=1e-5)


@pytest.mark.parametrize("name", TEXT_MEMBERS)
def test_backbone_bags_start_as_the_bags_that_the_encoders_projection_makes_of_them(name: str):
    projection = Projection(weight=torch.from_numpy(rows(24, seed=1)), bias=torch.from_numpy(rows(1, seed=2)[0]))
    of_backbone = replace(facts("margin"), dim=24, projection=projection)
    aggregator = compose(CONFIGS[name] | {"init": "text"}, of_backbone)
    joint = make(name, init="text")
    joint.load_state_dict({key: value for key, value in aggregator.state_dict().items() if key in joint.state_dict()})
    backbone, packing = packed(n_scales(CONFIGS[name]), 3 * torch.from_numpy(rows(30, seed=3, dim=24)))
    with torch.inference_mode():
        found = aggregator.eval()(backbone, packing).logits
        unit = normalize(backbone @ projection.weight + projection.bias, dim=-1)
        expected = joint.eval()(unit, packing).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize(("name", "init"), STARTS)
def test_a_large_bag_passes_in_bounded_memory(name: str, init: str):
    """A hundred thousand tiles; whoever looks at pairs of tiles must not hold them all."""
    aggregator = make(name, init=init).eval()
    n_tiles = 12_000 if any(isinstance(part, SelfAttentionContext) for part in aggregator.modules()) else 100_000
    tiles = bag(n_tiles, seed=4).tensor()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.inference_mode():
        output = aggregator(*packed(n_scales(CONFIGS[name]), tiles))
    assert torch.isfinite(output.logits).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # KiB


def test_a_large_bag_starts_as_zero_shot_too():
    logits = logits_of(make("prompt"), bag(100_000, seed=4).tensor())
    expected = slide_logits(bag(100_000, seed=4), bank(), CLASSES, Pooling(rule="margin", top_j=3))
    np.testing.assert_allclose(logits[0].numpy(), expected, atol=1e-4)
