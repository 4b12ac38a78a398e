"""Figures of faithfulness: equal to plain loops, right on planted evidence, and not fooled by an attention decoy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from bags import CLASSES, CONCEPTS, bag, facts
from test_kept_tiles import CONFIGS, moved

from mil.aggregator import Aggregator, compose
from mil.bag import Bag
from mil.heatmap.concept_table import add_counterfactuals, concept_table
from mil.heatmap.contributions import Words, auc_against, explain, share_inside
from mil.heatmap.faithfulness import STEPS, SUFFICIENT, Said, dropped_at, ladder, measure, rank_correlation
from mil.heatmap.kept_tiles import reader_of
from mil.packed import pack
from mil.tasks.classification import Classification

TASK = Classification()


def said_of(aggregator: Aggregator, slide: Bag, column: int = 0) -> Said:
    return Said(reader_of(aggregator, slide), TASK, column)


def plain(aggregator: Aggregator, slide: Bag) -> Callable[[list[int]], float]:
    """The first class's probability from the listed tiles, read as a bag of its own."""
    tiles = slide.tensor()

    def probability(kept: list[int]) -> float:
        with torch.inference_mode():
            logits = aggregator(tiles[sorted(kept)], pack([len(kept)])).logits[0].double()
        return float(logits.softmax(dim=0)[0])

    return probability


