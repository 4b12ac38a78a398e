"""The test part is opened once, at the end; nothing that takes part in training can hold it."""

import copy
import json
import pickle
import typing
from pathlib import Path

import pytest
from bags import CLASSES, facts
from study_files import write_study
from test_fit import CONFIG, labelled

import mil.train
import mil.train_together
from mil.aggregator import compose
from mil.cli import main
from mil.fit import Course, Fold
from mil.run_writer import ReadyCell
from mil.sealed import READINGS, AlreadyReadError, SealedPart
from mil.stacked import Member
from mil.tasks.classification import Classification


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        *write_study(tmp_path_factory.mktemp("study")),
        "aggregator=prompt",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
    ]


def read(part: SealedPart):
    task, aggregator = Classification(), compose(CONFIG, facts())
    return part.read(aggregator, task, list(CLASSES), batch_size=4)


def test_a_second_reading_is_an_error():
    part = SealedPart([], labelled(0, 2))
    assert part.n_slides == 6
    assert 0 <= read(part).figures["accuracy"] <= 1
    with pytest.raises(AlreadyReadError, match="read once"):
        read(part)


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_cannot_be_taken_twice_through_a_copy(take: typing.Callable[[object], object]):
    with pytest.raises(TypeError, match="cannot be copied"):
        take(SealedPart([], labelled(0, 1)))


def test_nothing_can_be_trained_on_it_or_looked_into():
    part = SealedPart([], labelled(0, 1))
    assert not [name for name in dir(part) if not name.startswith("_") and name not in ("n_slides", "read")]
    for name in ("bags", "labels", "__len__", "__iter__", "__getitem__"):
        assert not hasattr(part, name)


@pytest.mark.parametrize("kind", [Fold, Course, Member])
def test_what_training_is_given_has_no_place_for_it(kind: type):
    assert SealedPart not in typing.get_type_hints(kind).values()
    assert "test" not in typing.get_type_hints(kind)


@pytest.mark.parametrize("parallel", ["1", "stacked"])
def test_while_training_goes_on_no_test_bag_is_within_reach(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: str
):
    """Looks at the prepared cell as it is handed to training, alone and as one of several."""
    seen: list[ReadyCell] = []
    prepare = mil.train.prepare

    def watched(cell: mil.train.OpenCell) -> ReadyCell:
        seen.append(prepare(cell))
        return seen[-1]

    monkeypatch.setattr(mil.train, "prepare", watched)
    monkeypatch.setattr(mil.train_together, "prepare", watched)
    assert main(["train", *words, "-m", "seed=0", f"parallel={parallel}", f"out={tmp_path}"]) == 0
    (ready,) = seen
    assert set(ready.labelled) == set(ready.rows) == {"train", "val"}
    assert ready.cell.inputs.bags.bags == {}
    tested = {f"S{number}" for number in range(12, 15)}
    assert tested.isdisjoint(row.slide_id for rows in ready.rows.values() for row in rows)
    assert tested.isdisjoint(bag.slide_id for part in ready.labelled.values() for bag in part.bags)
    with pytest.raises(AlreadyReadError):
        ready.test.read(ready.aggregator, ready.task, ready.card.classes, batch_size=1)


def test_a_run_says_how_often_its_test_part_was_read(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """A run that is done is not evaluated again; one that was taken away and trained anew is, and says so."""
    words = [*words, f"out={tmp_path}"]

    def readings() -> int:
        assert main(["train", *words]) == 0
        (path,) = tmp_path.glob("*/metrics.json")
        return json.loads(path.read_text())["test_readings"]

    assert [readings(), readings()] == [1, 1]
    assert "test part" not in capfd.readouterr().err
    (done,) = tmp_path.glob("*/done.json")
    done.unlink()
    assert readings() == 2
    assert "its test part was read 2 times" in capfd.readouterr().err
    (count,) = (tmp_path / READINGS).iterdir()
    assert json.loads(count.read_text()) == {"readings": 2}
