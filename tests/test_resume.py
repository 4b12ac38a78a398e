"""A training that was stopped at any moment goes on from its checkpoint and ends as if nothing had happened."""

import json
import os
import random
import re
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import bounded
import numpy as np
import pytest
import torch
from bags import bag, facts
from study_files import write_slide, write_study
from test_fit import CONFIG, OPTIMIZATION, labelled, training

from feature_extraction.errors import DamagedFileError
from feature_extraction.store import FeatureFile, FeatureRows, write_features
from mil.aggregator import compose
from mil.cli import main
from mil.finite import DivergedError
from mil.fit import Course, Fitted, Fold, Labelled, fit
from mil.resume import CHECKPOINT, Checkpoints
from mil.state_file import read_state, write_state
from mil.tasks.classification import Classification

EPOCHS = 5
MEMORY = Path("/dev/shm")
MADE_BY = {"cell": "0123456789ab"}
NO_VAL = Labelled(bags=[], labels=[])


class StopError(Exception):
    """What stops a training in these tests."""


def same(one: object, other: object) -> bool:
    """Equal in value and in type, to the last bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)  # tells -0.0 from 0.0, and nan is nan


def train(course: Course, val: Labelled | None = None) -> tuple[dict[str, torch.Tensor], Fitted]:
    """A training with dropout and with draws of tiles; weights and what it says of itself."""
    torch.manual_seed(0)
    aggregator = compose(CONFIG, facts())
    fold = Fold(train=labelled(0, 5), val=labelled(500, 2) if val is None else val)
    task = Classification()
    found = fit(
        aggregator, task, fold=fold, optimization=OPTIMIZATION, training=training(EPOCHS), init="text", course=course
    )
    return aggregator.state_dict(), found


def kept_in(folder: Path, every_s: float = 0.0) -> Checkpoints:
    return Checkpoints(path=folder / CHECKPOINT, cell="0123456789ab", every_s=every_s)


def stopping(kept: Checkpoints, epoch: int) -> Course:
    """A course on which training is stopped in this epoch, when its last step is done and its checkpoint is not."""
    done: list[None] = []

    def on_epoch() -> None:
        done.append(None)
        if len(done) == epoch:
            raise StopError

    return Course(on_epoch=on_epoch, checkpoints=kept)


def test_a_state_comes_back_with_its_types(tmp_path: Path):
    shared = torch.arange(6.0).reshape(2, 3)
    state = {
        "plain": [None, True, False, 0, -1, 2**70, 0.1, -0.0, float("inf"), float("nan"), "a\ud800é\n", ""],
        "tuple": ((), (1, [2, (3,)]), []),
        3: {0: {"step": torch.tensor(7.0)}, (1, None): {}},
        "ordered": OrderedDict(b=1, a=shared),
        "tensors": [shared, shared.T, shared[:1], torch.empty(0, 4), torch.tensor(True), torch.get_rng_state()],
        "types": [shared.to(kind) for kind in (torch.bfloat16, torch.float16, torch.float64, torch.int64)],
        "tensor": {"tensor": "0"},
        "dict": {"tuple": [1]},
    }
    write_state(tmp_path / "a", state, MADE_BY)
    assert same(read_state(tmp_path / "a", MADE_BY), state)


@pytest.mark.parametrize("value", [np.float64(1), np.zeros(2), Path("a"), {1, 2}, b"a", StopError()])
def test_what_cannot_come_back_is_refused_at_writing(tmp_path: Path, value: object):
    write_state(tmp_path / "a", {"old": 1}, MADE_BY)
    with pytest.raises(TypeError, match=r"state\['new'\]\[2\]"):
        write_state(tmp_path / "a", {"new": {2: [value]}}, MADE_BY)
    assert read_state(tmp_path / "a", MADE_BY) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("val", [None, NO_VAL], ids=["val", "few-shot"])
@pytest.mark.parametrize("stops", [(2,), (EPOCHS,), (3, 2, 1)], ids=str)
def test_a_stopped_training_ends_like_an_unbroken_one(tmp_path: Path, val: Labelled | None, stops: tuple[int, ...]):
    """Each stop is in that epoch of its own attempt; what it did since the checkpoint is done again."""
    weights, found = train(Course(), val)
    kept, done = kept_in(tmp_path), 0
    for epoch in stops:
        with pytest.raises(StopError):
            train(stopping(kept, epoch), val)
        done += epoch - 1
    told: list[int] = []
    again = train(Course(on_resume=told.append, checkpoints=kept), val)
    assert told == [done]
    assert same(again[0], weights)
    assert again[1] == found


def test_a_training_that_ended_is_not_done_again(tmp_path: Path):
    kept = kept_in(tmp_path)
    weights, found = train(Course(checkpoints=kept))
    told: list[object] = []
    again = train(Course(on_epoch=lambda: told.append("epoch"), on_resume=told.append, checkpoints=kept))
    assert told == [EPOCHS]
    assert same(again[0], weights)
    assert again[1] == found


def test_a_short_training_writes_no_checkpoint(tmp_path: Path):
    train(Course(checkpoints=kept_in(tmp_path, every_s=60.0)))
    assert list(tmp_path.iterdir()) == []


def test_no_pickle_is_in_a_checkpoint_and_every_flipped_bit_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def loads(*_: object) -> None:
        raise AssertionError("a pickle was written or read")

    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, loads)
    kept = kept_in(tmp_path)
    train(Course(checkpoints=kept))
    assert kept.epochs_done() == EPOCHS
    whole = kept.path.read_bytes()
    state = read_state(kept.path, kept.made_by())
    write_state(tmp_path / "again", state, kept.made_by())
    assert same(read_state(tmp_path / "again", kept.made_by()), state)
    places = random.Random(1)
    header = 8 + int.from_bytes(whole[:8], "little")
    for number in range(200):
        content = bytearray(whole)
        content[places.randrange(header if number % 2 else len(whole))] ^= 1 << places.randrange(8)
        kept.path.write_bytes(content)
        assert kept.epochs_done() == 0
    for n_bytes in (0, 1, 8, 100, header, len(whole) - 1):
        kept.path.write_bytes(whole[:n_bytes])
        assert kept.epochs_done() == 0
    assert len(caplog.records) == 206
    assert all(str(kept.path) in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("fault", ["flipped", "empty", "foreign"])
def test_training_starts_anew_from_a_checkpoint_that_is_damaged_or_not_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
):
    weights, found = train(Course())
    kept = kept_in(tmp_path)
    owner = replace(kept, cell="ffffffffffff") if fault == "foreign" else kept
    with pytest.raises(StopError):
        train(stopping(owner, 3))
    content = bytearray(kept.path.read_bytes())
    content[-1] ^= 1
    if fault != "foreign":
        kept.path.write_bytes(content if fault == "flipped" else b"")
    told: list[int] = []
    again = train(Course(on_resume=told.append, checkpoints=kept))
    assert told == []
    assert [str(kept.path) in record.getMessage() for record in caplog.records] == [True]
    assert same(again[0], weights)
    assert again[1] == found
    assert kept.epochs_done() == EPOCHS  # and it was replaced


def test_lightning_does_not_look_for_checkpoints_of_its_own_on_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    weights, found = train(Course())
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"of another cell")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    again = train(Course(checkpoints=kept_in(tmp_path / "run")))
    assert same(again[0], weights)
    assert again[1] == found


def kill(tmp_path: Path, n_kills: int, n_epochs: int) -> None:
    if not MEMORY.is_dir() or MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system for temporary files")
    script = Path(__file__).parent / "train_kill_loop.py"
    words = [sys.executable, script, tmp_path, str(n_kills), str(n_epochs)]
    environment = {**os.environ, "TMPDIR": str(MEMORY), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = bounded.run(words, check=True, seconds=60 + 5 * n_kills, env=environment)
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert report["killed"] == n_kills
    assert sum(one["resumed"] for one in report["rounds"]) >= n_kills // 2
    for one in report["rounds"]:
        assert (one["exit_code"], one["unreadable"], one["differences"]) == (0, [], [])


@pytest.mark.pipeline
def test_kills_at_any_moment_change_nothing(tmp_path: Path):
    kill(tmp_path, n_kills=4, n_epochs=16)


@pytest.mark.long
def test_a_hundred_kills_change_nothing(tmp_path: Path):
    kill(tmp_path, n_kills=100, n_epochs=60)


def spoil(study: Path, number: int, value: float) -> None:
    """Put a value that is not finite into one tile of a slide, in a file that is whole."""
    path = study / "features" / f"S{number}.h5"
    file = FeatureFile(path)
    features = np.array(file.features())
    features[3, 5] = value
    tiles = FeatureRows(
        spaces={"joint": features},
        coords_lv0=file.coords_lv0,
        tissue_fraction=np.ones(len(features), np.float32),
        failed_coords_lv0=file.failed_coords_lv0,
    )
    write_features(path, file.header, tiles)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("study")
    return folder, [*write_study(folder), "trainer.max_epochs=2", "trainer.accelerator=cpu"]


@pytest.mark.parametrize(
    ("number", "value", "aggregator"),
    [
        (4, np.nan, "prompt"),  # in the training part
        (4, np.inf, "gated_abmil"),  # standardised by the training tiles: every batch is spoilt
        (4, np.nan, "prototypes"),  # clusters the training tiles
        (10, np.nan, "prompt"),  # in the validation part
        (13, -np.inf, "mean"),  # in the test part
    ],
)
def test_features_that_are_not_finite_stop_training_with_the_slides_id(
    study: tuple[Path, list[str]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    number: int,
    value: float,
    aggregator: str,
):
    folder, words = study
    spoil(folder, number, value)
    try:
        assert main(["train", *words, f"aggregator={aggregator}", f"out={tmp_path}"]) == 2
    finally:
        write_slide(folder / "features", number)
    said = capfd.readouterr().err
    assert f"slide=S{number}: 1 of its 24 tiles" in said
    assert "the first is row 3" in said
    assert "Traceback" not in said


def test_a_loss_that_leaves_the_finite_numbers_stops_with_the_slides_of_its_batch(
    study: tuple[Path, list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    _, words = study
    too_fast = ["aggregator=gated_abmil", "optimizer.lr=1e30", "trainer.batch_size=4"]
    assert main(["train", *words, *too_fast, f"out={tmp_path}"]) == 2
    said = capfd.readouterr().err
    assert re.search(r"error: slide=S\d+(, slide=S\d+)*: the loss of this batch is nan in epoch 1", said)
    assert "Traceback" not in said


@pytest.mark.parametrize("asked", ["-1", "soon", "true", ".inf"])
def test_checkpoint_s_is_a_number_of_seconds(
    study: tuple[Path, list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str], asked: str
):
    _, words = study
    assert main(["train", *words, f"checkpoint_s={asked}", f"out={tmp_path}"]) == 2
    assert "checkpoint_s=" in capfd.readouterr().err


def test_how_often_checkpoints_are_written_is_no_part_of_the_cell_and_none_stays(
    study: tuple[Path, list[str]], tmp_path: Path
):
    _, words = study
    for seconds in ("0", "60"):
        assert main(["train", *words, f"checkpoint_s={seconds}", f"out={tmp_path}"]) == 0
        (run,) = tmp_path.glob("*/done.json")
        assert not [path.name for path in run.parent.iterdir() if path.name.startswith(".")]


def test_a_checkpoint_left_by_a_kill_after_the_seal_is_removed_by_the_next_run(
    study: tuple[Path, list[str]], tmp_path: Path
):
    _, words = study
    assert main(["train", *words, f"out={tmp_path}"]) == 0
    (run,) = tmp_path.glob("*/done.json")
    for name in (CHECKPOINT, ".tmp-abc"):
        (run.parent / name).write_bytes(b"left")
    assert main(["train", *words, f"out={tmp_path}"]) == 0
    assert not [path.name for path in run.parent.iterdir() if path.name.startswith(".")]


def test_weights_that_are_not_finite_are_told_from_features_that_are_not():
    aggregator = compose(CONFIG, facts())
    with torch.no_grad():
        next(aggregator.parameters()).fill_(torch.nan)
    from mil.fit import logits_of

    with pytest.raises(DivergedError, match="slide=S7"):
        logits_of(aggregator, [bag(9, seed=7)], batch_size=4)
    spoilt = bag(9, seed=8)
    spoilt.features[2, 1] = np.nan
    with pytest.raises(DamagedFileError, match="slide=S8"):
        logits_of(compose(CONFIG, facts()), [bag(9, seed=7), spoilt], batch_size=4)
