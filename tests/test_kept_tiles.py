"""A part of a slide: the closed form is the model itself, for every aggregator that has one, and else it is read."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bags import bag, facts, scaled

from mil.aggregator import Aggregator, compose, n_scales
from mil.bag import Bag, pack_tiles
from mil.heatmap.kept_tiles import ClosedForm, Forward, Reader, reader_of

FOLDER = Path(__file__).parent.parent / "conf" / "aggregator"
CONFIGS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}
STARTS = [pytest.param(name, init, id=f"{name}-{init}") for name, one in CONFIGS.items() for init in one["inits"]]
CLOSED = {
    "abmil", "clam_mb", "clam_sb", "gated_abmil", "max", "mean", "mean_linear", "prompt", "topj", "zs_mil",
}  # fmt: skip


def moved(name: str, init: str) -> Aggregator:
    """A member with every parameter off its start."""
    torch.manual_seed(0)
    aggregator = compose(CONFIGS[name], facts("margin", 3, init))
    aggregator.fit_parts(*[bag(60, 9).tensor()] * n_scales(CONFIGS[name]))
    with torch.no_grad():
        for parameter in aggregator.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return aggregator.eval()


def loop(aggregator: Aggregator, slide: Bag, kept: np.ndarray) -> np.ndarray:
    """Each set read alone."""
    found = []
    for chosen in kept:
        tiles = [one.tensor() for one in slide.scales()]
        tiles[0] = tiles[0][torch.from_numpy(chosen)]
        with torch.inference_mode():
            found.append(aggregator(torch.cat(tiles), pack_tiles([tiles])).logits[0].numpy())
    return np.array(found)


def sets(n_tiles: int) -> np.ndarray:
    """Single tiles, all but one, halves, everything."""
    halves = np.random.default_rng(1).random((8, n_tiles)) < 0.5
    halves[:, 0] = True
    one = np.eye(n_tiles, dtype=bool)
    return np.concatenate([one[:4], ~one, halves, np.ones((1, n_tiles), bool)])


@pytest.mark.parametrize(("name", "init"), STARTS)
def test_every_part_of_a_slide_gets_the_logits_that_the_model_gives_it(name: str, init: str):
    aggregator, slide = moved(name, init), scaled(n_scales(CONFIGS[name]), bag(17, 3))
    reader = reader_of(aggregator, slide)
    assert isinstance(reader, ClosedForm) == (name in CLOSED)
    np.testing.assert_allclose(reader.logits(sets(17)), loop(aggregator, slide, sets(17)), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "init"), STARTS)
def test_occlusion_is_what_the_slide_loses_without_the_tile(name: str, init: str):
    aggregator, slide = moved(name, init), scaled(n_scales(CONFIGS[name]), bag(9, 4))
    occlusion = reader_of(aggregator, slide).occlusion()
    assert occlusion is not None
    whole = loop(aggregator, slide, np.ones((1, 9), bool))
    np.testing.assert_allclose(occlusion, whole - loop(aggregator, slide, ~np.eye(9, dtype=bool)), atol=4e-4, rtol=1e-4)


def test_a_tile_that_has_all_the_attention_is_dropped_without_losing_digits():
    aggregator = moved("gated_abmil", "random")
    with torch.no_grad():
        aggregator.assign.gate.out.weight *= 2000
    aggregator = aggregator.double()
    slide = bag(30, 5)
    reader = reader_of(aggregator, slide)
    occlusion = reader.occlusion()
    everything = np.ones((1, 30), bool)
    slow = Forward(aggregator.float(), slide)
    expected = slow.logits(everything) - slow.logits(~np.eye(30, dtype=bool))
    assert occlusion is not None
    assert np.isfinite(occlusion).all()
    np.testing.assert_allclose(occlusion, expected, atol=1e-2)
    one = np.eye(30, dtype=bool)
    np.testing.assert_allclose(reader.logits(one), slow.logits(one), atol=1e-3)


def test_sets_read_in_several_passes_are_those_read_in_one(monkeypatch: pytest.MonkeyPatch):
    aggregator, slide = moved("transformer", "random"), bag(17, 3)
    expected = Forward(aggregator, slide).logits(sets(17))
    monkeypatch.setattr("mil.heatmap.kept_tiles.MOST_TILES", 20)
    np.testing.assert_allclose(Forward(aggregator, slide).logits(sets(17)), expected, atol=1e-5)
    closed = reader_of(moved("prompt", "text"), slide)
    together = closed.logits(sets(17))
    monkeypatch.setattr("mil.heatmap.kept_tiles.MOST_CELLS", 40)
    np.testing.assert_allclose(closed.logits(sets(17)), together)


@pytest.mark.parametrize("name", ["prompt", "transformer"])
def test_a_slide_of_one_tile_has_no_occlusion(name: str):
    reader: Reader = reader_of(moved(name, "random"), bag(1, 3))
    assert reader.occlusion() is None
