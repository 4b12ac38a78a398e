"""The slide table: ids are unique and safe, a bad row costs that row."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_extraction.errors import InputError
from feature_extraction.slides import id_defect, read_slide_table


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folder_gives_stems_and_ignores_what_is_no_slide(tmp_path: Path):
    touch(tmp_path / "b.svs", tmp_path / "a.tiff", tmp_path / "notes.txt", tmp_path / ".hidden" / "c.svs")
    assert [record.slide_id for record in read_slide_table(tmp_path).records] == ["a", "b"]


def test_stems_that_collide_all_get_their_folders_name(tmp_path: Path):
    touch(tmp_path / "x" / "s.svs", tmp_path / "y" / "s.svs", tmp_path / "y" / "t.svs")
    assert sorted(r.slide_id for r in read_slide_table(tmp_path).records) == ["t", "x__s", "y__s"]


def test_what_still_collides_gets_a_hash_of_its_relative_path(tmp_path: Path):
    for root in (tmp_path / "a", tmp_path / "b"):
        touch(root / "1" / "x" / "s.svs", root / "2" / "x" / "s.svs", root / "2" / "x" / "s.TIF", root / "3" / "t.svs")
    here, there = ([r.slide_id for r in read_slide_table(tmp_path / name).records] for name in "ab")
    assert here == there  # wherever the folder lies
    assert len(set(here)) == 4
    assert [slide_id[:-8] for slide_id in here[:3]] == ["x__s-"] * 3
    assert here[3] == "t"


def test_slides_that_differ_by_case_alone_are_two(tmp_path: Path):
    touch(tmp_path / "x" / "S.svs", tmp_path / "x" / "s.svs")
    table = read_slide_table(tmp_path)
    assert not table.failures
    assert len({record.slide_id.casefold() for record in table.records}) == 2


def test_a_row_without_a_path_is_no_slide(tmp_path: Path):
    (tmp_path / "t.csv").write_text("path,slide_id\n,A\n  ,\na.svs,B\n\0.svs,C\n")
    table = read_slide_table(tmp_path / "t.csv")
    assert [record.slide_id for record in table.records] == ["B"]
    assert [(error.slide_id, error.code) for error in table.failures] == [
        ("A", "E-path"),
        ("(line 3)", "E-path"),
        ("C", "E-path"),
    ]


def test_lines_are_those_an_editor_shows(tmp_path: Path):
    (tmp_path / "t.csv").write_text('path,slide_id\n\n"a\nb.svs",A\nc.svs,B\nd.svs,B\n')
    (first, _) = read_slide_table(tmp_path / "t.csv").failures
    assert "lines 5, 6" in first.cause


def test_a_dicom_folder_is_one_slide(tmp_path: Path):
    touch(tmp_path / "case" / "1.dcm", tmp_path / "case" / "2.dcm")
    (record,) = read_slide_table(tmp_path).records
    assert record.slide_id == "case"


def test_csv_paths_are_relative_to_the_csv_and_mpp_is_read(tmp_path: Path):
    (tmp_path / "t.csv").write_text(
        "path,slide_id,mpp,mpp_x,mpp_y\ns/a.svs,A,0.5,,\ns/b.svs,,,0.25,0.26\ns/c.svs,,,,\n"
    )
    records = read_slide_table(tmp_path / "t.csv").records
    assert [(r.slide_id, r.mpp) for r in records] == [("A", (0.5, 0.5)), ("b", (0.25, 0.26)), ("c", None)]
    assert records[0].path == tmp_path / "s" / "a.svs"


def test_bad_rows_fail_and_the_others_stay(tmp_path: Path):
    (tmp_path / "t.csv").write_text(
        "path,slide_id,mpp\na.svs,A,\nb.svs,../../B,\nc.svs,D,\nd.svs,d,\ne.svs,E,-0.5\nf.svs,F,20x\n"
    )
    table = read_slide_table(tmp_path / "t.csv")
    assert [record.slide_id for record in table.records] == ["A"]
    assert [(error.slide_id, error.code) for error in table.failures] == [
        ("'../../B'", "E-id"),
        ("D", "E-id"),
        ("d", "E-id"),
        ("E", "E-mpp"),
        ("F", "E-mpp"),
    ]
    assert "2 rows share this id (lines 4, 5)" in str(table.failures[1])
    assert ".svs" not in "".join(map(str, table.failures))  # a file's name may be a person's


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "slide\na\n", "needs a column 'path'"),
        ("empty", None, "no slide in it"),
        ("none", "", "expected a folder of slides or a .csv"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, name: str, content: str | None, message: str):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    elif name.endswith(".csv"):
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_slide_table(path)


def test_more_cells_than_columns_are_refused_with_their_lines(tmp_path: Path):
    (tmp_path / "t.csv").write_text("path,slide_id\na.svs,A\nb, c.svs,B\n")
    with pytest.raises(InputError, match="more cells than columns in line 3; quote commas"):
        read_slide_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("path,slide_id\na.svs,A,\n")  # a trailing comma shifts nothing
    assert [record.slide_id for record in read_slide_table(tmp_path / "t.csv").records] == ["A"]


@given(st.text(max_size=40))
def test_an_accepted_id_always_names_a_file_inside_its_folder(slide_id: str):
    if id_defect(slide_id) is None:
        root = Path("/root_of_outputs")
        assert (root / f"{slide_id}.h5").parent == root
        assert len(f"{slide_id}.h5".encode()) <= 255


@pytest.mark.parametrize("slide_id", ["A-1", "Präparat Nr 7 – Müller øst", "玻片", "-x", "=1+1", "a.b"])
def test_ordinary_and_foreign_names_are_accepted(slide_id: str):
    assert id_defect(slide_id) is None
