"""Slides of no tile, of one, of as many as a batch holds, of a million; and vectors that are no numbers."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import bounded
import numpy as np
import pytest
import torch
from one_extraction import CPU, OneExtraction
from pyramids import write_slide

from feature_extraction.encoder import Space
from feature_extraction.encoders.demo import DemoEncoder, DemoSource
from feature_extraction.store import FeatureFile

pytestmark = pytest.mark.pipeline
SIDE = 96
BATCH = 64
COUNTS = (0, 1, 63, 64, 65, 127, 128, 129)
N_MANY, WIDTH = 1_000_000, 32


def write_row(path: Path, n_tiles: int) -> np.ndarray:
    """A slide of so many tiles side by side, each pixel known; returns the tiles."""
    width = SIDE * n_tiles if n_tiles else SIDE // 2
    pixels = np.random.default_rng(n_tiles).integers(0, 255, (SIDE, width // 8 + 1, 3), dtype=np.uint8)
    pixels = pixels.repeat(8, axis=1)[:, :width]
    write_slide(path, pixels, mpp="1.0", levels=(1,))
    return pixels.reshape(SIDE, n_tiles, SIDE, 3).swapaxes(0, 1) if n_tiles else np.empty((0, SIDE, SIDE, 3), np.uint8)


def rows_of(tiles: np.ndarray) -> np.ndarray:
    """What the encoder says of tiles, without any pipeline."""
    planes = torch.from_numpy(tiles.copy()).permute(0, 3, 1, 2)
    return DemoSource().load(CPU).embed_tiles(planes, ["joint"])["joint"].numpy()


@pytest.mark.parametrize("mix_slides", [False, True])
def test_slides_around_the_size_of_a_batch_come_out_whole(tmp_path: Path, mix_slides: bool):
    tiles = {n: write_row(tmp_path / f"N{n}.svs", n) for n in COUNTS}
    extraction = OneExtraction(tmp_path / "out", batch_size=BATCH, mix_slides=mix_slides, tissue="none")
    outcomes = extraction.run([tmp_path / f"N{n}.svs" for n in COUNTS])
    assert {name: outcome.n_tiles for name, outcome in outcomes.items()} == {f"N{n}": n for n in COUNTS}
    assert {name for name, outcome in outcomes.items() if outcome.status == "empty"} == {"N0"}
    for n in COUNTS:
        file = FeatureFile(extraction.lane.folder / f"N{n}.h5")
        assert file.coords_lv0.tolist() == [[SIDE * column, 0] for column in range(n)]
        assert file.features().shape == (n, extraction.lane.widths[0])
        if n:
            np.testing.assert_allclose(file.features().astype(np.float32), rows_of(tiles[n]), atol=2e-3)


class FaultyEncoder(DemoEncoder):
    """Gives one value that cannot be kept, for the tile that it is asked for as number ``fails_at``."""

    fails_at: int
    value: float
    n_asked: int

    def embed_tiles(self, tiles: torch.Tensor, spaces: Sequence[Space]) -> dict[str, torch.Tensor]:
        made = super().embed_tiles(tiles, spaces)
        rows = made["joint"].clone()
        if self.n_asked <= self.fails_at < self.n_asked + len(tiles):
            rows[self.fails_at - self.n_asked, 17] = self.value
        self.n_asked += len(tiles)
        return {**made, "joint": rows}


def faulty(fails_at: int, value: float) -> FaultyEncoder:
    encoder = DemoSource().load(CPU)
    encoder.__class__ = FaultyEncoder
    assert isinstance(encoder, FaultyEncoder)
    encoder.fails_at, encoder.value, encoder.n_asked = fails_at, value, 0
    return encoder


@pytest.mark.parametrize(
    ("tile", "value", "cause"),
    [
        (0, float("nan"), "a value that is not finite"),
        (63, float("inf"), "a value that is not finite"),
        (64, float("-inf"), "a value that is not finite"),
        (100, 70000.0, "larger than half precision holds (65504)"),
        (128, -70000.0, "larger than half precision holds (65504)"),
    ],
)
def test_a_vector_that_is_no_number_fails_its_slide_and_names_the_tile(
    tmp_path: Path, tile: int, value: float, cause: str
):
    tiles = write_row(tmp_path / "bad.svs", 129)
    write_row(tmp_path / "good.svs", 3)
    paths = [tmp_path / "bad.svs", tmp_path / "good.svs"]
    outcomes = OneExtraction(tmp_path, batch_size=BATCH, tissue="none", encoder=faulty(tile, value)).run(paths)
    assert outcomes["good"].status == "done"
    assert (outcomes["bad"].code, outcomes["bad"].stage) == ("E-nonfinite", "embed")
    assert cause in outcomes["bad"].cause
    assert f"for tile {tile} at level-0 ({SIDE * tile}, 0)" in outcomes["bad"].cause
    assert list(tmp_path.glob("*/bad.h5")) == []
    again = OneExtraction(tmp_path, batch_size=BATCH, tissue="none")  # the same weights, well again
    assert again.run(paths)["bad"].status == "done"
    rows = FeatureFile(again.lane.folder / "bad.h5").features()
    np.testing.assert_allclose(rows.astype(np.float32), rows_of(tiles), atol=2e-3)


def test_the_largest_number_of_half_precision_is_kept(tmp_path: Path):
    write_row(tmp_path / "edge.svs", 3)
    extraction = OneExtraction(tmp_path, batch_size=BATCH, tissue="none", encoder=faulty(1, 65504.0))
    assert extraction.run([tmp_path / "edge.svs"])["edge"].status == "done"
    assert FeatureFile(extraction.lane.folder / "edge.h5").features()[1, 17] == 65504


def test_a_million_tiles_take_bounded_memory(tmp_path: Path):
    """Journal, feature file and its reading, in a process of its own whose peak the system knows."""
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import million; million.main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = bounded.run(
        [sys.executable, "-c", program, str(tmp_path), str(N_MANY), str(WIDTH)],
        check=True,
        env=environment,
    )
    found = json.loads(done.stdout)
    assert found["n_rows"] == N_MANY
    assert found["is_equal"]
    assert found["peak_bytes"] - found["before_bytes"] < 10 * N_MANY * WIDTH * 2
    assert found["peak_bytes"] < 2 << 30
