"""What each task computes, against its formula in plain loops, scikit-learn and SciPy; and how it starts from words."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from bags import CLASSES, bag, bank, facts
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    average_precision_score,
    cohen_kappa_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from feature_extraction.errors import InputError
from mil.aggregator import compose
from mil.cohort import read_labels
from mil.labels import NUMBER, ONE_CLASS, SEVERAL_CLASSES, TIME_TO_EVENT
from mil.metrics.multilabel import multilabel_metrics
from mil.metrics.ordinal import ordinal_metrics
from mil.metrics.regression import regression_metrics
from mil.metrics.survival import concordance, survival_metrics
from mil.packed import pack
from mil.splits.file import read_split, write_split
from mil.splits.schemes import make_split
from mil.task import Task, Words
from mil.tasks.binary import Binary
from mil.tasks.cox import Cox, negative_log_partial_likelihood
from mil.tasks.hazard import DiscreteHazard
from mil.tasks.multilabel import Multilabel
from mil.tasks.ordinal import Ordinal, cumulative_logits
from mil.tasks.regression import Regression

PROMPT = {
    "embed": {"_target_": "mil.embed.AdapterEmbed", "hidden": 16},
    "bank": {"_target_": "mil.bank.PromptBank"},
    "assign": {"_target_": "mil.assign.StraightThroughTopJ", "hidden": 8},
    "route": {"_target_": "mil.route.PerClass"},
    "head": {"_target_": "mil.head.TextHead"},
}
WORDS = Words(prompt_set="test", classes=CLASSES, background="normal", logit_bias=0.0)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


# --- step 0: the task's prediction is its formula on the zero-shot logits ---------------------------------------------


def zero_shot(n_tiles: int, seed: int, rule: str, reference: int | None, classes: list[int]) -> list[float]:
    """tau times the mean of the J = 3 largest of s_ik, or of s_ik - s_in, from the words, by loops."""
    words = bank()
    tau = math.exp(words.logit_scale)
    tiles = [row / np.linalg.norm(row) for row in bag(n_tiles, seed).features.astype(np.float64)]
    names = [words.class_vector(CLASSES[index]) for index in classes]
    logits = []
    for name in names:
        scores = [tau * float(tile @ name) for tile in tiles]
        if rule == "margin" and reference is not None:
            scores = [score - tau * float(tile @ names[reference]) for score, tile in zip(scores, tiles, strict=True)]
        best = sorted(scores, reverse=True)[: {"mean": n_tiles, "max": 1}.get(rule, 3)]
        logits.append(math.fsum(best) / len(best))
    return logits


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def start_logits(n_tiles: int, seed: int, rule: str, reference: int | None, classes: list[int]) -> torch.Tensor:
    """Of the aggregator `prompt` with no residual, in double precision."""
    given = facts(rule)
    words = given.text
    text = replace(words, classes=words.classes[classes], membership=words.membership[:, classes])
    given = replace(given, n_classes=len(classes), background=reference, text=text)
    with torch.inference_mode():
        output = compose(PROMPT, given).double().eval()(bag(n_tiles, seed).tensor(torch.float64), pack([n_tiles]))
    return output.logits


def own_prediction(task: str, logits: list[float]) -> list[float]:
    """Probabilities and score by the formula of each task, from the class logits."""
    share = softmax(logits)
    if task == "binary":
        said = sigmoid(logits[1] - logits[0])
        return [1 - said, said]
    if task == "multilabel":  # the last class is the background
        each = [sigmoid(value) for value in logits[:-1]]
        return [*each, math.prod(1 - value for value in each)]
    if task == "ordinal":
        above = [sum(map(math.exp, logits[k + 1 :])) / sum(map(math.exp, logits[: k + 1])) for k in range(2)]
        surpassed = [1.0, *(odds / (1 + odds) for odds in above), 0.0]
        return [first - second for first, second in pairwise(surpassed)]
    if task == "regression":
        return [*share, sum(anchor * value for anchor, value in zip((-1.0, 0.5, 4.0), share, strict=True))]
    if task == "survival":  # hazards, then what survives them
        alive, survived = 1.0, []
        for k in range(2):
            alive *= 1 - share[k] / sum(share[k:])
            survived.append(alive)
        return [*share, -sum(survived)]
    thresholds = [
        math.log(sum(map(math.exp, logits[k + 1 :]))) - math.log(sum(map(math.exp, logits[: k + 1]))) for k in range(2)
    ]
    return [*share, -sum(thresholds) / 2]


TASKS: dict[str, Task] = {
    "binary": Binary(),
    "multilabel": Multilabel(),
    "ordinal": Ordinal(),
    "regression": Regression(anchors=[-1.0, 0.5, 4.0]),
    "survival": DiscreteHazard(),
    "cox": Cox(),
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("rule", ["mean", "max", "topj", "margin"])
@pytest.mark.parametrize("n_tiles", [1, 2, 40])
def test_step_zero_is_the_formula_on_the_zero_shot_logits(name: str, rule: str, n_tiles: int):
    if name == "multilabel" and rule != "margin":
        pytest.skip("these words have no zero but the background's: refused")
    task, classes = TASKS[name], [0, 1] if name == "binary" else [0, 1, 2]
    reference = 0 if name == "binary" else 2
    names = [CLASSES[index] for index in classes]
    task.start(names, WORDS, is_margin=rule == "margin", is_text=True)
    outcome = task.predict(start_logits(n_tiles, 7, rule, reference, classes))
    found = [*outcome.probabilities[0], *([] if outcome.score is None else outcome.score)]
    expected = own_prediction(name, zero_shot(n_tiles, 7, rule, reference, classes))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_encoders_bias_is_where_a_sigmoid_starts_without_a_margin():
    task = Multilabel()
    words = replace(WORDS, background=None, logit_bias=-2.5)
    task.start(CLASSES, words, is_margin=False, is_text=True)
    logits = zero_shot(9, 3, "topj", None, [0, 1, 2])
    found = task.probabilities(torch.tensor([logits], dtype=torch.float64))[0]
    np.testing.assert_allclose(found, [sigmoid(value - 2.5) for value in logits], atol=1e-12)


def test_words_without_a_zero_are_refused_and_a_random_start_is_not():
    words = replace(WORDS, background=None)
    with pytest.raises(InputError, match="scores without a zero"):
        Multilabel().start(CLASSES, words, is_margin=False, is_text=True)
    Multilabel().start(CLASSES, words, is_margin=False, is_text=False)


def test_binary_has_one_row_of_weights_which_is_the_difference_of_the_words():
    given = facts("margin")
    text = replace(given.text, classes=given.text.classes[:2], membership=given.text.membership[:, :2])
    head = compose(PROMPT, replace(given, n_classes=2, background=0, text=text)).double().head
    vectors = bag(11, 4).tensor(torch.float64)
    difference = text.classes.double()[1] - text.classes.double()[0]  # not of unit length
    torch.testing.assert_close(head.evidence(vectors)[:, 1], head.scale() * vectors @ difference, atol=1e-5, rtol=0)
    (head.evidence(vectors).sum() + head.bias_row().sum()).backward()
    assert head.delta.grad[1].abs().sum() > 0
    assert head.delta.grad[0].abs().sum() == head.bias.grad[0] == 0


def test_the_negative_class_comes_first_whatever_the_order_of_the_words():
    two = replace(WORDS, background=None)
    assert Binary().classes(["beta", "alpha"], two) == ["alpha", "beta"]
    assert Binary(negative="beta").classes(["beta", "alpha"], two) == ["beta", "alpha"]
    assert Binary().classes(["normal", "alpha"], WORDS) == ["normal", "alpha"]
    assert Binary().reference(["beta", "alpha"], two) == "beta"
    with pytest.raises(InputError, match="expected 2 classes, got alpha, beta, normal"):
        Binary().classes(list(CLASSES), WORDS)
    with pytest.raises(InputError, match=r"task.negative=normal"):
        Binary(negative="normal").classes(["beta", "alpha"], two)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_binary_loss_is_the_weighted_log_loss():
    logits, labels = random(9, 2), np.array([0, 0, 1, 0, 0, 1, 0, 0, 0])
    task = Binary()
    task.fit(torch.tensor(labels), 2)
    expected = log_loss(labels, [sigmoid(b - a) for a, b in logits], sample_weight=np.where(labels, 9 / 4, 9 / 14))
    assert float(task.loss(torch.tensor(logits), torch.tensor(labels))) == pytest.approx(expected)


def test_cumulative_logits_are_differences_of_logsumexp():
    for row, found in zip(random(5, 4), cumulative_logits(torch.tensor(random(5, 4))), strict=True):
        expected = [np.logaddexp.reduce(row[k + 1 :]) - np.logaddexp.reduce(row[: k + 1]) for k in range(3)]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_ordinal_loss_is_the_mean_over_thresholds_and_weighs_classes():
    logits, labels = random(6, 3), [0, 2, 1, 2, 2, 0]
    task = Ordinal()
    task.fit(torch.tensor(labels), 3)
    total, weight = 0.0, 0.0
    for row, label in zip(logits, labels, strict=True):
        one = 6 / (3 * labels.count(label))
        for k in range(2):
            above = sum(map(math.exp, row[k + 1 :])) / sum(map(math.exp, row))
            total -= one * math.log(above if label > k else 1 - above) / 2
        weight += one
    assert float(task.loss(torch.tensor(logits), torch.tensor(labels))) == pytest.approx(total / weight)


def test_a_far_class_costs_more_than_a_near_one():
    task, said = Ordinal(), torch.tensor([[0.0, 0.0, 3.0, 0.0]])
    costs = [float(task.loss(said, torch.tensor([label]))) for label in range(4)]
    assert costs[2] < costs[1] < costs[0]


def test_unknown_classes_of_a_slide_cost_nothing_and_weights_come_from_the_known():
    task = Multilabel()
    assert task.classes(["alpha;beta?", "beta", "normal"], WORDS) == list(CLASSES)
    rows = task.targets(["alpha;beta?", "beta", "normal", "alpha; beta"], CLASSES)
    np.testing.assert_array_equal(rows, [[1, np.nan, np.nan], [0, 1, np.nan], [0, 0, np.nan], [1, 1, np.nan]])
    targets = torch.tensor(rows)
    task.start(CLASSES, WORDS, is_margin=True, is_text=True)
    task.fit(targets, 3)
    logits = random(4, 3)
    total, weight = 0.0, 0.0
    for column, (n_with, n_known) in enumerate(((2, 4), (2, 3))):
        for row in range(4):
            truth = rows[row][column]
            if not math.isnan(truth):
                one = n_known / (2 * (n_with if truth else n_known - n_with))
                said = sigmoid(logits[row, column])
                total -= one * math.log(said if truth else 1 - said)
                weight += one
    assert float(task.loss(torch.tensor(logits), targets)) == pytest.approx(total / weight)
    assert task.targets(["-"], CLASSES)[0][:2] == (0, 0)
    assert task.decisions(np.array([[0.9, 0.5, 0.1], [0.2, 0.1, 0.8]]), CLASSES) == ["alpha;beta", "normal"]


def test_a_batch_without_a_known_class_costs_nothing():
    task, logits = Multilabel(), torch.zeros(2, 2, requires_grad=True)
    loss = task.loss(logits, torch.full((2, 2), torch.nan))
    loss.backward()
    assert loss.item() == logits.grad.abs().sum().item() == 0


def test_anchors_are_quantiles_of_the_training_labels_and_the_prediction_stays_between_them():
    task = Regression()
    labels = torch.tensor([5.0, 1.0, 2.0, 9.0, 4.0])
    task.fit(labels, 3)
    assert task.learned["anchors"] == [1, 4, 9]
    logits = torch.tensor([[50.0, 0, 0], [0, 0, 50], [0, 0, 0]], dtype=torch.float64)
    np.testing.assert_allclose(task.scores(logits), [1, 9, 14 / 3])
    expected = np.mean(np.square(np.array([1, 9, 14 / 3]) - [2, 9, 5])) / np.var([5, 1, 2, 9, 4])
    assert float(task.loss(logits, torch.tensor([2.0, 9.0, 5.0]))) == pytest.approx(expected)
    with pytest.raises(InputError, match="are not 4 different values"):
        task.fit(torch.tensor([1.0, 1.0, 1.0, 2.0]), 4)
    with pytest.raises(InputError, match="rising values"):
        Regression(anchors=[3.0, 1.0])
    with pytest.raises(InputError, match="one a class of the prompt set"):
        Regression(anchors=[1.0, 3.0]).classes([], WORDS)


SURVIVAL = ["3", "5+", "1.5", "9", "9", "12+", "2", "4", "1+"]


def test_hazard_loss_is_the_likelihood_of_the_hazards_and_bins_are_of_training_events():
    task = DiscreteHazard()
    targets = torch.tensor(task.targets(SURVIVAL, CLASSES))
    task.fit(targets, 3)
    edges = np.quantile([3, 1.5, 9, 9, 2, 4], [1 / 3, 2 / 3])
    np.testing.assert_allclose(task.learned["edges"], edges)
    logits, total = random(9, 3), 0.0
    for row, label in zip(logits, SURVIVAL, strict=True):
        time, share = float(label.rstrip("+")), softmax(list(row))
        hazards = [share[k] / sum(share[k:]) for k in range(3)]
        k = sum(time >= edge for edge in edges)
        total -= sum(math.log(1 - hazard) for hazard in hazards[:k])
        total -= 0 if label.endswith("+") else math.log(hazards[k])
    assert float(task.loss(torch.tensor(logits), targets)) == pytest.approx(total / 9)
    outcome = task.predict(torch.tensor(logits))
    found = task.metrics(task.targets(SURVIVAL, CLASSES), outcome, CLASSES)
    assert found["nll"] == pytest.approx(total / 9)


def test_censored_slides_move_no_edge_and_too_few_events_are_refused():
    task = DiscreteHazard()
    events = [label for label in SURVIVAL if not label.endswith("+")]
    task.fit(torch.tensor(task.targets(events, CLASSES)), 3)
    without = task.learned["edges"]
    task.fit(torch.tensor(task.targets([*events, "0+", "99+", "3.3+"], CLASSES)), 3)
    assert task.learned["edges"] == without
    for labels in (["3+", "4+"], ["2", "2", "2", "5+"]):
        with pytest.raises(InputError, match=r"task=survival: .*event"):
            task.fit(torch.tensor(task.targets(labels, CLASSES)), 4)
    with pytest.raises(InputError, match="no event"):
        Cox().fit(torch.tensor(task.targets(["3+", "4+"], CLASSES)), 2)


def own_partial_likelihood(risks: list[float], times: list[float], events: list[bool], ties: str) -> float:
    """Product over the distinct event times, as the papers write it."""
    total = 0.0
    for time in sorted({t for t, event in zip(times, events, strict=True) if event}):
        tied = [math.exp(r) for r, t, event in zip(risks, times, events, strict=True) if t == time and event]
        at_risk = sum(math.exp(r) for r, t in zip(risks, times, strict=True) if t >= time)
        for place, one in enumerate(tied):
            taken = sum(tied) * place / len(tied) if ties == "efron" else 0.0
            total += math.log(one) - math.log(at_risk - taken)
    return -total / sum(events)


@pytest.mark.parametrize("ties", ["breslow", "efron"])
@pytest.mark.parametrize("seed", range(4))
def test_cox_loss_is_the_partial_likelihood_with_ties(ties: str, seed: int):
    generator = np.random.default_rng(seed)
    times, events = generator.integers(1, 6, 20).astype(float), generator.random(20) < 0.6
    risks = generator.normal(size=20)
    found = negative_log_partial_likelihood(torch.tensor(risks), torch.tensor(times), torch.tensor(events), ties=ties)
    assert float(found) == pytest.approx(own_partial_likelihood(list(risks), list(times), list(events), ties))


def test_the_two_ways_to_treat_ties_differ_only_when_there_are_some():
    risks, events = torch.tensor(random(6)), torch.tensor([True, True, False, True, True, False])
    ways = [
        [float(negative_log_partial_likelihood(risks, torch.tensor(times), events, ties=ties)) for times in (one, two)]
        for ties in ("breslow", "efron")
        for one, two in [([1.0, 2, 3, 4, 5, 6], [1.0, 1, 3, 4, 4, 6])]
    ]
    assert ways[0][0] == pytest.approx(ways[1][0])
    assert ways[0][1] > ways[1][1] + 0.01


def test_a_batch_without_an_event_contributes_nothing():
    task, logits = Cox(), torch.tensor(random(3, 2), requires_grad=True)
    loss = task.loss(logits, torch.tensor(task.targets(["3+", "4+", "1+"], CLASSES)))
    loss.backward()
    assert loss.item() == logits.grad.abs().sum().item() == 0


def test_the_risk_of_two_classes_is_the_difference_of_their_logits():
    logits = torch.tensor(random(4, 2))
    torch.testing.assert_close(Cox().scores(logits), logits[:, 0] - logits[:, 1])
    assert bool((DiscreteHazard().scores(torch.tensor([[9.0, 0, 0], [0, 0, 9]])).diff() < 0).all())


# --- figures ----------------------------------------------------------------------------------------------------------


def test_ordinal_figures_are_scikit_learns():
    generator = np.random.default_rng(1)
    labels, said = generator.integers(0, 4, 60), generator.dirichlet(np.ones(4), 60)
    found = ordinal_metrics(labels, said, "abcd")
    median = np.array([next(k for k in range(4) if sum(row[: k + 1]) >= 0.5) for row in said])
    assert found["qwk"] == pytest.approx(cohen_kappa_score(labels, median, weights="quadratic"))
    assert found["class_mae"] == pytest.approx(mean_absolute_error(labels, median))
    assert found["macro_auc"] == pytest.approx(roc_auc_score(labels, said, multi_class="ovr"))
    constant = ordinal_metrics(np.array([1, 1]), np.array([[0.1, 0.9], [0.2, 0.8]]), "ab")
    assert constant["qwk"] is None
    assert "all of one class" in constant["undefined"]["qwk"]


def test_multilabel_figures_are_scikit_learns_on_what_is_known():
    generator = np.random.default_rng(2)
    truth, said = (generator.random((50, 2)) < 0.4).astype(float), generator.random((50, 2))
    truth[generator.random((50, 2)) < 0.3] = np.nan
    found = multilabel_metrics(truth, said, ["a", "b"])
    known = [~np.isnan(truth[:, column]) for column in range(2)]
    pairs = [(truth[rows, column], said[rows, column]) for column, rows in enumerate(known)]
    for name, figure in (("auc", roc_auc_score), ("average_precision", average_precision_score)):
        expected = [figure(*pair) for pair in pairs]
        assert [found[f"{name}_a"], found[f"{name}_b"]] == pytest.approx(expected)
        assert found[f"macro_{name}"] == pytest.approx(np.mean(expected))
    assert found["f1_b"] == pytest.approx(f1_score(pairs[1][0], pairs[1][1] >= 0.5))
    assert found["nll"] == pytest.approx(log_loss(*map(np.concatenate, zip(*pairs, strict=True))))
    lone = multilabel_metrics(np.array([[1, np.nan], [1, np.nan]]), said[:2], ["a", "b"])
    assert lone["auc_a"] is lone["macro_auc"] is None
    assert lone["undefined"]["auc_a"] == "every slide is a"
    assert lone["undefined"]["auc_b"] == "no known slide is b"


def test_regression_figures_are_scikit_learns_and_scipys():
    truth = random(40)
    said = truth + random(40, seed=1)
    found = regression_metrics(truth, said)
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, said))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(truth, said))
    assert found["r2"] == pytest.approx(r2_score(truth, said))
    assert found["pearson"] == pytest.approx(pearsonr(truth, said).statistic)
    rounded = np.round(said, 1)  # ties
    assert regression_metrics(truth, rounded)["spearman"] == pytest.approx(spearmanr(truth, rounded).statistic)
    constant = regression_metrics(truth, np.zeros(40))
    assert constant["pearson"] is None
    assert constant["r2"] == pytest.approx(r2_score(truth, np.zeros(40)))


def own_concordance(times: list[float], events: list[bool], risks: list[float]) -> float:
    """Pair by pair."""
    right, known = 0.0, 0
    for i in range(len(times)):
        for j in range(len(times)):
            if i == j or not events[i]:
                continue
            if times[i] < times[j] or (times[i] == times[j] and not events[j]):
                known += 1
                right += 1.0 if risks[i] > risks[j] else 0.5 if risks[i] == risks[j] else 0.0
    return right / known


@pytest.mark.parametrize("seed", range(4))
def test_the_c_index_is_the_share_of_pairs_in_the_right_order(seed: int):
    generator = np.random.default_rng(seed)
    times, events = generator.integers(1, 9, 30).astype(float), generator.random(30) < 0.6
    risks = np.round(generator.normal(size=30), 1)
    expected = own_concordance(list(times), list(events), list(risks))
    assert concordance(times, events, risks) == pytest.approx(expected)


def test_without_censoring_and_ties_the_c_index_is_kendalls_share():
    from scipy.stats import kendalltau

    times, risks = random(25), random(25, seed=3)
    found = concordance(times - times.min(), np.ones(25, bool), risks)
    assert found == pytest.approx((1 - kendalltau(times, risks).statistic) / 2)


def test_a_c_index_of_censored_slides_only_is_not_defined():
    found = survival_metrics(np.array([1.0, 2.0]), np.array([False, False]), np.array([0.1, 0.2]))
    assert found["c_index"] is None
    assert "no two slides" in found["undefined"]["c_index"]


# --- labels and splits ------------------------------------------------------------------------------------------------


def table(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def test_time_and_event_columns_become_one_label_and_stand_over_a_label_column(tmp_path: Path):
    path = table(tmp_path, "slide_id,patient_id,label,time,event\na,p,LUAD,12.5,1\nb,q,LUSC,30,0\n")
    assert [row.label for row in read_labels(path, kind=TIME_TO_EVENT).rows] == ["12.5", "30+"]
    assert [row.label for row in read_labels(path).rows] == ["LUAD", "LUSC"]
    path = table(tmp_path, "slide_id,patient_id,label\na,p,12.5\nb,q,30+\n")
    assert [row.label for row in read_labels(path, kind=TIME_TO_EVENT).rows] == ["12.5", "30+"]


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        (NUMBER, "a,p,high", r"expected a number, got slide a: 'high'"),
        (NUMBER, "a,p,inf", r"expected a number, got slide a: 'inf'"),
        (TIME_TO_EVENT, "a,p,-3", r"expected a time such as .* got slide a: '-3'"),
        (SEVERAL_CLASSES, "a,p,x;;y", r"expected class names such as .* got slide a: 'x;;y'"),
        (SEVERAL_CLASSES, "a,p,x;x?", r"none twice, got slide a"),
    ],
)
def test_a_label_that_cannot_be_read_names_its_slide(tmp_path: Path, kind, rows: str, message: str):
    with pytest.raises(InputError, match=message):
        read_labels(table(tmp_path, f"slide_id,patient_id,label\n{rows}\n"), kind=kind)


def test_an_event_that_is_neither_yes_nor_no_names_its_slide(tmp_path: Path):
    with pytest.raises(InputError, match=r"slide a: '3 event=dead'"):
        read_labels(table(tmp_path, "slide_id,patient_id,time,event\na,p,3,dead\n"), kind=TIME_TO_EVENT)


COHORTS = {
    NUMBER: [str(value / 2) for value in range(30)],
    TIME_TO_EVENT: [f"{value}{'+' * (value % 4 == 0)}" for value in range(1, 31)],
    SEVERAL_CLASSES: [("a;b", "a", "b;c?", "-", "a")[value % 5] for value in range(30)],
}


@pytest.mark.parametrize("kind", COHORTS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("seed", range(3))
def test_every_kind_of_label_is_dealt_out_evenly_and_reads_back(tmp_path: Path, kind, seed: int):
    lines = [f"s{place:02},p{place:02},{label}" for place, label in enumerate(COHORTS[kind])]
    cohort = read_labels(table(tmp_path, "slide_id,patient_id,label\n" + "\n".join(lines) + "\n"), kind=kind)
    split = make_split(cohort, folds=3, seed=seed, kind=kind)
    write_split(split, tmp_path / "kfold.csv")
    assert read_split(tmp_path / "kfold.csv", kind=kind) == split
    groups = kind.strata(cohort.labels_of_patients(), 3)
    for fold in range(3):
        counts = Counter(groups[row.patient_id] for row in split.part(fold, "test"))
        for name, total in Counter(groups.values()).items():
            assert abs(counts[name] - total / 3) < 1
        assert split.part(fold, "val")
    if kind is not SEVERAL_CLASSES:
        with pytest.raises(InputError, match=r"no (train|val|test) slide of class"):
            read_split(tmp_path / "kfold.csv", kind=ONE_CLASS)


@pytest.mark.parametrize(("n_patients", "n_events", "folds"), [(40, 6, 3), (12, 9, 2)])
@pytest.mark.parametrize("seed", range(6))
def test_an_event_is_in_every_part_however_few(tmp_path: Path, n_patients: int, n_events: int, folds: int, seed: int):
    lines = [f"s{place:02},p{place:02},{place + 1}{'' if place < n_events else '+'}" for place in range(n_patients)]
    cohort = read_labels(table(tmp_path, "slide_id,patient_id,label\n" + "\n".join(lines) + "\n"), kind=TIME_TO_EVENT)
    split = make_split(cohort, folds=folds, seed=seed, kind=TIME_TO_EVENT)
    for fold in range(folds):
        for part in ("train", "val", "test"):
            assert any(not row.label.endswith("+") for row in split.part(fold, part))
