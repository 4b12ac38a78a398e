"""Training: the start is a candidate, val chooses, residuals decay, the same seed gives the same weights."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from bags import CLASSES, DIM, bag, bank, facts

from feature_extraction.errors import InputError
from mil.aggregator import Aggregator, compose
from mil.bag import Bag
from mil.finite import DivergedError
from mil.fit import Fold, Labelled, Training, fit, logits_of
from mil.module import MilModule, Optimization
from mil.tasks.classification import Classification

CONFIG = {
    "embed": {"_target_": "mil.embed.AdapterEmbed", "hidden": 16, "dropout": 0.2},
    "bank": {"_target_": "mil.bank.PromptBank"},
    "assign": {"_target_": "mil.assign.StraightThroughTopJ", "hidden": 8},
    "route": {"_target_": "mil.route.PerClass"},
    "head": {"_target_": "mil.head.TextHead"},
}
OPTIMIZATION = Optimization(lr=0.01, residual_decay=0.01, weight_decay=0.0, scale_lr_factor=0.1)


def planted(n: int, label: int, seed: int) -> Bag:
    """Random tiles, and six that say the class half in its words and half in a way of its own: labels must help."""
    one = bag(n, seed)
    hidden = np.random.default_rng(100 + label).standard_normal(DIM)
    words = bank().class_vector(CLASSES[label]) - bank().class_vector("normal")
    features = np.array(one.features)
    features[:6] = hidden / np.linalg.norm(hidden) + 0.5 * words
    return Bag(slide_id=one.slide_id, features=features, coords_lv0=one.coords_lv0, size_lv0=one.size_lv0)


def labelled(first_seed: int, n_each: int) -> Labelled:
    labels = [index % 3 for index in range(3 * n_each)]
    return Labelled(bags=[planted(30, k, first_seed + i) for i, k in enumerate(labels)], labels=labels)


def training(max_epochs: int, seed: int = 0) -> Training:
    return Training(
        max_epochs=max_epochs, batch_size=4, max_tiles=25, accelerator="cpu", precision="float32", seed=seed
    )


def trained(max_epochs: int, optimization: Optimization = OPTIMIZATION, val: Labelled | None = None, seed: int = 0):
    torch.manual_seed(seed)
    aggregator = compose(CONFIG, facts())
    result = fit(
        aggregator,
        Classification(),
        fold=Fold(train=labelled(0, 6), val=labelled(500, 3) if val is None else val),
        optimization=optimization,
        training=training(max_epochs, seed),
        init="text",
    )
    return aggregator, result


def accuracy(aggregator: Aggregator, data: Labelled) -> float:
    return float((logits_of(aggregator, data.bags, batch_size=4).argmax(axis=1) == np.array(data.labels)).mean())


def test_labels_improve_on_the_words():
    start = compose(CONFIG, facts())
    aggregator, result = trained(25)
    assert result.best_epoch > 0
    assert accuracy(aggregator, labelled(900, 10)) > accuracy(start, labelled(900, 10)) + 0.2
    assert result.val_losses[result.best_epoch] == min(result.val_losses) < result.val_losses[0]


def test_training_that_only_harms_returns_the_start():
    """Val labels that contradict train: no epoch beats the start, and the start comes back to the last bit."""
    val = labelled(500, 3)
    start = compose(CONFIG, facts())
    own = logits_of(start, val.bags, batch_size=4).argmax(axis=1).tolist()
    torch.manual_seed(0)
    before = copy.deepcopy(compose(CONFIG, facts()).state_dict())
    aggregator, result = trained(4, val=Labelled(bags=val.bags, labels=own))
    assert result.best_epoch == 0
    assert all(torch.equal(before[name], value) for name, value in aggregator.state_dict().items())


def test_without_val_the_epochs_are_fixed():
    _, result = trained(3, val=Labelled(bags=[], labels=[]))
    assert (result.best_epoch, result.val_losses, len(result.train_losses)) == (3, [], 3)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = trained(2)[0], trained(2)[0], trained(2, seed=1)[0]
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert any(not torch.equal(v, other.state_dict()[n]) for n, v in first.state_dict().items())


def test_overwhelming_decay_trains_to_zero_shot():
    strong = Optimization(lr=0.01, residual_decay=1e9, weight_decay=0.0, scale_lr_factor=0.1)
    aggregator, _ = trained(3, strong, val=Labelled(bags=[], labels=[]))
    data = labelled(900, 3)
    start = logits_of(compose(CONFIG, facts()), data.bags, batch_size=4)
    np.testing.assert_allclose(logits_of(aggregator, data.bags, batch_size=4), start, atol=1e-3)


def test_dropout_is_on_in_training_and_off_in_evaluation():
    aggregator = compose(CONFIG, facts())
    seen: list[bool] = []
    aggregator.embed.adapter[2].register_forward_hook(lambda module, args, out: seen.append(module.training))
    data = labelled(0, 2)
    fit(
        aggregator,
        Classification(),
        fold=Fold(train=data, val=data),
        optimization=OPTIMIZATION,
        training=training(1),
        init="text",
    )
    # the start on val, two training batches, val again
    assert seen == [False, False, True, True, False, False]


def test_validation_is_in_float32_whatever_the_precision_of_the_steps():
    seen: list[tuple[bool, bool]] = []
    aggregator = compose(CONFIG, facts())
    aggregator.embed.register_forward_hook(
        lambda *_: seen.append((aggregator.training, torch.is_autocast_enabled("cpu")))
    )
    data = labelled(0, 2)
    fit(
        aggregator,
        Classification(),
        fold=Fold(train=data, val=data),
        optimization=OPTIMIZATION,
        training=replace(training(1), precision="bf16"),
        init="text",
    )
    assert set(seen) == {(True, True), (False, False)}


def test_a_loss_that_is_not_finite_names_its_bags():
    module = MilModule(compose(CONFIG, facts()), Classification(), OPTIMIZATION, "text")
    from mil.bag import Collate

    tiles = torch.full((3, DIM), torch.nan)
    with pytest.raises(FloatingPointError, match=r"on the bags \[7\]"):
        module.training_step(Collate()([((tiles,), 0, 7)]), 0)


@pytest.mark.parametrize("changes", [{"lr": 1e38}, {"lr": 1e300}, {"lr": 1e30, "weight_decay": 1e10}])
def test_a_step_that_no_float_holds_is_named_and_not_a_bug(changes: dict[str, float]):
    optimization = replace(OPTIMIZATION, **changes)
    with pytest.raises(DivergedError, match=r"larger than float32 holds; train with a lower optimizer.lr"):
        fit(
            compose(CONFIG, facts()),
            Classification(),
            fold=Fold(train=labelled(0, 1), val=labelled(500, 1)),
            optimization=optimization,
            training=training(1),
            init="random",
        )


@pytest.mark.parametrize("lr", [-1e-3, float("nan"), float("inf")])
def test_a_rate_that_makes_no_sense_is_refused(lr: float):
    with pytest.raises(InputError, match=r"optimizer.lr=.*: expected a number of at least 0"):
        replace(OPTIMIZATION, lr=lr)
