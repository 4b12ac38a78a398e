"""Splits: every drawn table keeps every rule, and every broken rule is found."""

import dataclasses
import hashlib
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import bounded
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from feature_extraction.errors import InputError
from feature_extraction.files import read_json
from mil.cohort import Cohort, CohortRow
from mil.splits.file import PARTS, SplitRow, SplitTable, check_split, find_faults, make_table, read_split, write_split
from mil.splits.schemes import make_split

# OmegaConf's own annotations are what beartype warns of.
command_test = pytest.mark.filterwarnings("ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _random_cohort(number: int, fewest: int) -> Cohort:
    """2 to 4 classes of ``fewest`` to 12 patients with 1 to 3 slides, rows in any order."""
    generator = np.random.default_rng(number)
    rows = [
        CohortRow(
            slide_id=f"p{label}-{patient}-{slide}", patient_id=f"p{label}-{patient}", label=f"class {label}", site=None
        )
        for label in range(generator.integers(2, 5))
        for patient in range(generator.integers(fewest, 13))
        for slide in range(generator.integers(1, 4))
    ]
    return Cohort(rows=tuple(rows[place] for place in generator.permutation(len(rows))))


NUMBERS = st.integers(0, 2**32)
"""Of a random cohort. Not drawn as one: beartype draws random numbers too, which Hypothesis forbids inside."""


def _patients(table: SplitTable, fold: int, part: str) -> dict[str, str]:
    return {row.patient_id: row.label for row in table.part(fold, part)}


@MANY
@given(number=NUMBERS, folds=st.integers(2, 5), seed=st.integers(0, 10_000), val_fraction=st.floats(0.05, 0.6))
def test_kfold_is_disjoint_complete_stratified_and_tests_each_patient_once(
    number: int, folds: int, seed: int, val_fraction: float
) -> None:
    cohort = _random_cohort(number, 5)
    table = make_split(cohort, folds=folds, seed=seed, val_fraction=val_fraction)
    labels = cohort.labels_of_patients()
    tested: Counter[str] = Counter()
    for fold in range(folds):
        parts = {part: _patients(table, fold, part) for part in PARTS}
        assert sum(len(part) for part in parts.values()) == len(labels)
        assert parts["train"] | parts["val"] | parts["test"] == labels
        assert sum(len(table.part(fold, part)) for part in PARTS) == len(cohort.rows)
        tested.update(list(parts["test"]))
        for label, total in Counter(labels.values()).items():
            counts = {part: Counter(chosen.values())[label] for part, chosen in parts.items()}
            assert abs(counts["test"] - total / folds) < 1
            assert abs(counts["val"] - val_fraction * (total - counts["test"])) <= 1
            assert min(counts.values()) >= 1
    assert set(tested.values()) == {1}
    assert tested.keys() == labels.keys()
    assert find_faults(table, cohort=cohort) == ()


@settings(MANY, max_examples=30)
@given(number=NUMBERS, seed=st.integers(0, 10_000))
def test_few_shot_is_nested_and_has_the_test_parts_of_kfold(number: int, seed: int) -> None:
    cohort = _random_cohort(number, 9)
    kfold = make_split(cohort, folds=3, seed=seed)
    smaller: list[set[str]] = [set(), set(), set()]
    for shots in (1, 2, 4, 5):
        try:
            table = make_split(cohort, scheme="few_shot", folds=3, seed=seed, shots=shots)
        except InputError:
            assert shots == 5
            return
        for fold in range(3):
            train = _patients(table, fold, "train")
            assert set(Counter(train.values()).values()) == {shots}
            assert smaller[fold] < set(train)
            assert set(train) <= set(_patients(kfold, fold, "train"))
            assert table.part(fold, "test") == tuple(
                dataclasses.replace(row, parts=table_row.parts)
                for row, table_row in zip(kfold.rows, table.rows, strict=True)
                if row.parts[fold] == "test"
            )
            assert set(_patients(table, fold, "val")) == (set(_patients(kfold, fold, "val")) if shots > 4 else set())
            smaller[fold] = set(train)
        assert find_faults(table, cohort=cohort) == ()


@settings(MANY, max_examples=25)
@given(number=NUMBERS, seed=st.integers(0, 100))
def test_the_order_of_rows_changes_nothing(number: int, seed: int) -> None:
    cohort = _random_cohort(number, 5)
    order = np.random.default_rng(seed).permutation(len(cohort.rows))
    other = Cohort(rows=tuple(cohort.rows[place] for place in order))
    assert make_split(cohort, seed=seed) == make_split(other, seed=seed)


def test_the_seed_changes_the_draw() -> None:
    assert len({make_split(_cohort(), seed=seed).sha256() for seed in range(10)}) == 10


def test_the_draw_is_the_same_in_every_process_and_version() -> None:
    """A golden hash: a committed split must be reproducible from its seed."""
    assert make_split(_cohort(), seed=7).sha256()[:16] == "6ade33481a2ef68f"
    assert make_split(_cohort(), seed=7, scheme="few_shot", shots=2).sha256()[:16] == "a80a1e634498f068"


def _cohort(n_patients: int = 10, classes: tuple[str, ...] = ("LUAD", "LUSC", "normal")) -> Cohort:
    rows = [
        CohortRow(slide_id=f"{label}{patient}-{slide}", patient_id=f"{label}{patient}", label=label, site="A")
        for label in classes
        for patient in range(n_patients)
        for slide in range(1 + patient % 2)
    ]
    return Cohort(rows=tuple(rows))


@MANY
@given(number=NUMBERS, data=st.data())
def test_every_planted_fault_is_found_with_its_id(number: int, data: st.DataObject) -> None:
    cohort = _random_cohort(number, 5)
    table = make_split(cohort, folds=3, seed=data.draw(st.integers(0, 1000)))
    place = data.draw(st.integers(0, len(table.rows) - 1))
    row = table.rows[place]
    fold = data.draw(st.integers(0, 2))
    kind = data.draw(st.sampled_from(["side", "unknown", "conflict", "relabelled", "twice", "class", "patient"]))
    planted, expected = _planted(kind, table, place, fold)
    faults = find_faults(planted, cohort=cohort)
    assert any(expected in fault for fault in faults), (kind, faults)
    if kind != "class":
        assert any(row.slide_id in fault or row.patient_id in fault or "new" in fault for fault in faults)
    with pytest.raises(InputError, match="correct the file"):
        check_split(planted, cohort=cohort)


def _planted(kind: str, table: SplitTable, place: int, fold: int) -> tuple[SplitTable, str]:
    row = table.rows[place]
    part = PARTS[place % 3]
    if kind == "relabelled":
        return _changed(
            table, lambda r: r.patient_id == row.patient_id, label="another"
        ), f"(another, expected {row.label})"
    if kind == "class":
        rows = [_moved(r, fold, "") if r.label == row.label and r.parts[fold] == part else r for r in table.rows]
        return dataclasses.replace(table, rows=tuple(rows)), f"fold {fold}: no {part} slide of class {row.label}"
    other = next(name for name in PARTS if name != row.parts[fold])
    twin = dataclasses.replace(row, slide_id=f"{row.slide_id}-twin")
    added, expected = {
        "side": (_moved(twin, fold, other), f"fold {fold}: on two sides: patient {row.patient_id}"),
        "conflict": (dataclasses.replace(twin, label="another"), f"more than one label: patient {row.patient_id}"),
        "twice": (row, f"slide {row.slide_id} is there more than once"),
        "unknown": (dataclasses.replace(row, slide_id="new"), "slide new is not in the labels table"),
        "patient": (
            dataclasses.replace(row, patient_id="new"),
            f"slide {row.slide_id} (new, expected {row.patient_id})",
        ),
    }[kind]
    kept = [r for r in table.rows if r is not row or kind not in ("unknown", "patient")]
    return dataclasses.replace(table, rows=(*kept, added)), expected


def _moved(row: SplitRow, fold: int, part: str) -> SplitRow:
    return dataclasses.replace(row, parts=(*row.parts[:fold], part, *row.parts[fold + 1 :]))


def _changed(table: SplitTable, is_chosen: Callable[[SplitRow], bool], **changes: object) -> SplitTable:
    rows = tuple(dataclasses.replace(row, **changes) if is_chosen(row) else row for row in table.rows)
    return dataclasses.replace(table, rows=rows)


@pytest.mark.parametrize(
    ("scheme", "part", "is_refused"),
    [
        ("kfold", "train", True),
        ("kfold", "val", True),
        ("kfold", "test", True),
        ("few_shot", "train", True),
        ("few_shot", "val", False),
        ("few_shot", "test", False),
        ("leave_one_site_out", "test", False),
    ],
)
def test_a_class_missing_from_a_part_is_refused_unless_the_scheme_allows_it(
    scheme: str, part: str, is_refused: bool
) -> None:
    table = dataclasses.replace(make_split(_cohort(), folds=2), scheme=scheme)
    rows = [
        dataclasses.replace(row, parts=("", row.parts[1])) if row.label == "LUAD" and row.parts[0] == part else row
        for row in table.rows
    ]
    assert bool(find_faults(make_table(rows, scheme=scheme, shots=None))) is is_refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "leave_site"}, "scheme=leave_site"),
        ({"folds": 1}, "folds=1"),
        ({"folds": 11}, r"11 or more patients of each class, got LUAD \(10\)"),
        ({"seed": -1}, "seed=-1"),
        ({"val_fraction": 0.0}, "val_fraction"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"shots": 2}, "leave shots out"),
        ({"scheme": "few_shot"}, "shots=None"),
        ({"scheme": "few_shot", "shots": 0}, "shots=0"),
        ({"scheme": "few_shot", "shots": 7}, "6 training patients of class LUAD"),
    ],
)
def test_a_setting_that_cannot_be_met_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_split(_cohort(), **arguments)


