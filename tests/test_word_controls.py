"""Controls: the same training with words that should be of no use."""

import numpy as np
import pytest
from bags import CLASSES, bag, bank

from feature_extraction.errors import InputError
from mil.word_controls import controlled
from mil.zeroshot import tile_scores


def test_own_words_are_the_bank():
    words = bank()
    assert controlled(words, "own", seed=0) is words


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_gives_every_class_the_words_of_another_in_the_old_order(seed: int):
    first, found = bank(), controlled(bank(), "shuffled", seed=seed)
    assert found.class_names() == first.class_names()
    assert found.background() == first.background()
    for name in CLASSES:
        others = [other for other in CLASSES if np.allclose(found.class_vector(name), first.class_vector(other))]
        assert len(others) == 1
        assert others != [name]
    assert len(found.concepts()) == len(first.concepts())
    assert sorted(row.text for row in found.rows) == sorted(row.text for row in first.rows)


def test_concepts_go_with_the_words_of_their_class():
    first, found = bank(), controlled(bank(), "shuffled", seed=1)
    source = {
        name: other
        for name in CLASSES
        for other in CLASSES
        if np.allclose(found.class_vector(name), first.class_vector(other))
    }
    expected = {(name, concept) for name in CLASSES for owner, concept in first.concepts() if owner == source[name]}
    assert set(found.concepts()) == expected


def test_nonsense_keeps_the_distances_of_the_words_and_loses_the_tiles():
    first, found = bank(), controlled(bank(), "nonsense", seed=3)
    vectors = [np.stack([one.class_vector(name) for name in CLASSES]) for one in (first, found)]
    np.testing.assert_allclose(vectors[0] @ vectors[0].T, vectors[1] @ vectors[1].T, atol=1e-5)
    scores = [tile_scores(bag(50, seed=1), one, CLASSES) for one in (first, found)]
    assert abs(np.corrcoef(scores[0].ravel(), scores[1].ravel())[0, 1]) < 0.5


def test_names_are_without_concepts():
    found = controlled(bank(), "names", seed=0)
    assert found.concepts() == ()
    assert found.class_names() == bank().class_names()


def test_the_same_seed_gives_the_same_control_and_another_one_another():
    one, same, other = (controlled(bank(), "nonsense", seed=seed).embeddings for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.allclose(one, other)


def test_an_unknown_control_is_refused():
    with pytest.raises(InputError, match="words=wrong: expected own, shuffled, nonsense, names"):
        controlled(bank(), "wrong", seed=0)
