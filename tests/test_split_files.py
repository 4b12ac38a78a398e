"""Split files of other tools: read as their authors write them, handed back, and refused where they leak."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest

from feature_extraction.errors import InputError
from mil.cohort import Cohort, CohortRow
from mil.labels import NUMBER
from mil.splits.draws import SplitSettings
from mil.splits.fixed import GivenSplit, ValDrawing, fix_split, read_official
from mil.splits.interop import READERS, WRITERS
from mil.splits.schemes import draw_split, make_split
from mil.splits.table import PARTS, SplitTable


def _cohort(n_patients: int = 6) -> Cohort:
    """Slides 0001 to … of patients 001 to …; every second patient has two."""
    rows, number = [], 0
    for patient in range(2 * n_patients):
        for _ in range(1 + patient % 2):
            number += 1
            label = ("LUAD", "LUSC")[patient % 2]
            rows.append(CohortRow(slide_id=f"{number:04}", patient_id=f"{patient + 1:03}", label=label, site=None))
    return Cohort(rows=tuple(rows))


def _write(files: dict[str, str], folder: Path) -> Path:
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def _slides(table: SplitTable, fold: int = 0) -> dict[str, list[str]]:
    return {part: [row.slide_id for row in table.part(fold, part)] for part in PARTS}


def _clam_frame(slides: dict[str, list[str]]) -> pd.DataFrame:
    """As CLAM's ``save_splits`` makes it: columns next to each other, short ones filled up."""
    return pd.concat([pd.Series(ids, name=part) for part, ids in slides.items()], axis=1)


def _clam_boolean_frame(slides: dict[str, list[str]]) -> pd.DataFrame:
    rows = {slide: [part == other for other in PARTS] for part in PARTS for slide in slides[part]}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(PARTS))


def _fixed(tool: str, source: Path, cohort: Cohort) -> SplitTable:
    return fix_split(cohort, READERS[tool](source), scheme=tool)[0]


@pytest.mark.parametrize("tool", sorted(WRITERS))
@pytest.mark.parametrize("scheme", ["kfold", "few_shot", "monte_carlo"])
def test_what_is_handed_over_reads_back_as_the_same_parts(tool: str, scheme: str, tmp_path: Path) -> None:
    cohort = _cohort(12)
    table, _ = draw_split(cohort, SplitSettings(scheme=scheme, folds=2, shots=5 if scheme == "few_shot" else None))
    back = _fixed(tool, _write(WRITERS[tool](table), tmp_path), cohort)
    for ours, theirs in zip(table.rows, back.rows, strict=True):
        if tool == "stamp":  # it draws its own val, and so do we
            assert [part == "test" for part in ours.parts] == [part == "test" for part in theirs.parts]
            assert [not part for part in ours.parts] == [not part for part in theirs.parts]
        else:
            assert ours == theirs


@pytest.mark.parametrize("is_boolean", [False, True])
def test_the_files_of_clam_are_read_and_written_as_its_code_does(is_boolean: bool, tmp_path: Path) -> None:
    table = make_split(_cohort(), folds=3)
    frames = [(_clam_boolean_frame if is_boolean else _clam_frame)(_slides(table, fold)) for fold in range(3)]
    name = "splits_{}_bool.csv" if is_boolean else "splits_{}.csv"
    for fold, frame in enumerate(frames):
        frame.to_csv(tmp_path / name.format(fold))
        (tmp_path / f"splits_{fold}_descriptor.csv").write_text(",train,val,test\nLUAD,4,1,1\n")
        assert frame.to_csv() == WRITERS["clam"](table)[name.format(fold)]
    assert [row.parts for row in _fixed("clam", tmp_path, _cohort()).rows] == [row.parts for row in table.rows]
    one = _fixed("clam", tmp_path / name.format(2), _cohort())
    assert [row.parts for row in one.rows] == [row.parts[2:] for row in table.rows]