@pytest.mark.parametrize("name", ["prompt", "gated_abmil", "transformer"])
@pytest.mark.parametrize("n_tiles", [2, 23])
def test_figures_are_those_of_plain_loops(name: str, n_tiles: int):
    aggregator, slide = moved(name, "text" if name == "prompt" else "random"), bag(n_tiles, 6)
    values = np.random.default_rng(2).standard_normal(n_tiles).round(1)
    report = measure(said_of(aggregator, slide), {"any": values}, 0.2, n_random=7)
    assert report is not None
    f, every = plain(aggregator, slide), list(range(n_tiles))
    generator = np.random.default_rng(0)
    chance = [generator.permutation(n_tiles).tolist() for _ in range(7)]
    order = sorted(every, key=lambda tile: (-values[tile], tile))
    gone = [step * n_tiles // (STEPS + 1) for step in range(STEPS + 1)]

    def area(one: list[int]) -> float:
        return float(np.mean([f(one[n:]) for n in gone]))

    def enough(one: list[int]) -> int:
        return next(size for size in ladder(n_tiles) if f(one[:size]) >= SUFFICIENT * f(every))

    k = report.n_evidence
    assert k == max(1, min(n_tiles - 1, round(0.2 * n_tiles)))
    figures = report.layers["any"]
    areas = np.array([area(one) for one in chance])
    assert figures.aopc.value == pytest.approx(f(every) - area(order), abs=1e-5)
    assert figures.aopc.random == pytest.approx(f(every) - areas.mean(), abs=1e-5)
    assert figures.aopc.p == pytest.approx((1 + (areas <= area(order) + 1e-7).sum()) / 8, abs=0.13)
    assert figures.gain.value == pytest.approx(area(order[::-1]) - area(order), abs=1e-5)
    assert figures.sufficiency.value == pytest.approx(f(order[:k]) - np.mean([f(o[:k]) for o in chance]), abs=1e-5)
    assert figures.necessity.value == pytest.approx(np.mean([f(o[k:]) for o in chance]) - f(order[k:]), abs=1e-5)
    assert figures.smallest_k.value == enough(order)
    assert figures.smallest_k.random == np.median([enough(o) for o in chance])


def test_p_is_small_for_the_best_order_and_large_for_its_reverse():
    aggregator, slide = moved("gated_abmil", "random"), bag(60, 6)
    values = explain(aggregator, TASK, slide)[0].contribution[:, 0]
    report = measure(said_of(aggregator, slide), {"own": values, "reverse": -values}, 0.1)
    assert report is not None
    own, reverse = report.layers["own"], report.layers["reverse"]
    assert own.aopc.p == own.gain.p == own.sufficiency.p == own.necessity.p == 0.01
    assert reverse.aopc.p > 0.9
    assert own.gain.value == pytest.approx(-reverse.gain.value)
    assert own.smallest_k.value <= reverse.smallest_k.value


def test_p_of_a_map_without_meaning_is_even():
    """Of random maps, a p of at most .2 comes about as often as it says."""
    aggregator, slide = moved("gated_abmil", "random"), bag(40, 6)
    generator = np.random.default_rng(5)
    layers = {str(number): generator.standard_normal(40) for number in range(150)}
    report = measure(said_of(aggregator, slide), layers, 0.1)
    assert report is not None
    for figure in ("aopc", "gain", "sufficiency", "necessity"):
        small = np.mean([getattr(one, figure).p <= 0.2 for one in report.layers.values()])
        assert 0.08 <= small <= 0.34


def test_nothing_can_be_dropped_from_a_slide_of_one_tile():
    assert measure(said_of(moved("prompt", "text"), bag(1, 6)), {"any": np.zeros(1)}, 0.1) is None


def test_steps_and_ladder_never_leave_nothing_and_end_with_everything():
    for n_tiles in (2, 5, 21, 22, 1000):
        assert dropped_at(n_tiles)[0] == 0
        assert dropped_at(n_tiles)[-1] < n_tiles
        assert ladder(n_tiles)[-1] == n_tiles
        assert (np.diff(ladder(n_tiles)) > 0).all()


def test_rank_correlation_is_of_ranks_and_undefined_for_flat_maps():
    values = np.random.default_rng(1).standard_normal(30)
    assert rank_correlation(np.stack([values, np.exp(values), values**3])) == pytest.approx(1)
    assert rank_correlation(np.stack([values, -values])) == pytest.approx(-1)
    assert np.isnan(rank_correlation(values[None]))
    assert np.isnan(rank_correlation(np.stack([values, np.zeros(30)])))


def test_share_inside_counts_the_strongest_tiles():
    scores, is_inside = np.arange(40.0), np.arange(40) >= 30
    assert share_inside(scores, is_inside) == 0.5
    assert share_inside(scores[:5], np.ones(5, bool)) == 1.0


# Planted evidence: some tiles speak for class 0, as many against it, the rest is noise.
FOR, AGAINST, DECOY = 0, 1, 2
GATED = CONFIGS["gated_abmil"] | {"embed": {"_target_": "mil.embed.StandardEmbed"}}


def planted(seed: int, n_for: int, n_against: int, n_decoy: int = 0, n_tiles: int = 60) -> tuple[Bag, np.ndarray]:
    """A bag, and what each tile is: 1 for, -1 against, 2 decoy, 0 neither."""
    kinds = np.array([1] * n_for + [-1] * n_against + [2] * n_decoy + [0] * (n_tiles - n_for - n_against - n_decoy))
    kinds = np.random.default_rng(seed).permutation(kinds)
    slide = bag(n_tiles, seed)
    slide.features[:] *= 0.5
    for kind, axis in ((1, FOR), (-1, AGAINST), (2, DECOY)):
        slide.features[kinds == kind, axis] += 3
    return slide, kinds


def built(*attended: int) -> Aggregator:
    """Gated attention that is drawn to some kinds of tiles, and a head that knows for from against."""
    aggregator = compose(GATED, facts("mean", init="random")).eval()
    with torch.no_grad():
        aggregator.head.linear.weight.zero_()
        aggregator.head.linear.weight[0, FOR], aggregator.head.linear.weight[0, AGAINST] = 20, -20
        gate = aggregator.assign.gate
        for parameter in gate.parameters():
            parameter.zero_()
        for unit, axis in enumerate(attended):
            gate.content.weight[unit, axis] = 5
            gate.out.weight[0, unit] = 4
        gate.gate.bias[:] = 10
    return aggregator


def test_signed_maps_separate_for_from_against_where_attention_does_not():
    aggregator = built(FOR, AGAINST)
    aucs = {"contribution": [], "evidence": [], "attention": []}
    for seed in range(100, 110):
        slide, kinds = planted(seed, 8, 8)
        (one,) = explain(aggregator, TASK, slide)
        is_for, is_planted = kinds[kinds != 0] > 0, kinds != 0
        for name, values in aucs.items():
            values.append(auc_against(getattr(one, name)[is_planted, 0], is_for))
    means = {name: np.mean(values) for name, values in aucs.items()}
    assert means["contribution"] >= 0.95
    assert means["evidence"] >= 0.95
    assert 0.2 < means["attention"] < 0.8


def test_an_attention_decoy_is_exposed_by_the_figures():
    aggregator = built(DECOY)
    slide, kinds = planted(200, n_for=6, n_against=0, n_decoy=6)
    (one,) = explain(aggregator, TASK, slide)
    attended = np.argsort(-one.attention[:, 0])[:6]
    assert (kinds[attended] == 2).all()  # attention alone points at the decoys, and nothing else
    layers = {"contribution": one.contribution[:, 0], "attention": one.attention[:, 0]}
    report = measure(said_of(aggregator, slide), layers, 0.1)
    assert report is not None
    signed, attention = report.layers["contribution"], report.layers["attention"]
    assert max(signed.aopc.p, signed.gain.p, signed.necessity.p) <= 0.05
    assert signed.sufficiency.p <= 0.1  # one such tile is enough, and random sets without a decoy may hold one
    assert min(attention.aopc.p, attention.gain.p, attention.sufficiency.p, attention.necessity.p) > 0.3
    assert signed.gain.value > attention.gain.value + 0.2
    assert auc_against(one.attention[:, 0], kinds == 1) < 0.7


def words(given: object) -> Words:
    assert given is not None
    return Words(
        classes=given.classes, concepts=given.concepts, membership=given.membership, scale=20.0, is_start=True,
        is_joint=True,
    )  # fmt: skip


def test_concepts_share_out_the_contribution_and_their_tiles_can_be_dropped():
    aggregator, slide = moved("prompt", "text"), bag(30, 8)
    given = facts("margin").text
    (one,) = explain(aggregator, TASK, slide, words(given))
    table = concept_table(one, CLASSES, CONCEPTS)
    assert table[["class", "concept"]].to_numpy().tolist() == [list(pair) for pair in CONCEPTS]
    for name in ("alpha", "beta"):
        total = table.loc[table["class"] == name, "contribution"].sum()
        assert total == pytest.approx(one.contribution[:, CLASSES.index(name)].sum())
    assert 0 < table["tiles"].sum() < 30  # the others are nearer to the background, which has no concept
    said = said_of(aggregator, slide)
    table = add_counterfactuals(table, one, said, "alpha")
    f = plain(aggregator, slide)
    for row, change in enumerate(table["change"]):
        kept = np.flatnonzero(one.concept_of_tile != row).tolist()
        expected = np.nan if len(kept) == 30 else f(kept) - f(list(range(30)))
        np.testing.assert_allclose(change, expected, atol=1e-5)


def test_similarity_is_that_of_the_words_whatever_was_learned():
    slide, given = bag(30, 8), facts("margin").text
    assert given is not None
    expected = 20.0 * slide.unit_rows() @ given.classes.double().numpy().T
    for name, init in (("prompt", "text"), ("prompt", "random"), ("gated_abmil", "random"), ("mixture", "text")):
        (one,) = explain(moved(name, init), TASK, slide, words(given))
        np.testing.assert_allclose(one.similarity, expected, atol=1e-5)
    assert explain(moved("gated_abmil", "random"), TASK, slide)[0].similarity is None