@pytest.mark.parametrize(("folds", "fewest"), [(2, 4), (3, 3), (5, 5)])
def test_the_fewest_patients_that_fill_every_part_are_enough(folds: int, fewest: int) -> None:
    make_split(_cohort(fewest), folds=folds)
    with pytest.raises(InputError, match="use fewer folds"):
        make_split(_cohort(fewest - 1), folds=folds)


def test_one_class_is_refused() -> None:
    with pytest.raises(InputError, match="two classes"):
        make_split(_cohort(classes=("LUAD",)))


def test_a_file_reads_back_equal_and_its_hash_is_that_of_its_bytes(tmp_path: Path) -> None:
    for table in (make_split(_cohort()), make_split(_cohort(), scheme="few_shot", shots=1)):
        path = tmp_path / f"{table.scheme}{'' if table.shots is None else '_1'}.csv"
        write_split(table, path)
        assert read_split(path) == table
        assert table.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_rows_in_another_order_and_windows_line_ends_are_the_same_split(tmp_path: Path) -> None:
    table = make_split(_cohort())
    header, *lines = table.to_csv().splitlines()
    path = tmp_path / "kfold_of_mine.csv"
    path.write_text("\r\n".join([header, *reversed(lines)]) + "\r\n", newline="")
    assert read_split(path).sha256() == table.sha256()


