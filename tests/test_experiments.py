"""The studies in conf/experiment: each says what it is, composes into the cells it promises, and one runs for real."""

from collections import Counter
from pathlib import Path

import pytest
from study_files import write_study

from feature_extraction.configuration import conf_folder
from mil.cli import main
from mil.runs import find_runs
from mil.sweep_words import composed_cells

NAMES = sorted(path.stem for path in (conf_folder() / "experiment").glob("*.yaml"))
GIVEN = {
    "cross_validation": ["features=f", "bank=b", "split=s.csv"],
    "encoder_by_aggregator": ["study=all", "of_encoder=conch,keep", "split=s.csv"],
    "few_shot_curve": ["features=f", "bank=b", "splits=folder"],
    "prompt_set_study": ["features=f", "bank=a,b", "split=s.csv"],
}
KEYS = ("aggregator", "features", "bank", "split", "fold", "seed", "words")


def cells_of(name: str, *words: str) -> list[dict[str, str]]:
    composed = composed_cells("train", ["-m", f"+experiment={name}", *GIVEN[name], "out=runs", *words])
    return [{key: str(cell[key].name if key == "aggregator" else cell[key]) for key in KEYS} for cell in composed]


def values(cells: list[dict[str, str]], key: str) -> list[str]:
    """The different values, each of which is in equally many cells."""
    counts = Counter(cell[key] for cell in cells)
    assert len(set(counts.values())) == 1
    return list(counts)


@pytest.mark.parametrize("name", NAMES)
def test_each_says_how_it_is_typed_and_has_no_cell_twice(name: str):
    first, text = (conf_folder() / "experiment" / f"{name}.yaml").read_text().splitlines()[:2]
    assert first == "# @package _global_"
    assert f"train -m +experiment={name} " in text
    assert all(f"{word.split('=')[0]}=" in text for word in GIVEN[name])
    cells = cells_of(name)
    assert len({tuple(cell.values()) for cell in cells}) == len(cells)


def test_cross_validation_is_every_fold_with_two_seeds_and_the_line_may_say_otherwise():
    cells = cells_of("cross_validation")
    assert [(cell["fold"], cell["seed"]) for cell in cells] == [(f, s) for f in "01234" for s in "01"]
    assert values(cells_of("cross_validation", "fold=0,1,2", "seed=7", "aggregator=prompt,dsmil"), "fold") == list(
        "012"
    )


def test_the_few_shot_curve_takes_the_split_of_each_number_of_shots():
    cells = cells_of("few_shot_curve")
    assert values(cells, "split") == [f"folder/few_shot_{shots}.csv" for shots in (1, 2, 4, 8, 16)]
    assert values(cells, "fold") == list("01234")
    assert values(cells, "aggregator") == ["prompt", "zs_mil", "gated_abmil"]


def test_encoders_come_with_their_own_bank():
    cells = cells_of("encoder_by_aggregator")
    assert {(cell["features"], cell["bank"]) for cell in cells} == {
        (f"all/{name}/features", f"all/{name}/bank") for name in ("conch", "keep")
    }
    assert len(cells) == 2 * len(values(cells, "aggregator")) * 5


def test_the_prompt_set_study_has_the_controls_of_every_bank():
    cells = cells_of("prompt_set_study")
    assert values(cells, "bank") == ["a", "b"]
    assert values(cells, "words") == ["own", "names", "shuffled", "nonsense"]
    assert len(cells) == 2 * 4 * 5 * 2


@pytest.mark.pipeline
def test_an_experiment_runs_for_real_and_status_knows_it_by_the_same_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    features, bank, split = write_study(tmp_path / "study")
    rows = Path(split.removeprefix("split=")).read_text().splitlines()
    (tmp_path / "splits").mkdir()
    for shots in (1, 2):  # of the 9 training slides, one patient each and every third of a class, the first ones stay
        kept = [row for number, row in enumerate(rows) if not row.endswith("train") or number <= 3 * shots]
        (tmp_path / "splits" / f"few_shot_{shots}.csv").write_text("\n".join(kept))
    words = ["+experiment=few_shot_curve", features, bank, f"splits={tmp_path / 'splits'}", "shots=1,2", "fold=0"]
    words += ["trainer.max_epochs=1", "trainer.accelerator=cpu", "parallel=1", f"out={tmp_path / 'runs'}"]
    assert main(["train", "-m", *words]) == 0
    runs = find_runs(tmp_path / "runs")
    assert len({(run.cell["shots"], run.cell["aggregator"]) for run in runs}) == len(runs) == 2 * 3
    capsys.readouterr()
    assert main(["sweep", "status", *words]) == 0
    assert "6 cells: 6 done" in capsys.readouterr().out
