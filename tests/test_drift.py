"""The drift audit names the prototypes that mean another word than their own."""

import pytest
import torch
import yaml
from bags import CLASSES, CONCEPTS, facts
from test_aggregator_contract import FOLDER

from mil.aggregator import Aggregator, compose
from mil.drift import audit


def member(name: str, rule: str = "margin") -> Aggregator:
    torch.manual_seed(0)
    return compose(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()), facts(rule))


@pytest.mark.parametrize("rule", ["margin", "topj"])
def test_at_the_start_everything_is_its_own_word(rule: str):
    found = audit(member("prompt", rule), CLASSES, CONCEPTS)
    assert [one.name for one in found if one.part == "class"] == list(CLASSES)
    assert [one.name for one in found if one.part == "concept"] == ["alpha / a one", "alpha / a two", "beta / b one"]
    n_heads = 2 if rule == "margin" else 3  # the background of a margin has none
    assert sum(one.part == "head" for one in found) == n_heads
    assert all(one.rank == 1 and one.nearest == one.name and not one.is_red for one in found)
    assert all(one.cosine == pytest.approx(1, abs=1e-6) for one in found)


def test_a_prototype_that_has_become_another_word_is_red():
    aggregator = member("prompt")
    bank = aggregator.bank
    with torch.no_grad():
        bank.delta_classes[0] = bank.base_classes[1] - 0.5 * bank.base_classes[0]
    (red,) = [one for one in audit(aggregator, CLASSES, CONCEPTS) if one.is_red]
    assert (red.part, red.name, red.nearest, red.rank) == ("class", "alpha", "beta", 2)
    assert red.cosine < 0.9


def test_without_words_there_is_nothing_to_audit():
    torch.manual_seed(0)
    config = yaml.safe_load((FOLDER / "gated_abmil.yaml").read_text())
    assert audit(compose(config, facts(init="random")), CLASSES, CONCEPTS) == []