@pytest.mark.parametrize("tool", ["clam", "patho_bench", "six_column"])
def test_eleven_folds_are_in_the_order_of_their_numbers(tool: str, tmp_path: Path) -> None:
    cohort = _cohort(12)
    table = make_split(cohort, folds=11)
    files = WRITERS[tool](table)
    if tool == "patho_bench":  # whatever the order of the columns
        frame = pd.read_csv(io.StringIO(files["k=all.tsv"]), sep="\t", dtype=str)
        files["k=all.tsv"] = frame[sorted(frame)].to_csv(sep="\t", index=False)
    _write(files, tmp_path)
    assert [row.parts for row in _fixed(tool, tmp_path, cohort).rows] == [row.parts for row in table.rows]


def test_patients_may_stand_for_their_slides(tmp_path: Path) -> None:
    table = make_split(_cohort(), folds=3)
    patients = {part: sorted({row.patient_id for row in table.part(0, part)}) for part in PARTS}
    _clam_frame(patients).to_csv(tmp_path / "splits_0.csv")
    assert [row.parts for row in _fixed("clam", tmp_path, _cohort()).rows] == [row.parts[:1] for row in table.rows]


def test_six_columns_with_class_numbers_that_gaps_made_decimal_are_read(tmp_path: Path) -> None:
    table = make_split(_cohort(), folds=3)
    for fold in range(3):
        frame = pd.DataFrame()
        for part in PARTS:
            rows = table.part(fold, part)
            columns = {
                part: [row.slide_id for row in rows],
                f"{part}_label": [int(row.label == "LUSC") for row in rows],
            }
            frame = pd.concat([frame, pd.DataFrame(columns)], axis=1)
        assert "float" in str(frame["test_label"].dtype)
        frame.to_csv(tmp_path / f"fold{fold + 1}.csv")
    assert [row.parts for row in _fixed("six_column", tmp_path, _cohort()).rows] == [row.parts for row in table.rows]
    assert WRITERS["six_column"](table)["fold0.csv"].splitlines()[:2] == [
        ",train,train_label,val,val_label,test,test_label",
        "0,"
        + ",".join(
            f"{table.part(0, part)[0].slide_id},{int(table.part(0, part)[0].label == 'LUSC')}" for part in PARTS
        ),
    ]


def _patho_bench(table: SplitTable) -> pd.DataFrame:
    """Labels as numbers, no val, as its tasks are published."""
    rows = [
        {
            "case_id": row.patient_id,
            "slide_id": row.slide_id,
            "subtype": int(row.label == "LUSC"),
            **{f"fold_{fold}": part.replace("val", "train") for fold, part in enumerate(row.parts)},
        }
        for row in table.rows
    ]
    return pd.DataFrame(rows)


def test_patho_bench_tasks_are_read_with_a_val_part_drawn(tmp_path: Path) -> None:
    table = make_split(_cohort(), folds=3, seed=5)
    _patho_bench(table).to_csv(tmp_path / "k=all.tsv", sep="\t", index=False)
    given = READERS["patho_bench"](tmp_path)
    fixed, note = fix_split(_cohort(), given, val=ValDrawing(seed=5))
    assert [row.parts for row in fixed.rows] == [
        row.parts for row in table.rows
    ]  # our own draw, taken away and redrawn
    assert "val is drawn from train in fold 0, 1, 2" in note


def test_patho_bench_rows_without_a_label_are_left_out(tmp_path: Path) -> None:
    table = make_split(_cohort(), folds=3)
    frame = _patho_bench(table)
    stranger = pd.DataFrame(
        [{"case_id": "X", "slide_id": "X1", "fold_0": "train", "fold_1": "train", "fold_2": "test"}]
    )
    pd.concat([frame, stranger]).to_csv(tmp_path / "k=all.tsv", sep="\t", index=False)
    assert all(name != "X1" for fold in READERS["patho_bench"](tmp_path).folds for _, name in fold)


