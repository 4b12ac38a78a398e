"""Every yaml of conf/task, found by itself, keeps the promises of a task."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bags import bag, facts, packed

from mil.aggregator import compose
from mil.bag import BagBatch
from mil.losses import InstanceClusters
from mil.module import MilModule, Optimization
from mil.task import Task, Words, build_task

CONF = Path(__file__).parent.parent / "conf"
NAMES = sorted(path.stem for path in (CONF / "task").glob("*.yaml"))
CONFIGS = {name: yaml.safe_load((CONF / "task" / f"{name}.yaml").read_text()) for name in NAMES}
AGGREGATORS = sorted(path.stem for path in (CONF / "aggregator").glob("*.yaml"))
CLASSES = ("alpha", "beta", "normal")
LABELS = {
    "one_class": ["alpha", "beta", "normal", "beta", "alpha", "normal", "alpha", "beta"],
    "several_classes": [
        "alpha",
        "beta;alpha",
        "normal",
        "beta",
        "alpha;normal?",
        "normal",
        "beta;alpha?",
        "normal;beta",
    ],
    "number": ["1", "2.5", "7", "3", "1e1", "-4", "0", "2"],
    "time_to_event": ["3", "5+", "1.5", "9", "9", "12+", "2", "4"],
}
"""Labels of every kind; a new kind needs a line here, a new task of a known kind nothing."""
OTHERS = {
    "one_class": ["normal", "alpha", "beta", "alpha", "normal", "beta", "normal", "alpha"],
    "several_classes": ["beta", "normal", "alpha;beta", "normal", "beta", "alpha", "alpha", "alpha"],
    "number": ["10", "1", "-4", "0", "2", "7", "3", "-1"],
    "time_to_event": ["9", "1", "12", "2", "1.5+", "1", "11", "4+"],
}
"""Labels that contradict them."""
OPTIMIZATION = Optimization(lr=0.01, residual_decay=0.1, weight_decay=0.01, scale_lr_factor=0.1)


def words(n_classes: int) -> Words:
    return Words(prompt_set="test", classes=CLASSES[:n_classes], background=None, logit_bias=-1.0)


def labels_for(task: Task, table: dict[str, list[str]] = LABELS) -> list[str]:
    """Of the kind that the task reads, with as many classes as it takes."""
    labels = table[task.labels.name]
    return [label.replace("normal", "beta") for label in labels] if task.n_classes == 2 else labels


def started(name: str) -> tuple[Task, list[str], torch.Tensor]:
    """A task that was fitted, its classes, its targets."""
    task = build_task(CONFIGS[name])
    known = words(task.n_classes or 3)
    labels = labels_for(task)
    classes = task.classes(labels, known)
    task.start(classes, known, is_margin=False, is_text=True)
    targets = torch.tensor(task.targets(labels, classes))
    task.fit(targets, len(classes))
    return task, classes, targets


def random_logits(n_bags: int, n_classes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n_bags, n_classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitted_logits(task: Task, targets: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Logits that say what these targets are, found by descent."""
    logits = torch.zeros(len(targets), n_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        task.loss(logits, targets).backward()
        optimizer.step()
    return logits.detach()


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_of_the_yaml_says_what_a_label_is(name: str):
    first = (CONF / "task" / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert "label: " in first


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_finite_and_its_gradient_reaches_every_class(name: str):
    task, classes, targets = started(name)
    logits = random_logits(len(targets), len(classes)).requires_grad_()
    loss = task.loss(logits, targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss.ndim == 0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad.abs() > 1e-9).any(dim=0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("factor", [0.0, 1e3])
def test_the_loss_stays_finite_at_the_ends(name: str, factor: float):
    task, classes, targets = started(name)
    logits = (factor * random_logits(len(targets), len(classes))).float().requires_grad_()
    loss = task.loss(logits, targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_being_right_costs_less_than_knowing_nothing_and_that_less_than_being_wrong(name: str):
    task, classes, targets = started(name)
    others = torch.tensor(task.targets(labels_for(task, OTHERS), classes))
    right = task.loss(fitted_logits(task, targets, len(classes)), targets)
    nothing = task.loss(torch.zeros(len(targets), len(classes), dtype=torch.float64), targets)
    wrong = task.loss(fitted_logits(task, others, len(classes)), targets)
    assert float(right) < float(nothing) < float(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_permuting_bags_permutes_what_is_predicted_and_leaves_the_loss(name: str):
    task, classes, targets = started(name)
    logits, order = random_logits(len(targets), len(classes)), torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    first, second = task.predict(logits), task.predict(logits[order])
    np.testing.assert_array_equal(first.probabilities[order.numpy()], second.probabilities)
    if first.score is not None and second.score is not None:
        np.testing.assert_array_equal(first.score[order.numpy()], second.score)
    torch.testing.assert_close(task.loss(logits, targets), task.loss(logits[order], targets[order]))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_predicted_for_a_bag_does_not_depend_on_the_others(name: str):
    task, classes, targets = started(name)
    logits = random_logits(len(targets), len(classes))
    alone, among = task.predict(logits[2:3]), task.predict(logits)
    np.testing.assert_allclose(alone.probabilities[0], among.probabilities[2], atol=1e-12)
    if alone.score is not None and among.score is not None:
        np.testing.assert_allclose(alone.score[0], among.score[2], atol=1e-12)
    assert torch.isfinite(task.loss(logits[2:3], targets[2:3]))


@pytest.mark.parametrize("name", NAMES)
def test_predictions_have_a_column_a_class_between_0_and_1_and_a_score_where_one_is_named(name: str):
    task, classes, targets = started(name)
    outcome = task.predict(random_logits(len(targets), len(classes)))
    assert outcome.probabilities.shape == (len(targets), len(classes))
    assert (outcome.probabilities >= 0).all()
    assert (outcome.probabilities <= 1).all()
    assert (outcome.score is None) == (task.score_name is None)
    decisions = task.decisions(outcome.probabilities, classes)
    assert (decisions is None) == (task.score_name is not None)
    assert decisions is None or all(task.labels.fault(text) is None for text in decisions if text)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_fitted_comes_back_through_plain_json(name: str):
    task, classes, targets = started(name)
    again = build_task(CONFIGS[name])
    again.load(json.loads(json.dumps(task.state())))
    logits = random_logits(len(targets), len(classes))
    assert torch.equal(task.loss(logits, targets), again.loss(logits, targets))
    first, second = task.predict(logits), again.predict(logits)
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    if first.score is not None and second.score is not None:
        np.testing.assert_array_equal(first.score, second.score)


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_finite_or_have_a_reason(name: str):
    task, classes, _targets = started(name)
    given = task.targets(labels_for(task), classes)
    for some in (given, given[:1]):
        outcome = task.predict(random_logits(len(some), len(classes)))
        found = task.metrics(some, outcome, classes)
        reasons = found.pop("undefined")
        assert isinstance(reasons, dict)
        assert {key for key, value in found.items() if value is None} == set(reasons)
        assert all(value is None or np.isfinite(value) for value in found.values())
        json.dumps(found)


@pytest.mark.parametrize("name", NAMES)
def test_every_training_label_can_be_read_and_a_broken_one_is_told(name: str):
    kind = build_task(CONFIGS[name]).labels
    assert all(kind.fault(label) is None for label in LABELS[kind.name])
    assert kind.name == "one_class" or kind.fault("A;;+x")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("member", AGGREGATORS)
def test_a_training_step_works_with_every_aggregator_that_takes_such_targets(name: str, member: str):
    task, _classes, targets = started(name)
    config = yaml.safe_load((CONF / "aggregator" / f"{member}.yaml").read_text())
    given = facts("topj", init=str(config["init"]), has_background=False)
    torch.manual_seed(0)
    aggregator = compose(config, given)
    if any(isinstance(part, InstanceClusters) for part in aggregator.modules()) and task.labels.name != "one_class":
        pytest.skip("train refuses this: the loss needs one class a slide")
    sizes = [1, 9, 4]
    scales = len(aggregator.of_scales())
    aggregator.fit_parts(*[bag(20, seed=8).tensor()] * scales)
    module = MilModule(aggregator, task, OPTIMIZATION, given.init)
    tiles, packing = packed(scales, *(bag(size, seed).tensor() for seed, size in enumerate(sizes)))
    batch = BagBatch(tiles=tiles, packing=packing, labels=targets[:3], rows=torch.arange(3))
    loss = module.training_step(batch, 0)
    loss.backward()
    assert torch.isfinite(loss)
