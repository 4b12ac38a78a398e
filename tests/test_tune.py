"""Settings are searched on train and val patients only, and a search that was cut short goes on."""

import json
from pathlib import Path

import optuna
import pandas as pd
import pytest
import study_files
from optuna.storages.journal import JournalFileBackend, JournalStorage
from study_files import write_study

from feature_extraction.errors import InputError
from mil.cli import main
from mil.commands.tune import SPLIT, STUDY
from mil.splits.file import read_split
from mil.splits.inner import inner_split
from mil.tuned_words import Choices, Interval, collected, space_of

DEMO = Path(__file__).parent.parent / "splits" / "demo" / "kfold.csv"


@pytest.mark.parametrize("fold", range(5))
def test_an_inner_split_has_every_patient_of_the_fold_but_those_of_its_test_part(fold: int):
    table = read_split(DEMO)
    inner = inner_split(table, fold, n_folds=3, seed=0)
    tested = {row.slide_id for row in table.part(fold, "test")}
    assert {row.slide_id for row in inner.rows} == {row.slide_id for row in table.rows} - tested
    assert all({row.parts[inner_fold] for row in inner.rows} == {"train", "val", "test"} for inner_fold in range(3))


def test_words_of_a_sweep_are_what_is_searched_and_the_others_stay():
    words = ["features=x", "aggregator=prompt,gated_abmil", "--cfg", "job", "optimizer.lr=interval(1e-5,1e-3)"]
    kept = "tuned=['aggregator=prompt,gated_abmil','optimizer.lr=interval(1e-5,1e-3)']"
    assert collected(words) == ["features=x", "--cfg", "job", kept]
    assert collected(["features=[a,b]", "out=y"]) == ["features=[a,b]", "out=y"]


def test_choices_ranges_and_intervals_are_read_as_hydra_writes_them():
    words = ["aggregator=prompt,abmil", "fold=range(0,5,2)", "a=interval(0,.5)", "b=tag(log,int(interval(1,100)))"]
    assert space_of(words) == {
        "aggregator": Choices(words=("prompt", "abmil")),
        "fold": Choices(words=("0", "2", "4")),
        "a": Interval(low=0.0, high=0.5, is_log=False, is_whole=False),
        "b": Interval(low=1.0, high=100.0, is_log=True, is_whole=True),
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a=interval(2,1)"], "expected a lower end below the upper one$"),
        (["a=tag(log,interval(0,1))"], "above 0"),
        (["a=1,2", "a=3,4"], "a is searched twice"),
    ],
)
def test_a_space_that_cannot_be_is_refused(words: list[str], message: str):
    with pytest.raises(InputError, match=message):
        space_of(words)


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(study_files, "N_SLIDES", 30)
    study = write_study(tmp_path / "study", n_folds=2)
    return ["tune", *study, f"out={tmp_path / 'out'}", "trainer.max_epochs=1", "inner_folds=2", "parallel=1"]


@pytest.mark.pipeline
def test_the_best_of_the_trials_is_said_and_a_killed_one_is_tried_again(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    searched = ["optimizer.lr=tag(log,interval(1e-4,1e-1))", "aggregator=abmil,gated_abmil"]
    assert main([*words, *searched, "trials=1"]) == 0
    storage = JournalStorage(JournalFileBackend(str(out / STUDY)))
    (name,) = optuna.get_all_study_names(storage)
    cut_short = optuna.load_study(study_name=name, storage=storage).ask(
        {
            "aggregator": optuna.distributions.CategoricalDistribution(("abmil", "gated_abmil")),
            "optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
        }
    )
    capsys.readouterr()
    assert main([*words, *searched, "trials=3"]) == 0
    best = capsys.readouterr().out.split()
    table = pd.read_csv(out / "trials.csv")
    assert len(table) == 3
    assert cut_short.params["optimizer.lr"] in set(table["optimizer.lr"])
    first = table.iloc[0]
    assert first["validation_loss"] == table["validation_loss"].min()
    assert best == [f"aggregator={first['aggregator']}", f"optimizer.lr={first['optimizer.lr']}"]
    assert json.loads((out / "summary.json").read_text())["best"] == best
    tested = {row.slide_id for row in read_split(tmp_path / "study" / "kfold.csv").part(0, "test")}
    assert tested.isdisjoint({row.slide_id for row in read_split(out / SPLIT).rows})
    seen = pd.concat(pd.read_csv(path) for path in (out / "runs").rglob("predictions.csv"))["slide_id"]
    assert len(seen) > 0
    assert tested.isdisjoint(set(seen))
    assert main([*words, "optimizer.lr=1e-3,1e-4", "trials=1"]) == 2
    assert "holds a search of other settings" in capsys.readouterr().err


def test_a_search_of_nothing_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(words) == 2
    assert "tune: nothing to search" in capsys.readouterr().err