def test_stamp_splits_are_read_and_written_by_patients(tmp_path: Path) -> None:
    table = make_split(_cohort(), folds=3)
    written = json.loads(WRITERS["stamp"](table)["splits.json"])
    patients = {row.patient_id for row in table.rows}
    for split in written["splits"]:
        assert set(split) == {"train_patients", "test_patients"}
        assert set(split["train_patients"]) | set(split["test_patients"]) == patients
        assert not set(split["train_patients"]) & set(split["test_patients"])
    (tmp_path / "splits.json").write_text(json.dumps(written))
    for source in (tmp_path, tmp_path / "splits.json"):
        fixed, note = fix_split(_cohort(), READERS["stamp"](source))
        assert _slides(fixed, 1)["test"] == _slides(table, 1)["test"]
        assert "val is drawn" in note


@pytest.mark.parametrize("where", ["column", "file", "patients"])
def test_an_official_split_is_a_column_or_a_file(where: str, tmp_path: Path) -> None:
    cohort = _cohort()
    table = make_split(cohort, folds=3)
    words = {"train": "Training", "val": "validation", "test": "TEST", "": ""}
    key = "patient_id" if where == "patients" else "slide_id"
    cells = {getattr(row, key): words[row.parts[0]] for row in table.rows}
    official, labels = tmp_path / "official.csv", tmp_path / "labels.csv"
    lines = "".join(f"{name},{cell}\n" for name, cell in cells.items())
    (labels if where == "column" else official).write_text(f"{key},split\n{lines}")
    fixed, note = fix_split(cohort, read_official(labels, "split" if where == "column" else str(official)))
    assert [row.parts for row in fixed.rows] == [row.parts[:1] for row in table.rows]
    assert (fixed.scheme, note) == ("official", "")


def test_val_is_drawn_by_patient_and_class_and_slides_without_a_part_stay_out() -> None:
    cohort = _cohort(10)
    pairs = [("test" if int(row.patient_id) <= 6 else "train", row.slide_id) for row in cohort.rows[:-3]]
    fixed, note = fix_split(cohort, GivenSplit(source="x", folds=(tuple(pairs),)), val=ValDrawing(fraction=0.5))
    parts = _slides(fixed)
    assert len(parts["test"]) == 9
    patients = {row.patient_id for row in fixed.part(0, "val")}
    assert len(patients) == 6
    assert patients.isdisjoint(row.patient_id for row in fixed.part(0, "train"))
    assert [row.slide_id for row in fixed.unused(0)] == [row.slide_id for row in cohort.rows[-3:]]
    assert "fold 0" in note


def _leak(table: SplitTable, change) -> GivenSplit:
    slides = _slides(table)
    change(slides)
    return GivenSplit(source="x", folds=(tuple((part, name) for part in PARTS for name in slides[part]),))


def _val_is_test(slides: dict[str, list[str]]) -> None:
    slides["val"] = list(slides["test"])


def _in_two_parts(slides: dict[str, list[str]]) -> None:
    slides["test"].append(slides["train"][0])


def _lost_zeros(slides: dict[str, list[str]]) -> None:
    slides["train"][0] = f"{int(slides['train'][0])}.0"


def _with_suffix(slides: dict[str, list[str]]) -> None:
    slides["train"][0] += ".svs"


def _on_two_sides(slides: dict[str, list[str]]) -> None:
    slides["test"].append("0003")
    for part in PARTS:
        slides[part] = [name for name in slides[part] if name != "0003" or part == "test"]
        slides[part] += ["0002"] if part == "train" and "0002" not in slides["train"] else []
    for part in ("val", "test"):
        slides[part] = [name for name in slides[part] if name != "0002"]


