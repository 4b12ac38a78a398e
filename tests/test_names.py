"""Any name a file system or a table can hold: ids stay unique and inside, outputs follow no link, cells no formula."""

import csv
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyramids import tissue_pixels, write_slide

from feature_extraction.errors import InputError
from feature_extraction.files import publish_text
from feature_extraction.links import require_no_way_out
from feature_extraction.slides import SLIDE_SUFFIXES, SlideTable, id_defect, read_slide_table
from feature_extraction.status import Outcome, as_cell, from_cell, write_tables
from mil.cli import main

MEMORY = Path("/dev/shm")
EXAMPLES = settings(
    max_examples=500,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
AWKWARD = [
    *("a", "A", "ß", "SS", "é", "e\u0301", "玻片", "Präparat Nr 7", " x ", "line\nbreak", "tab\tx", "\rcr", "\u2028"),
    *(
        "'q'",
        '"q"',
        "a,b;c",
        "-x",
        "--help",
        "=1+1",
        "=cmd|' /C calc'!A0",
        "+1",
        "@SUM(A1)",
        "'=x",
        "''-",
        "%s{0}$(id)",
    ),
    *("..", "../x", "/etc/passwd", "..\\x", "C:x", "x" * 251, "é" * 120, "x__s", "s", "x__s-00000000"),
    *("\udcff\udcfe", "a\udce9b", "\u202egnp"),
]
TEXTS = st.one_of(st.sampled_from(AWKWARD), st.text(max_size=12))
FOLDERS = st.sampled_from(["", "x", "X", "y/x", "z/x", "=f", "\udcff", ".hidden"])
SUFFIXES = st.sampled_from([".svs", ".SVS", ".tif", ".ndpi", ".txt"])
OUTPUTS = (".h5", ".json", ".rows", ".lock", ".tiles.geojson.gz")


def key(slide_id: str) -> str:
    return unicodedata.normalize("NFC", slide_id.casefold())


def require_safe(table: SlideTable, n_rows: int) -> None:
    ids = [record.slide_id for record in table.records]
    assert len(ids) + len(table.failures) == n_rows  # each row is a slide or a failure, none is lost
    assert len({key(slide_id) for slide_id in ids}) == len(ids)
    for slide_id in ids:
        assert id_defect(slide_id) is None
        assert all(len(f"{slide_id}{suffix}".encode()) <= 255 for suffix in OUTPUTS)
    for error in table.failures:
        assert str(error).isprintable()


def require_inside(table: SlideTable, sandbox: Path) -> None:
    """Write what a run writes of each slide, and look what there is on the disk then."""
    out = sandbox / "out"
    outcomes = [Outcome(slide_id=record.slide_id, status="done", slide_mpp=-0.5) for record in table.records]
    outcomes += [Outcome.failed(error) for error in table.failures]
    write_tables(out, outcomes)
    for record in table.records:
        (out / f"{record.slide_id}.h5").touch(exist_ok=False)
    assert sorted(path.name for path in sandbox.iterdir()) == ["out", "slides"]
    assert len(list(out.iterdir())) == len(table.records) + 2
    with (out / "status.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(from_cell(row["slide_id"]) for row in rows) == sorted(outcome.slide_id for outcome in outcomes)
    for row in rows:
        assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in row.values())
        assert all(name == "slide_mpp" or not cell.startswith("-") for name, cell in row.items())
        assert row["slide_mpp"] in ("-0.5", "0.0")  # a number is no formula and stays a number


@EXAMPLES
@example([("x", "é", ".svs"), ("x", "e\u0301", ".svs")])
@example([("y/x", "s", ".svs"), ("z/x", "s", ".svs"), ("X", "S", ".tif"), ("", "x__s", ".svs")])
@given(st.lists(st.tuples(FOLDERS, TEXTS, SUFFIXES), min_size=1, max_size=8))
def test_any_folder_gives_safe_and_unique_ids(names: list[tuple[str, str, str]]):
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        sandbox = Path(name)
        made: set[Path] = set()
        for folder, stem, suffix in names:
            path = sandbox / "slides" / folder / f"{stem}{suffix}"
            if "/" in stem or "\0" in stem or folder == ".hidden" or path.name.startswith("."):
                continue  # no name of a file, or hidden
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except (OSError, UnicodeEncodeError):
                continue  # longer than a file system allows, or a surrogate that no bytes stand for
            if suffix.lower() in SLIDE_SUFFIXES:
                made.add(path)
        if not made:
            return
        table = read_slide_table(sandbox / "slides")
        require_safe(table, len(made))
        assert {record.path for record in table.records} <= made
        require_inside(table, sandbox)
        defects = [error for error in table.failures if error.cause.startswith("the id")]
        assert defects == list(table.failures)  # a collision of names is no reason to fail


@EXAMPLES
@given(st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from(["", "0.5", "-1", "=1"])), min_size=1, max_size=8))
def test_any_table_gives_safe_and_unique_ids(cells: list[tuple[str, str, str]]):
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        sandbox = Path(name)
        (sandbox / "slides").mkdir()
        source = sandbox / "slides" / "t.csv"
        with source.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
            writer = csv.writer(stream)
            writer.writerow(["path", "slide_id", "mpp"])
            try:
                writer.writerows([f"{path}.svs", slide_id, mpp] for path, slide_id, mpp in cells)
            except UnicodeEncodeError:
                return  # a surrogate that no bytes stand for
        try:
            table = read_slide_table(source)
        except InputError as error:
            assert "cannot be read as a CSV" in str(error)
            with pytest.raises(UnicodeDecodeError):
                source.read_text(encoding="utf-8")
            return
        require_safe(table, len(cells))
        require_inside(table, sandbox)


