"""The journal: valid up to the last whole block, whatever happened to its tail."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_extraction.journal import Journal

WIDTH = 3


@contextmanager
def open_journal(path: Path, key: str = "k") -> Iterator[Journal]:
    journal = Journal(path, key=key, width=WIDTH, dtype=np.dtype(np.float16))
    yield journal
    journal.close()


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, WIDTH)).astype(np.float16)


def filled(path: Path, blocks: list[int]) -> np.ndarray:
    values = rows(sum(blocks))
    start = 0
    with open_journal(path) as journal:
        for n in blocks:
            journal.append(values[start : start + n])
            start += n
    return values


def test_rows_come_back_in_order_and_more_can_be_added(tmp_path: Path):
    values = filled(tmp_path / "j", [4, 1, 7])
    with open_journal(tmp_path / "j") as journal:
        assert journal.n_rows == 12
        journal.append(rows(2, seed=1))
        assert np.array_equal(journal.read(), np.concatenate([values, rows(2, seed=1)]))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_a_cut_at_any_byte_keeps_whole_blocks_and_work_goes_on(tmp_path_factory, blocks: list[int], share: float):
    path = tmp_path_factory.mktemp("journal") / "j"
    values = filled(path, blocks)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with open_journal(path) as journal:
        kept = journal.n_rows
        assert kept in np.cumsum([0, *blocks])
        journal.append(values[kept:])
    with open_journal(path) as journal:
        assert np.array_equal(journal.read(), values)


def test_a_flipped_bit_ends_the_valid_part(tmp_path: Path):
    values = filled(tmp_path / "j", [5, 5, 5])
    content = bytearray((tmp_path / "j").read_bytes())
    content[-3 * WIDTH * 2 - 20] ^= 1  # inside the third block
    (tmp_path / "j").write_bytes(content)
    with open_journal(tmp_path / "j") as journal:
        assert journal.n_rows == 10
        assert np.array_equal(journal.read(), values[:10])


def test_rows_of_something_else_are_thrown_away(tmp_path: Path):
    filled(tmp_path / "j", [5])
    with open_journal(tmp_path / "j", key="other") as journal:
        assert journal.n_rows == 0
