"""`promptmil split` as it is typed: what it says of sites, takes over, hands on, and finds when it compares slides."""

import sys
from dataclasses import replace
from pathlib import Path

import bounded
import pytest
from omegaconf import OmegaConf
from test_store import HEADER, make_rows

from feature_extraction.errors import InputError
from feature_extraction.files import read_json
from feature_extraction.store import write_features
from mil.commands import split
from mil.commands.split import label_kind
from mil.splits.file import read_split
from mil.task import build_task

CONF = Path(__file__).parent.parent / "conf"
SITES = "ABC"

pytestmark = pytest.mark.filterwarnings("ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """36 slides of 24 patients at three sites; class x is more frequent at site A. The split column has no val."""
    rows = ["slide_id,patient_id,label,site,split"]
    for patient in range(24):
        site = SITES[patient % 3]
        label = "x" if patient % 2 == 0 or (site == "A" and patient < 18) else "y"
        part = "test" if patient >= 16 else "train"
        rows += [f"S{patient:02}-{slide},P{patient:02},{label},{site},{part}" for slide in range(1 + patient % 2)]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def run(labels: Path, **changes: object) -> int:
    config = OmegaConf.load(CONF / "split.yaml")
    del config["defaults"]
    config["task"] = OmegaConf.load(CONF / "task" / "classification.yaml")
    return split.run(OmegaConf.merge(config, {"labels": str(labels), "out": str(labels.parent / "splits"), **changes}))


def test_a_scheme_that_mixes_sites_says_what_that_could_mean(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(labels, folds=3) == 0
    said = capsys.readouterr().err
    assert "site and label: Cramér's V 0.37 (p = 0.2)" in said
    assert "scheme=site_preserved or scheme=leave_one_site_out" in said
    assert "confounded" not in said
    summary = read_json(labels.parent / "splits" / "summary.json")
    assert summary["site_and_label"]["cramers_v"] == pytest.approx(0.36515, abs=1e-5)  # sqrt(chi² / n), chi² = 3.2


@pytest.mark.parametrize(("scheme", "n_folds"), [("site_preserved", 2), ("leave_one_site_out", 3)])
def test_a_scheme_of_sites_shows_where_each_is_tested(
    scheme: str, n_folds: int, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(labels, scheme=scheme, folds=2) == 0
    table = read_split(labels.parent / "splits" / f"{scheme}.csv")
    assert (table.scheme, table.n_folds) == (scheme, n_folds)
    said = capsys.readouterr().err
    for site in SITES:
        fold = next(f for f in range(n_folds) if site in {row.site for row in table.part(f, "test")})
        n_slides = sum(row.site == site for row in table.rows)
        assert any(line.split()[:4] == [site, str(fold), "8", str(n_slides)] for line in said.splitlines())
    assert "this split mixes sites" not in said
    assert ("no assignment is better" in said) == (scheme == "site_preserved")


def test_a_site_with_one_class_is_named(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels.write_text(labels.read_text().replace(",y,B,", ",x,B,"))
    run(labels, folds=3)
    said = capsys.readouterr().err
    assert "sites with one class only: B (x); confounded: a model may know the label by the site" in said


def test_an_official_column_becomes_a_split_with_val(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(labels, scheme="official", official="split") == 0
    table = read_split(labels.parent / "splits" / "official.csv")
    assert {row.patient_id for row in table.part(0, "test")} == {f"P{patient}" for patient in range(16, 24)}
    assert len({row.patient_id for row in table.part(0, "val")}) == 3
    assert "val is drawn from train in fold 0" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["clam", "patho_bench", "stamp", "six_column"])
def test_a_split_is_handed_on_and_taken_over_again(tool: str, labels: Path) -> None:
    run(labels, folds=3)
    ours, theirs = labels.parent / "splits" / "kfold.csv", labels.parent / tool
    assert run(labels, to=tool, source=str(ours), out=str(theirs)) == 0
    assert read_json(theirs / "summary.json")["sha256"] == read_split(ours).sha256()
    assert run(labels, **{"from": tool, "source": str(theirs)}) == 0
    assert read_split(labels.parent / "splits" / f"{tool}.csv").sha256() == read_split(ours).sha256()
    run(labels, folds=3, seed=1, out=str(labels.parent / "other"))
    with pytest.raises(InputError, match="holds another split"):
        run(labels, to=tool, source=str(labels.parent / "other" / "kfold.csv"), out=str(theirs))


def test_slides_without_a_part_are_listed(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels.write_text(labels.read_text().replace("S00-0,P00,x,A,train", "S00-0,P00,x,A,"))
    run(labels, scheme="official", official="split")
    assert "1 slides are in no part of any fold: S00-0" in capsys.readouterr().err
    assert any("S00-0" in note for note in read_json(labels.parent / "splits" / "summary.json")["notes"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"from": "dsmil", "source": "x"}, "from=dsmil: expected one of clam, patho_bench, stamp, six_column"),
        ({"to": "dsmil", "source": "x"}, "to=dsmil: expected one of"),
        ({"from": "clam"}, "need source="),
        ({"to": "clam", "from": "clam", "source": "x"}, "give one of them"),
        ({"scheme": "official"}, "needs both"),
        ({"official": "split"}, "needs both"),
        ({"scheme": "nested"}, "expected one of kfold, .*, official"),
        ({"to": "six_column", "source": "x", "task": {"_target_": "mil.tasks.regression.Regression"}}, "expected a nu"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(changes: dict[str, object], message: str, labels: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(labels, **changes)


def _feature_files(labels: Path, folder: Path, *, twins: tuple[str, str], how: str) -> None:
    """One file a slide of different rows; the twins share the rows, or the slide they were read from."""
    folder.mkdir()
    names = [line.split(",")[0] for line in labels.read_text().splitlines()[1:]]
    for number, name in enumerate(names):
        source = names.index(twins[0]) if name == twins[1] else number
        rows = make_rows(2 + (source if how == "rows" else number))  # other numbers of tiles have other values
        fingerprint = f"{source if how == 'slide' else number:064}"
        write_features(folder / f"{name}.h5", replace(HEADER, slide_id=name, slide_fingerprint=fingerprint), rows)


@pytest.mark.parametrize("how", ["rows", "slide"])
def test_the_same_slide_of_two_patients_is_found_in_the_feature_files(how: str, labels: Path, tmp_path: Path) -> None:
    _feature_files(labels, tmp_path / "features", twins=("S02-0", "S05-1"), how=how)
    with pytest.raises(InputError, match=r"slide S02-0 and S05-1 \(patient P02, P05; label x, y\)"):
        run(labels, folds=3, check_slides=str(tmp_path / "features"))
    assert not (tmp_path / "splits").exists()


def test_the_same_slide_twice_of_one_patient_is_a_note_and_what_was_not_compared_is_said(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _feature_files(labels, tmp_path / "features", twins=("S05-0", "S05-1"), how="rows")
    (tmp_path / "features" / "S00-0.h5").unlink()
    (tmp_path / "features" / "S01-0.h5").write_bytes(b"no HDF5")
    assert run(labels, folds=3, check_slides=str(tmp_path)) == 0
    said = capsys.readouterr().err
    assert "counted twice, the same slide under several ids: slide S05-0 and S05-1" in said
    assert "34 of 36 slides compared by content, not S00-0, S01-0" in said


def test_slides_without_a_tile_are_not_taken_for_one(labels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    for number, name in enumerate(("S02-0", "S05-1")):
        header = replace(HEADER, slide_id=name, slide_fingerprint=f"{number:064}")
        write_features(folder / f"{name}.h5", header, make_rows(0))
    assert run(labels, folds=3, check_slides=str(folder)) == 0


def test_the_same_slide_file_under_two_names_is_found(labels: Path, tmp_path: Path) -> None:
    """Same bytes are found, same size alone is not."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name, content in {"S02-0": b"abc", "S04-0": b"abd", "S06-0": b"other", "S05-1": b"abc"}.items():
        (folder / f"{name}.svs").write_bytes(content)
    with pytest.raises(InputError, match=r"several ids: slide S02-0 and S05-1 \(patient P02, P05; label x, y\); keep"):
        run(labels, folds=3, check_slides=str(folder))


@pytest.mark.parametrize("path", sorted((CONF / "task").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_labels_of_every_task_are_known_without_it(path: Path) -> None:
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert label_kind(config) is build_task(config).labels


@pytest.mark.parametrize(("scheme", "changes"), [("kfold", {}), ("few_shot", {"shots": 2}), ("leave_one_site_out", {})])
def test_the_examples_in_the_folder_of_splits_are_what_the_command_makes(
    scheme: str, changes: dict[str, object], tmp_path: Path
) -> None:
    demo = CONF.parent / "splits" / "demo"
    assert run(demo / "labels.csv", scheme=scheme, out=str(tmp_path), **changes) == 0
    (made,) = tmp_path.glob("*.csv")
    assert made.read_bytes() == (demo / made.name).read_bytes()


def test_the_command_loads_no_torch() -> None:
    task = {"_target_": "mil.tasks.hazard.DiscreteHazard"}
    code = (
        f"import sys; from mil.commands.split import label_kind; label_kind({task}); sys.exit('torch' in sys.modules)"
    )
    assert bounded.run([sys.executable, "-c", code]).returncode == 0


def test_a_task_of_somebody_else_is_asked_for_its_labels() -> None:
    with pytest.raises(InputError, match="no such class"):
        label_kind({"_target_": "mil.tasks.classification.Mine"})