def _twice(slides: dict[str, list[str]]) -> None:
    slides["train"].append(slides["train"][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_val_is_test, r"fold 0: val and test are the same: \d{4}"),
        (_in_two_parts, r"fold 0: in more than one part: \d{4} \(test, train\)"),
        (_lost_zeros, r"slide \d+\.0 \(is it '\d{4}'\? they differ in zeros; keep ids as text\)"),
        (_with_suffix, r"\.svs \(is it '\d{4}'\? they differ in the suffix of a file\)"),
        (_on_two_sides, r"fold 0: on two sides: patient 002 \(test, train\)"),
        (_twice, r"there more than once: \d{4} \(train\)"),
    ],
)
def test_a_leak_in_a_given_split_is_refused_with_its_ids(change, message: str) -> None:
    table = make_split(_cohort(), folds=3)
    fix_split(_cohort(), _leak(table, lambda slides: None))
    with pytest.raises(InputError, match=message):
        fix_split(_cohort(), _leak(table, change))


def test_labels_and_patients_that_disagree_are_named(tmp_path: Path) -> None:
    table = make_split(_cohort(), folds=3)
    frame = _patho_bench(table)
    frame.loc[frame["slide_id"] == "0004", "subtype"] = 1
    frame.to_csv(tmp_path / "k=all.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match=r"slide 0004 \('1' there, which is mostly LUSC, and LUAD in the labels table"):
        _fixed("patho_bench", tmp_path, _cohort())
    frame = _patho_bench(table)
    frame.loc[frame["slide_id"].isin(["0001", "0004"]), "case_id"] = "C"
    frame.to_csv(tmp_path / "k=all.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match=r"one patient there, several in the labels table: C \(001, 003\)"):
        _fixed("patho_bench", tmp_path, _cohort())


@pytest.mark.parametrize(
    ("tool", "files", "message"),
    [
        ("clam", {}, "no file named as splits_"),
        ("clam", {"splits_0.csv": ",train,test\n0,a,b\n", "splits_2.csv": ",train,test\n0,a,b\n"}, "no file of fold 1"),
        ("clam", {"splits_0.csv": ",trn,tst\n0,a,b\n"}, "expected columns train, val, test"),
        ("six_column", {"notes.csv": "a\nb\n"}, "no file named as"),
        ("patho_bench", {"k=all.tsv": "slide_id\tfold_0\na\ttrain\n"}, "expected case_id, slide_id and fold_0"),
        ("patho_bench", {"k=all.tsv": "case_id\tslide_id\tfold_0\na\ta\t1\n"}, "slide a: fold_0='1'"),
        ("stamp", {"splits.json": "[]"}, "splits"),
        ("stamp", {"splits.json": "{"}, "cannot be read as JSON"),
        ("stamp", {"splits.json": '{"splits": [{"train_patients": ["001"]}]}'}, "train_patients and test_patients"),
        ("stamp", {"splits.json": '{"splits": [{"train_patients": ["1"], "test_patients": ["002"]}]}'}, "is it '001'"),
        ("stamp", {}, "cannot be read"),
    ],
)
def test_a_file_that_is_not_of_that_tool_is_refused(
    tool: str, files: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        _fixed(tool, _write(files, tmp_path), _cohort())


@pytest.mark.parametrize(
    ("text", "official", "message"),
    [
        ("slide_id,split\n0001,train\n", "part", "expected slide_id or patient_id, and part"),
        ("slide,split\n0001,train\n", "split", "expected slide_id or patient_id, and split"),
        ("slide_id,split\n0001,fold 1\n", "split", "0001: 'fold 1'"),
    ],
)
def test_an_official_split_that_names_no_parts_is_refused(
    text: str, official: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_official(tmp_path / "labels.csv", official)


def test_labels_that_are_numbers_keep_their_groups() -> None:
    rows = (CohortRow(slide_id=f"s{n}", patient_id=f"p{n}", label=f"{n / 2}", site=None) for n in range(20))
    cohort = Cohort(rows=tuple(rows))
    table = make_split(cohort, folds=2, kind=NUMBER)
    folds = tuple(tuple((row.parts[fold], row.slide_id) for row in table.rows) for fold in range(2))
    fixed, _ = fix_split(cohort, GivenSplit(source="x", folds=folds), scheme="kfold", kind=NUMBER)
    assert fixed == table