@pytest.mark.parametrize(
    ("stem", "scheme", "shots"),
    [
        ("kfold", "kfold", None),
        ("few_shot_4", "few_shot", 4),
        ("few_shot_16-seed2", "few_shot", 16),
        ("official", "official", None),
    ],
)
def test_the_name_of_the_file_says_the_scheme(tmp_path: Path, stem: str, scheme: str, shots: int | None) -> None:
    (tmp_path / f"{stem}.csv").write_text(make_split(_cohort()).to_csv())
    table = read_split(tmp_path / f"{stem}.csv")
    assert (table.scheme, table.shots) == (scheme, shots)


@pytest.mark.parametrize("stem", ["few", "few_shot_3", "kfold"])
def test_a_name_that_hides_the_shots_is_refused(tmp_path: Path, stem: str) -> None:
    with pytest.raises(InputError, match=r"few_shot_2\.csv"):
        write_split(make_split(_cohort(), scheme="few_shot", shots=2), tmp_path / f"{stem}.csv")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fold_1", "fold_7", "expected columns"),
        ("site", "centre", "expected columns"),
        (",test", ",TEST", "TEST"),
        ("LUAD0,LUAD0-0,LUAD", "LUAD0,LUAD0-0,", "label=''"),
    ],
)
def test_a_file_that_is_no_split_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "kfold.csv"
    path.write_text(make_split(_cohort(), folds=2).to_csv().replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        read_split(path)


def test_a_leaking_file_is_refused_when_it_is_read(tmp_path: Path) -> None:
    table = make_split(_cohort(), folds=2)
    row = next(row for row in table.rows if row.slide_id == "LUAD1-0")
    moved = _moved(row, 0, "train" if row.parts[0] != "train" else "test")
    path = tmp_path / "kfold.csv"
    path.write_text(dataclasses.replace(table, rows=(moved, *(r for r in table.rows if r is not row))).to_csv())
    with pytest.raises(InputError, match=r"on two sides: patient LUAD1 "):
        read_split(path)


@pytest.mark.parametrize(("fold", "part"), [(-1, "train"), (5, "train"), (0, "dev")])
def test_a_part_that_is_not_there_is_refused(fold: int, part: str) -> None:
    with pytest.raises(InputError, match=r"expected one of|has folds"):
        make_split(_cohort()).part(fold, part)


def test_unused_slides_are_listed() -> None:
    table = make_split(_cohort(), scheme="few_shot", shots=1)
    assert len(table.unused(0)) == len(table.rows) - len(table.part(0, "train")) - len(table.part(0, "test"))
    assert all(isinstance(row, SplitRow) for row in table.unused(0))


def test_splits_and_metrics_load_no_torch() -> None:
    modules = "mil.splits.file, mil.splits.schemes, mil.metrics.classification, mil.metrics.intervals"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert bounded.run([sys.executable, "-c", code]).returncode == 0


def _run(folder: Path, **changes: object) -> int:
    from mil.commands import split

    labels = folder / "labels.csv"
    rows = "".join(f"{r.slide_id},{r.patient_id},{r.label},{r.site}\n" for r in _cohort().rows)
    labels.write_text("slide_id,patient_id,label,site\n" + rows)
    defaults = OmegaConf.load(Path(__file__).parent.parent / "conf" / "split.yaml")
    defaults["task"] = {"_target_": "mil.tasks.classification.Classification"}
    del defaults["defaults"]
    return split.run(OmegaConf.merge(defaults, {"labels": str(labels), "out": str(folder / "splits"), **changes}))


@command_test
def test_the_command_writes_a_split_that_is_read_back_and_counts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert _run(tmp_path) == 0
    table = read_split(tmp_path / "splits" / "kfold.csv")
    assert table == make_split(_cohort())
    said = read_json(tmp_path / "splits" / "summary.json")
    assert said["sha256"] == table.sha256()
    assert said["parts"][0] == {
        "fold": 0, "part": "train", "patients": 18, "slides": len(table.part(0, "train")),
        "classes": {"LUAD": 6, "LUSC": 6, "normal": 6},
    }  # fmt: skip
    assert "LUAD 6, LUSC 6, normal 6" in capsys.readouterr().err


@command_test
def test_the_command_names_few_shot_files_and_takes_a_file_as_out(tmp_path: Path) -> None:
    _run(tmp_path, scheme="few_shot", shots=2)
    assert read_split(tmp_path / "splits" / "few_shot_2.csv").shots == 2
    _run(tmp_path, out=str(tmp_path / "mine.csv"))
    assert read_split(tmp_path / "mine.csv").n_folds == 5


@command_test
def test_the_command_repeats_itself_but_never_replaces_another_split(tmp_path: Path) -> None:
    _run(tmp_path)
    before = (tmp_path / "splits" / "kfold.csv").read_bytes()
    _run(tmp_path)
    with pytest.raises(InputError, match="holds another split"):
        _run(tmp_path, seed=1)
    assert (tmp_path / "splits" / "kfold.csv").read_bytes() == before
