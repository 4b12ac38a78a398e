"""The choice of tiles by a coarse look: the budget is kept, what is looked for comes first, each has its parent."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import HEADER

from feature_extraction.errors import DamagedFileError
from feature_extraction.grid import Tiling, make_grid
from feature_extraction.reading import (
    NO_PARENT,
    REASONS,
    SIMILAR,
    UNCERTAIN,
    UNSEEN,
    ChosenTiles,
    ClassWords,
    CoarseTiles,
    ReadingRule,
    choose_tiles,
    find_defect,
    interest,
    parent_of,
    tiles_in,
)
from feature_extraction.store import FeatureFile, FeatureRows, write_features
from feature_extraction.verify import read_whole

DIM = 6
WORDS = ClassWords(vectors=np.eye(3, DIM), background=0, scale=10.0)
RULE = ReadingRule(
    budget=0.2, uncertain=0.25, prompt_set="w", prompt_set_sha256="a" * 64, coarse_mpp=2.0, coarse_fingerprint="b" * 64
)


def corners(side_px: int, mpp: float, extent: tuple[int, int]) -> tuple[np.ndarray, tuple[float, float]]:
    grid = make_grid(Tiling(tile_px=side_px, tile_mpp=mpp, step_px=side_px), (0.5, 0.5), (0, 0, *extent))
    return grid.coords_lv0(), grid.size_lv0


def coarse_of(features: np.ndarray, extent: tuple[int, int]) -> CoarseTiles:
    coords, size = corners(100, 2.0, extent)
    return CoarseTiles(features=features[: len(coords)], coords_lv0=coords, size_lv0=size, content_sha256="c" * 64)


@st.composite
def looks(draw: st.DrawFn) -> tuple[np.ndarray, tuple[float, float], CoarseTiles]:
    """Tiles with tissue of a slide of any shape, and a coarse look at it."""
    extent = (draw(st.integers(50, 2500)), draw(st.integers(50, 2500)))
    coords, size = corners(100, 0.5, extent)
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    is_tissue = generator.random(len(coords)) < draw(st.sampled_from([0.1, 0.6, 1.0]))
    n_distinct = draw(st.sampled_from([1, 3, 99]))  # few: many parents are equal
    features = generator.normal(size=(n_distinct, DIM))[generator.integers(0, n_distinct, 99)]
    return coords[is_tissue], size, coarse_of(features, extent)


BUDGETS = st.one_of(st.integers(1, 700), st.floats(0.001, 1.0))


@settings(max_examples=60, deadline=None)
@given(looks(), BUDGETS, st.floats(0, 1))
def test_the_budget_is_spent_and_every_tile_has_its_parent_and_a_reason(look, budget: float, uncertain: float):
    coords, size, coarse = look
    rule = replace(RULE, budget=budget, uncertain=uncertain)
    rows, chosen = choose_tiles(coords, size, coarse, WORDS, rule)
    assert (np.diff(rows) > 0).all()
    assert find_defect(chosen, len(rows)) is None
    if len(coarse.features) == 0:
        assert len(rows) == len(coords)
        assert set(chosen.reasons) <= {UNSEEN}
        return
    assert len(rows) == tiles_in(budget, len(coords))
    n_uncertain = int((chosen.reasons == UNCERTAIN).sum())
    assert n_uncertain == int(len(rows) * uncertain + 1e-9)
    assert n_uncertain + int((chosen.reasons == SIMILAR).sum()) == len(rows)
    known = {tuple(corner) for corner in coarse.coords_lv0.tolist()}
    assert {tuple(corner) for corner in chosen.parents_lv0.tolist()} <= known


@settings(max_examples=60, deadline=None)
@given(looks(), st.integers(1, 300), st.integers(0, 300), st.floats(0, 1))
def test_a_larger_budget_takes_all_that_a_smaller_one_takes(look, budget: int, more: int, uncertain: float):
    coords, size, coarse = look
    chosen = [
        set(choose_tiles(coords, size, coarse, WORDS, replace(RULE, budget=n, uncertain=uncertain))[0].tolist())
        for n in (budget, budget + more)
    ]
    assert chosen[0] <= chosen[1]


@settings(max_examples=40, deadline=None)
@given(looks())
def test_a_parent_holds_the_centre_of_its_tile_or_is_the_nearest(look):
    coords, size, coarse = look
    if len(coarse.features) == 0:
        return
    parents = coarse.coords_lv0[parent_of(coords, size, coarse)]
    centres = coords + np.array(size) / 2
    gaps = np.linalg.norm(centres[:, None] - (coarse.coords_lv0 + np.array(coarse.size_lv0) / 2), axis=2)
    own = centres - (parents + np.array(coarse.size_lv0) / 2)
    np.testing.assert_allclose(np.linalg.norm(own, axis=1), gaps.min(axis=1))
    is_held = (centres < coarse.coords_lv0.max(axis=0) + np.array(coarse.size_lv0)).all(axis=1)
    assert (np.abs(own[is_held]) <= np.array(coarse.size_lv0) / 2).all()


@settings(max_examples=20, deadline=None)
@given(looks(), st.randoms(use_true_random=False))
def test_parents_that_differ_are_taken_in_the_same_order_however_they_are_listed(look, random):
    coords, size, coarse = look
    features = np.random.default_rng(0).normal(size=(len(coarse.coords_lv0), DIM))
    order = random.sample(range(len(features)), len(features))
    one = replace(coarse, features=features)
    other = replace(coarse, features=features[order], coords_lv0=coarse.coords_lv0[order])
    rows, chosen = choose_tiles(coords, size, one, WORDS, RULE)
    rows_too, chosen_too = choose_tiles(coords, size, other, WORDS, RULE)
    # A centre on the border of two coarse tiles may go to either: here none lies there (four tiles to a coarse one).
    assert rows.tolist() == rows_too.tolist()
    assert np.array_equal(chosen.parents_lv0, chosen_too.parents_lv0)


def test_tiles_of_the_most_similar_parent_come_first_and_then_those_of_the_most_open_one():
    extent = (2400, 800)
    coords, size = corners(100, 0.5, extent)
    background, first, second = np.eye(3, DIM)
    features = np.stack([background, first - background, background, first + second, background, background])
    rows, chosen = choose_tiles(
        coords, size, coarse_of(np.concatenate([features, features]), extent), WORDS, replace(RULE, budget=40)
    )
    column = coords[rows][:, 0] // 400
    assert (chosen.parents_lv0[:, 0] // 400 == column).all()
    assert set(column[chosen.reasons == SIMILAR]) == {1}
    assert set(column[chosen.reasons == UNCERTAIN]) == {3}
    similarity, entropy = interest(features, WORDS)
    assert similarity.argmax() == 1
    assert entropy.argmax() == 3


def test_similarity_is_the_margin_over_the_background_and_openness_the_entropy():
    generator = np.random.default_rng(3)
    rows = generator.normal(size=(20, DIM)) * 7  # of any length
    similarity, entropy = interest(rows, WORDS)
    for row, found, openness in zip(rows, similarity, entropy, strict=True):
        cosines = [float(row @ vector) / float(np.linalg.norm(row)) for vector in WORDS.vectors]
        shares = np.exp(np.array(cosines) * WORDS.scale)
        shares /= shares.sum()
        assert found == pytest.approx(max(cosines[1:]) - cosines[0])
        assert openness == pytest.approx(-sum(share * np.log(share) for share in shares))
    without, _ = interest(rows, replace(WORDS, background=None))
    assert without == pytest.approx((rows @ WORDS.vectors.T / np.linalg.norm(rows, axis=1, keepdims=True)).max(axis=1))


def test_a_single_class_leaves_nothing_open():
    coords, size = corners(100, 0.5, (1600, 1600))
    alone = replace(WORDS, vectors=WORDS.vectors[:1], background=None)
    features = np.random.default_rng(0).normal(size=(16, DIM))
    _, chosen = choose_tiles(coords, size, coarse_of(features, (1600, 1600)), alone, RULE)
    assert set(chosen.reasons) == {SIMILAR}


def test_a_share_is_rounded_up_and_a_number_is_a_number():
    assert [tiles_in(budget, 10) for budget in (0.01, 0.2, 0.21, 1.0, 1, 5, 50)] == [1, 2, 3, 10, 1, 5, 10]
    assert tiles_in(0.3, 0) == 0


def test_every_contradiction_in_a_record_is_named():
    described = json.dumps({"budget": 3, "n_candidates": 9})
    good = ChosenTiles(
        parents_lv0=np.zeros((3, 2), np.int64), reasons=np.array([0, 1, 0], np.uint8), described=described
    )
    assert find_defect(good, 3) is None
    bad = {
        "3 parents and 3 reasons": (good, 2),
        "reason 3 is unknown": (replace(good, reasons=np.array([0, 1, len(REASONS)], np.uint8)), 3),
        "lacks one": (replace(good, parents_lv0=np.full((3, 2), NO_PARENT)), 3),
        "unseen one has one": (replace(good, reasons=np.full(3, UNSEEN, np.uint8)), 3),
        "more than the 2": (replace(good, described=json.dumps({"budget": 2, "n_candidates": 9})), 3),
        "cannot be read (KeyError": (replace(good, described="{}"), 3),
        "cannot be read (JSONDecodeError": (replace(good, described="{"), 3),
    }
    for message, (chosen, n_tiles) in bad.items():
        assert message in (find_defect(chosen, n_tiles) or "")


def test_a_file_gives_its_choice_back_and_one_that_contradicts_itself_is_not_whole(tmp_path: Path):
    described = json.dumps({"budget": 2, "n_candidates": 9})
    chosen = ChosenTiles(
        parents_lv0=np.arange(4).reshape(2, 2), reasons=np.array([1, 0], np.uint8), described=described
    )
    rows = FeatureRows(
        spaces={"joint": np.ones((2, 4), np.float16)},
        coords_lv0=np.arange(4).reshape(2, 2),
        tissue_fraction=np.ones(2, np.float32),
        failed_coords_lv0=np.empty((0, 2), np.int64),
        chosen=chosen,
    )
    path = tmp_path / f"{HEADER.slide_id}.h5"
    write_features(path, replace(HEADER, reading=described), rows)
    assert read_whole(path).reading == described
    found = FeatureFile(path).chosen
    assert found is not None
    assert np.array_equal(found.parents_lv0, chosen.parents_lv0)
    assert np.array_equal(found.reasons, chosen.reasons)
    write_features(path, replace(HEADER, reading=described.replace("2,", "1,")), rows)
    with pytest.raises(DamagedFileError, match="2 tiles, more than the 1 of the budget"):
        read_whole(path)
    write_features(path, replace(HEADER, reading=described), replace(rows, chosen=None))
    with pytest.raises(DamagedFileError, match="holds no reading_parents"):
        read_whole(path)
