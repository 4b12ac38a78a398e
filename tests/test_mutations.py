"""The damage that the fault tests do to slides is what its name says, and the same again under the same seed."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mutations import KINDS, mutate, mutations, read_each
from tiff_slides import write_aperio


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_damage_does_what_it_says(tmp_path: Path, kind: str):
    content = write_aperio(tmp_path / "s.svs").read_bytes()
    for seed in range(30):
        damaged = KINDS[kind](content, random.Random(seed))
        assert damaged == KINDS[kind](content, random.Random(seed))
        grown = {"insert_range": 1, "delete_range": -1}.get(kind, 0)
        assert np.sign(len(damaged) - len(content)) == grown
        if kind == "shuffle_blocks":
            assert sorted(damaged) == sorted(content)
        if kind == "flip_bytes":
            assert 1 <= sum(a != b for a, b in zip(content, damaged, strict=True)) <= 64
        if kind == "overwrite_tag":
            assert sum(a != b for a, b in zip(content, damaged, strict=True)) <= 12
        if kind == "insert_range":
            assert len(damaged) - len(content) <= 4096
    n_changed = sum(KINDS[kind](content, random.Random(seed)) != content for seed in range(30))
    assert n_changed >= 25


def test_mutate_covers_each_kind_and_repeats_itself(tmp_path: Path):
    content = write_aperio(tmp_path / "s.svs").read_bytes()
    first = [mutate(content, random.Random(seed)) for seed in range(60)]
    assert first == [mutate(content, random.Random(seed)) for seed in range(60)]
    assert {np.sign(len(one) - len(content)) for one in first} == {-1, 0, 1}
    assert Counter(one.kind for one in mutations(content, 0, 60)) == dict.fromkeys(KINDS, 10)
    assert len({one.content for one in mutations(bytes(132) + b"DICM" + bytes(3000), 0, 60)}) > 30  # no TIFF needed


def test_damaged_copies_are_written_one_at_a_time_and_removed(tmp_path: Path):
    path = write_aperio(tmp_path / "s.svs")
    folder = tmp_path / "damaged"
    notes = read_each(path, folder, seed=0, n=12, read=lambda copy: (len(list(folder.iterdir())), copy.stat().st_size))
    assert [note[0] for _, note in notes] == [1] * 12
    assert [size for _, (_, size) in notes] == [len(one.content) for one in mutations(path.read_bytes(), 0, 12)]
    assert list(folder.iterdir()) == []
