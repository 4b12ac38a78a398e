"""What the preflight holds the words against: the same slides with vectors that mean something else or nothing."""

import math

import numpy as np
import pytest
from bags import CLASSES, DIM, bag, bank

from mil.parts import Pooling
from mil.preflight_controls import nonsense_vectors, shuffled_vectors, slide_logits_of_draws
from mil.zeroshot import slide_logits


@pytest.mark.parametrize("rule", ["mean", "max", "topj", "margin"])
def test_the_first_draw_is_what_zeroshot_gives(rule: str):
    words, tiles, pooling = bank(), bag(9, seed=5), Pooling(rule=rule, top_j=4)
    vectors = np.stack([words.class_vector(name) for name in CLASSES])
    draws = np.concatenate([vectors[None], np.roll(vectors, 1, axis=0)[None]])
    found = slide_logits_of_draws(tiles, math.exp(words.logit_scale), draws, CLASSES.index("normal"), pooling)
    np.testing.assert_allclose(found[0], slide_logits(tiles, words, CLASSES, pooling), atol=1e-10)
    assert not np.allclose(found[1], found[0])


def test_nonsense_keeps_the_cosines_between_the_classes_and_loses_the_directions():
    vectors = np.stack([bank().class_vector(name) for name in CLASSES])
    for draw in nonsense_vectors(vectors, 20, np.random.default_rng(0)):
        np.testing.assert_allclose(draw @ draw.T, vectors @ vectors.T, atol=1e-10)
    draws = nonsense_vectors(vectors, 400, np.random.default_rng(0))
    assert abs((draws * vectors).sum(axis=2).mean()) < 3 / math.sqrt(400 * DIM)


@pytest.mark.parametrize(("n_classes", "n_orders"), [(2, 1), (3, 5), (4, 23), (6, 23)])
def test_shuffles_are_other_orders_of_the_same_vectors(n_classes: int, n_orders: int):
    vectors = np.eye(n_classes)
    found = shuffled_vectors(vectors, np.random.default_rng(0))
    assert len(found) == n_orders
    for draw in found:
        assert not np.array_equal(draw, vectors)
        np.testing.assert_array_equal(np.sort(draw.argmax(axis=1)), np.arange(n_classes))
