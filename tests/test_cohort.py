"""The labels table: what is read and, above all, what is refused."""

from pathlib import Path

import pytest

from feature_extraction.errors import InputError
from mil.cohort import CohortRow, listed, read_labels


def _table(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_ids_stay_text_and_other_columns_are_ignored(tmp_path: Path) -> None:
    path = _table(tmp_path, "\ufeffage,patient_id, slide_id ,label,site\n61,007, 0012 ,LUAD,A\n50,1e3,x,LUSC,\n")
    assert read_labels(path).rows == (
        CohortRow(slide_id="0012", patient_id="007", label="LUAD", site="A"),
        CohortRow(slide_id="x", patient_id="1e3", label="LUSC", site=None),
    )


def test_a_table_without_site_has_none(tmp_path: Path) -> None:
    assert read_labels(_table(tmp_path, "slide_id,patient_id,label\na,p,x\n")).rows[0].site is None


@pytest.mark.parametrize("cell", ["", "NA", "None", "nan", " N/A ", "null"])
@pytest.mark.parametrize("column", ["slide_id", "patient_id", "label"])
def test_a_missing_value_is_refused_with_its_line(tmp_path: Path, cell: str, column: str) -> None:
    row = {"slide_id": "s2", "patient_id": "p2", "label": "LUAD", column: cell}
    path = _table(tmp_path, "slide_id,patient_id,label\ns1,p1,LUSC\n" + ",".join(row.values()) + "\n")
    with pytest.raises(InputError, match=rf"line 3 .*{column}="):
        read_labels(path)


def test_a_class_that_only_contains_such_a_word_is_read(tmp_path: Path) -> None:
    assert read_labels(_table(tmp_path, "slide_id,patient_id,label\na,p,NAFLD\n")).rows[0].label == "NAFLD"


def test_a_patient_with_two_labels_is_named_with_both(tmp_path: Path) -> None:
    path = _table(tmp_path, "slide_id,patient_id,label\na,p1,x\nb,p1,y\nc,p2,x\nd,p2,x\n")
    with pytest.raises(InputError, match=r"patient p1: x, y") as caught:
        read_labels(path)
    assert "p2" not in str(caught.value)


def test_a_slide_that_is_there_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"slide a is there more than once"):
        read_labels(_table(tmp_path, "slide_id,patient_id,label\na,p1,x\na,p1,x\nb,p2,x\n"))


@pytest.mark.parametrize("column", ["slide_id", "label"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    header = ",".join(name for name in ("slide_id", "patient_id", "label") if name != column)
    with pytest.raises(InputError, match=f"no column {column}"):
        read_labels(_table(tmp_path, f"{header}\na,b\n"))


def test_slides_are_patients_only_when_asked_and_only_without_patient_ids(tmp_path: Path) -> None:
    without = _table(tmp_path, "slide_id,label\na,x\nb,y\n")
    with pytest.raises(InputError, match="slide_is_patient=true"):
        read_labels(without)
    assert [row.patient_id for row in read_labels(without, slide_is_patient=True).rows] == ["a", "b"]
    with pytest.raises(InputError, match="has a column patient_id"):
        read_labels(_table(tmp_path, "slide_id,patient_id,label\na,p,x\n"), slide_is_patient=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one row"),
        ("slide_id,patient_id,label\n", "at least one row"),
        ("slide_id,patient_id,label\na,p\n", "line 2: expected 3 cells"),
        ("slide_id,patient_id,label,label\na,p,x,y\n", "column label is there twice"),
        ('slide_id,patient_id,label\n"a,p,x\n', "cannot be read"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_labels(_table(tmp_path, text))


def test_no_such_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")


def test_long_lists_are_cut_with_their_number() -> None:
    assert listed((str(number) for number in range(5)), most=3) == "0, 1, 2 and 2 more"
