"""What the README tells people to type is what the project has."""

import re
import shlex
from pathlib import Path

import bounded
import pandas as pd
import pytest

from feature_extraction.synthetic.cohort import plan_cohort
from mil.cli import ACTIONS, COMMANDS, main
from mil.cohort import Cohort, CohortRow
from mil.splits.file import read_split
from mil.splits.schemes import make_split

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = [block.replace("\\\n", " ") for block in re.findall(r"```\n(.*?)```", TEXT, flags=re.DOTALL)]
LINES = [line.strip() for block in BLOCKS for line in block.splitlines() if line.strip()]


def test_the_two_commands_are_targets_of_the_makefile():
    assert [line for line in LINES if line.startswith("make")] == ["make demo", "make test"]
    for target in ("demo", "test"):
        shown = bounded.run(["make", "-n", target], cwd=ROOT, check=True).stdout
        assert {"demo": "promptmil demo", "test": "pytest"}[target] in shown


@pytest.mark.xdist_group("whole")
def test_tests_of_a_group_stay_on_one_worker(request: pytest.FixtureRequest, worker_id: str):
    """What they share, such as a cluster, would otherwise be there once a worker."""
    if worker_id == "master":
        pytest.skip("one process runs all tests")
    assert request.node.nodeid.endswith("@whole"), "this pytest-xdist does not group with this pytest"


def test_ci_runs_the_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^timeout .* make test\b", script, flags=re.MULTILINE)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("promptmil")])
def test_each_command_composes_with_the_keys_it_names(line: str, capsys: pytest.CaptureFixture[str]):
    name, *words = shlex.split(line)[1:]
    action = [words.pop(0)] if words[0].isalpha() else []
    assert f"{name} {action[0]}" in ACTIONS if action else name in COMMANDS
    single = [re.sub(r"=([^\[(,]*),.*", r"=\1", word) for word in words if word != "-m"]
    assert main([name, *action, *single, "--cfg", "job"]) == 0
    assert capsys.readouterr().out


@pytest.mark.pipeline
def test_the_demo_runs_every_step_and_does_nothing_twice(tmp_path: Path):
    """The command behind `make demo`, on a smaller cohort."""
    out = tmp_path / "demo"
    words = ["demo", f"out={out}", "patients=18", "folds=2", "max_epochs=2", "maps=3"]
    assert main(words) == 0
    report = (out / "report.html").read_text()
    for shown in (
        "zeroshot",
        "prompt",
        "gated_abmil",
        "2 shots",
        "all labels",
        "Does the site show",
        "evidence",
        "P001-S1",
    ):
        assert shown in report
    assert report.count("data:image/png;base64,") >= 5
    results = pd.read_csv(out / "summary" / "results.csv")
    assert set(results["aggregator"]) == {"zeroshot", "prompt", "gated_abmil"}
    assert (out / "maps" / "viewer" / "index.html").is_file()
    assert len(list((out / "maps").glob("*.report.html"))) == len(list((out / "maps").glob("*.tiles.parquet"))) > 10
    kinds = ("*.h5", "*.svs", "*.tiff", "done.json", "*.tiles.parquet", "*.png", "*.jpg")
    before = {
        path: path.stat().st_mtime_ns for kind in kinds for path in out.rglob(kind) if "zeroshot" not in path.parts
    }
    assert len(before) > 40
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_committed_split_is_the_demos():
    slides = plan_cohort(n_patients=42, seed=0)
    rows = [CohortRow(slide_id=s.slide_id, patient_id=s.patient_id, label=s.plan.label, site=s.site) for s in slides]
    drawn = make_split(Cohort(rows=tuple(rows)), scheme="kfold", folds=5, seed=0)
    assert drawn.sha256() == read_split(ROOT / "splits" / "demo" / "kfold.csv").sha256()
