"""Models trained as one are the models trained apart, for every yaml of conf/aggregator that says so."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bags import CLASSES, DIM, bag, facts
from omegaconf import DictConfig, OmegaConf

from feature_extraction.errors import DamagedFileError, InputError, PromptmilError
from mil.aggregator import compose, n_scales, part_types
from mil.commands.train import at_once, groups
from mil.fit import Fitted, Fold, Labelled, Training, fit
from mil.module import Optimization
from mil.stacked import MOST_TOGETHER, Member, apart_because, device_of, fit_together
from mil.tasks.classification import Classification

FOLDER = Path(__file__).parent.parent / "conf" / "aggregator"
CONFIGS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}
STARTS = [pytest.param(name, init, id=f"{name}-{init}") for name in CONFIGS for init in CONFIGS[name]["inits"]]
ONE = {"abmil", "gated_abmil", "prompt", "topj", "zs_mil", "dsmil", "routing", "transport"}
"""Members that are to stay trainable as one; another may be, or say why not."""
OPTIMIZATION = Optimization(lr=0.01, residual_decay=0.1, weight_decay=0.01, scale_lr_factor=0.1)
TRAINING = Training(max_epochs=3, batch_size=2, max_tiles=12, accelerator="cpu", precision="float32", seed=0)


def without_chance(options: object) -> object:
    """The same configuration, nothing drawn in its forward pass."""
    if isinstance(options, dict):
        return {key: 0.0 if key == "dropout" else without_chance(value) for key, value in options.items()}
    return options


def labelled(n_bags: int, first_seed: int) -> Labelled:
    sizes = [3 + 5 * (seed % 4) for seed in range(first_seed, first_seed + n_bags)]  # some above max_tiles
    bags = [bag(n, first_seed + i) for i, n in enumerate(sizes)]
    return Labelled(bags=bags, labels=[i % len(CLASSES) for i in range(n_bags)])


FOLDS = (
    Fold(train=labelled(3, 0), val=labelled(3, 100)),  # two steps an epoch, the second of one bag
    Fold(train=labelled(6, 50), val=labelled(4, 200)),  # three steps an epoch
)
CELLS = [(0, 0), (1, 0), (1, 7)]
"""(fold, seed)."""


def member(config: object, init: str, fold: Fold, seed: int) -> Member:
    torch.manual_seed(seed)
    aggregator = compose(config, facts(init=init))
    tiles = torch.cat([one.tensor() for one in fold.train.bags])
    aggregator.fit_parts(*[tiles] * n_scales(config))
    task = Classification()
    task.fit(torch.tensor(fold.train.labels), len(CLASSES))
    return Member(aggregator=aggregator, task=task, fold=fold, seed=seed)


def members(config: object, init: str) -> list[Member]:
    return [member(config, init, FOLDS[fold], seed) for fold, seed in CELLS]


def fitted_apart(
    one: Member, init: str, training: Training = TRAINING, optimization: Optimization = OPTIMIZATION
) -> Fitted:
    return fit(
        one.aggregator,
        one.task,
        fold=one.fold,
        optimization=optimization,
        training=replace(training, seed=one.seed),
        init=init,
    )


def require_same(found: Member, expected: Member, chosen: Fitted, expected_chosen: Fitted) -> None:
    assert chosen.best_epoch == expected_chosen.best_epoch
    torch.testing.assert_close(chosen.val_losses, expected_chosen.val_losses, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(chosen.train_losses, expected_chosen.train_losses, atol=1e-4, rtol=1e-4)
    state = expected.aggregator.state_dict()
    torch.testing.assert_close(found.aggregator.state_dict(), state, atol=1e-4, rtol=1e-3)
    assert not found.aggregator.training


@pytest.mark.parametrize(("name", "init"), STARTS)
def test_models_trained_as_one_are_those_trained_apart_or_the_parts_say_why_not(name: str, init: str):
    config = without_chance(CONFIGS[name]) | {"init": init}
    reason = apart_because(part_types(config), n_scales=n_scales(config))
    assert not reason or name not in ONE
    if reason:
        with pytest.raises(InputError, match=reason):
            fit_together(members(config, init), optimization=OPTIMIZATION, training=TRAINING, init=init)
        return
    together, apart = members(config, init), members(config, init)
    results = fit_together(together, optimization=OPTIMIZATION, training=TRAINING, init=init)
    for found, expected, chosen in zip(together, apart, results, strict=True):
        require_same(found, expected, chosen, fitted_apart(expected, init))


GATED = {
    "embed": {"_target_": "mil.embed.LinearEmbed", "width": 8, "dropout": 0.0},
    "assign": {"_target_": "mil.assign.Attention", "hidden": 4},
    "route": {"_target_": "mil.route.Shared"},
    "head": {"_target_": "mil.head.LinearHead"},
}


def fitted_together(some: list[Member], training: Training = TRAINING) -> list[Fitted | PromptmilError]:
    return fit_together(some, optimization=OPTIMIZATION, training=training, init="random")


def test_in_bf16_they_stay_near_those_trained_apart():
    training = replace(TRAINING, precision="bf16")
    together, apart = members(GATED, "random"), members(GATED, "random")
    for chosen, expected in zip(fitted_together(together, training), apart, strict=True):
        losses = fitted_apart(expected, "random", training).val_losses
        torch.testing.assert_close(chosen.val_losses, losses, atol=0.02, rtol=0.02)


def test_the_anchor_holds_each_as_it_holds_one_alone():
    config = without_chance(CONFIGS["prompt"])
    anchored = replace(OPTIMIZATION, anchor=5.0)
    together, apart = members(config, "text"), members(config, "text")
    results = fit_together(together, optimization=anchored, training=TRAINING, init="text")
    free = fit_together(members(config, "text"), optimization=OPTIMIZATION, training=TRAINING, init="text")
    assert results[0].train_losses != free[0].train_losses
    for found, expected, chosen in zip(together, apart, results, strict=True):
        require_same(found, expected, chosen, fitted_apart(expected, "text", optimization=anchored))


def test_each_model_draws_its_own_dropout():
    config = GATED | {"embed": GATED["embed"] | {"dropout": 0.5}}
    for given, are_same in ((GATED, True), (config, False)):
        twins = [member(given, "random", FOLDS[1], 3) for _ in range(2)]
        first, second = (chosen.train_losses for chosen in fitted_together(twins))
        assert (first == second) == are_same


def test_without_a_validation_part_the_last_weights_stay():
    fold = Fold(train=FOLDS[1].train, val=Labelled(bags=[], labels=[]))
    together, apart = ([member(GATED, "random", fold, seed) for seed in (0, 1)] for _ in range(2))
    results = fitted_together(together)
    assert [(one.best_epoch, one.val_losses) for one in results] == [(3, []), (3, [])]
    for found, expected, chosen in zip(together, apart, results, strict=True):
        require_same(found, expected, chosen, fitted_apart(expected, "random"))


def test_a_loss_that_is_not_finite_names_its_bags_and_costs_no_other_model():
    broken = np.full((5, DIM), np.nan, np.float32)
    bags = [FOLDS[0].train.bags[0], replace(FOLDS[0].train.bags[1], features=broken)]
    fold = Fold(train=Labelled(bags=bags, labels=[0, 1]), val=FOLDS[0].val)
    sick = member(GATED, "random", FOLDS[0], 0)
    sick = Member(aggregator=sick.aggregator, task=sick.task, fold=fold, seed=0)
    well, apart = (member(GATED, "random", FOLDS[1], 0) for _ in range(2))
    failure, chosen = fitted_together([sick, well])
    assert isinstance(failure, DamagedFileError)
    assert f"slide={bags[1].slide_id}: 5 of its 5 tiles have nan" in str(failure)
    require_same(well, apart, chosen, fitted_apart(apart, "random"))


def test_where_memory_does_not_hold_all_of_them_halves_are_trained():
    together, apart = members(GATED, "random"), members(GATED, "random")
    n_passes = 0

    def fill_up(*_: object) -> None:  # in the second epoch, when the weights have moved
        nonlocal n_passes
        n_passes += 1
        if n_passes == 10:
            raise torch.OutOfMemoryError

    together[0].aggregator.register_forward_pre_hook(fill_up)
    results = fitted_together(together)
    assert n_passes > 10
    for found, expected, chosen in zip(together, apart, results, strict=True):
        require_same(found, expected, chosen, fitted_apart(expected, "random"))


def test_a_device_that_is_not_there_is_refused():
    assert device_of("cpu") == torch.device("cpu")
    if not torch.accelerator.is_available():
        assert device_of("auto") == torch.device("cpu")
        with pytest.raises(InputError, match="accelerator=gpu: this machine has none"):
            device_of("gpu")


def configuration(**changes: object) -> DictConfig:
    plain = {"aggregator": CONFIGS["abmil"], "trainer": {"accelerator": "cpu"}, "filter_nontask": False, "fold": 0}
    return OmegaConf.create(plain | {"seed": 0, "pooling": {"top_j": 5}, "parallel": "stacked"} | changes)


def test_cells_that_differ_in_fold_and_seed_only_are_one_piece_of_work(capsys: pytest.CaptureFixture[str]):
    cells = [(fold, seed) for fold in (0, 1) for seed in (0, 1)]
    alike = [configuration(fold=fold, seed=seed) for fold, seed in cells]
    others = [configuration(fold=fold, pooling={"top_j": 9}) for fold in (0, 1)]
    alone = [configuration(fold=fold, aggregator=CONFIGS["dtfd"]) for fold in (0, 1)]
    copied = [configuration(fold=fold, filter_nontask=True) for fold in (0, 1)]
    wrong = [configuration(aggregator={"name": "x", "head": {"_target_": "mil.head.None"}})]
    assert at_once(alike[0]) == 1
    mixed = [others[0], *alike, *alone, others[1], *copied, *wrong]
    assert groups(mixed) == [[0, 7], [1, 2, 3, 4], [5], [6], [8], [9], [10]]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert said[0] == "one by one: aggregator=dtfd: the number of its pseudo-bags depends on the bags"


def test_a_group_has_a_limit():
    many = [configuration(seed=seed) for seed in range(MOST_TOGETHER + 3)]
    assert [len(group) for group in groups(many)] == [MOST_TOGETHER, 3]


def test_on_a_cpu_each_cell_is_a_process_of_its_own_unless_asked_otherwise():
    cells = [configuration(parallel="auto", seed=seed) for seed in (0, 1)]
    assert at_once(cells[0]) == len(os.sched_getaffinity(0))
    assert groups(cells) == [[0], [1]]
    with pytest.raises(InputError, match="expected auto, stacked or a whole number"):
        at_once(configuration(parallel="all"))