@EXAMPLES
@given(TEXTS)
def test_a_cell_is_no_formula_and_gives_its_text_back(text: str):
    assert not as_cell(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert from_cell(as_cell(text)) == text


def test_a_slide_may_be_a_link_and_the_same_name_may_lie_behind_two(tmp_path: Path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "1.svs").touch()
    (tmp_path / "slides" / "x").mkdir(parents=True)
    (tmp_path / "slides" / "s.svs").symlink_to(tmp_path / "store" / "1.svs")
    (tmp_path / "slides" / "x" / "s.svs").symlink_to(tmp_path / "nowhere.svs")
    (tmp_path / "slides" / "loop").symlink_to(tmp_path / "slides")
    assert sorted(r.slide_id for r in read_slide_table(tmp_path / "slides").records) == ["slides__s", "x__s"]


def test_a_link_in_the_place_of_an_output_is_replaced_and_not_followed(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("theirs")
    out = tmp_path / "out"
    out.mkdir()
    for target in ("file", "none", "."):
        link = out / "S.h5"
        link.unlink(missing_ok=True)
        link.symlink_to(outside / target)
        publish_text(link, "ours")
        assert not link.is_symlink()
        assert link.read_text() == "ours"
    assert (outside / "file").read_text() == "theirs"
    assert [path.name for path in outside.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["demo", "demo/.work", "demo/.work/locks", "demo/.work/journal/a.rows", "demo/qc"])
def test_a_link_that_would_be_followed_out_of_the_outputs_is_refused(tmp_path: Path, name: str):
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (out / name).parent.mkdir(parents=True)
    for target in (outside, outside / "nothing"):
        if name.endswith("qc") and target != outside:
            continue  # a link to nothing could as well stand in the place of a file
        (out / name).symlink_to(target)
        with pytest.raises(InputError, match=f"{name} is a link to outside"):
            require_no_way_out(out, out / "demo")
        (out / name).unlink()


def test_links_that_do_no_harm_are_kept(tmp_path: Path):
    out = tmp_path / "out"
    require_no_way_out(out, out / "demo")  # nothing there yet
    (tmp_path / "disk" / "demo" / ".work" / "locks").mkdir(parents=True)
    out.symlink_to(tmp_path / "disk")
    (out / "demo" / "a.h5").symlink_to(tmp_path / "a.h5")
    (out / "demo" / ".work" / "journal").symlink_to(out / "demo" / ".work" / "locks")
    require_no_way_out(out, out / "demo")


@pytest.mark.pipeline
def test_extraction_follows_no_link_out_of_its_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, outside = tmp_path / "out", tmp_path / "outside"
    for name in "ab":
        write_slide(tmp_path / "slides" / f"{name}.svs", tissue_pixels(500, 500), levels=(1,))
    words = ["extract", f"slides={tmp_path / 'slides'}", f"out={out}", "threads=1"]
    assert main(words) == 0
    (folder,) = {path.parent for path in out.glob("*/*.h5")}
    (outside / "h5").mkdir(parents=True)
    (folder / "a.h5").rename(outside / "h5" / "a.h5")
    (outside / "h5" / "a.h5").write_text("theirs")
    (folder / "a.h5").symlink_to(outside / "h5" / "a.h5")
    assert main(words) == 0
    assert not (folder / "a.h5").is_symlink()
    assert (outside / "h5" / "a.h5").read_text() == "theirs"
    (folder / ".work").rename(outside / "work")
    (folder / ".work").symlink_to(outside / "work")
    before = {path: path.stat().st_mtime_ns for path in outside.rglob("*")}
    (folder / "b.h5").unlink()
    capsys.readouterr()
    assert main(words) == 2
    assert ".work is a link to outside" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in outside.rglob("*")} == before


@pytest.mark.pipeline
def test_slides_of_any_name_are_extracted_or_say_why_not(tmp_path: Path):
    """One run over real slides with awkward names: an outcome each, safe tables, nothing outside."""
    slides, out = tmp_path / "slides", tmp_path / "out"
    first = write_slide(slides / "plain.svs", tissue_pixels(500, 500), levels=(1,))
    stems = [
        "Präparat Nr 7 玻片",
        "-x",
        "=1+1",
        "+2",
        "@a",
        "'q' \"r\"",
        "a,b",
        "PLAIN",
        "line\nbreak",
        "\udcff",
        "x" * 230,
    ]
    for stem in stems:
        (slides / f"{stem}.svs").symlink_to(first)
    (slides / "twice" / "\udcff").mkdir(parents=True)
    (slides / "twice" / "plain.tif").symlink_to(first)
    (slides / "series").mkdir()
    (slides / "series" / "a\nb\udcff.dcm").touch()  # its id is its folder's name, its own name stands in messages only
    assert main(["extract", f"slides={slides}", f"out={out}", "threads=1"]) == 3
    with (out / "status.csv").open(newline="", encoding="utf-8") as stream:
        rows = {from_cell(row["slide_id"]): row for row in csv.DictReader(stream)}
    failed = {slide_id for slide_id, row in rows.items() if row["status"] == "failed"}
    assert failed == {repr("line\nbreak"), repr("\udcff"), "series", next(i for i in rows if "xxx" in i)}
    assert len(rows) == len(stems) + 3
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows.values() for cell in row.values())
    assert {path.name for path in tmp_path.iterdir()} == {"slides", "out"}
    assert rows["series"]["cause"].isprintable()
