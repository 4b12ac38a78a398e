"""A run counts when it is finished and unchanged, and only then."""

from pathlib import Path

import pytest

from feature_extraction.errors import DamagedFileError, InputError
from feature_extraction.files import is_valid, publish_json, publish_text, read_json, sha256_of_file
from mil.runs import check_run, find_runs, unfinished_runs, write_done


def _run(folder: Path, *, cell: str = "0123456789ab", is_done: bool = True) -> Path:
    publish_json(folder / "cell.json", {"cell": cell, "fold": 0})
    publish_text(folder / "predictions.csv", "slide_id\na\n")
    publish_text(folder / "maps" / "a.txt", "a map")
    if is_done:
        write_done(folder)
    return folder


def test_done_lists_every_file_with_its_checksum(tmp_path: Path) -> None:
    folder = _run(tmp_path / "one", is_done=False)
    publish_text(folder / ".tmp-left", "by a kill")
    write_done(folder)
    files = read_json(folder / "done.json")["files"]
    names = ("cell.json", "maps/a.txt", "predictions.csv")
    assert files == {name: sha256_of_file(folder / name) for name in names}
    check_run(folder)
    write_done(folder)
    check_run(folder)


@pytest.mark.parametrize("name", ["cell.json", "predictions.csv", "maps/a.txt", "done.json"])
def test_a_run_that_lost_a_file_does_not_count(tmp_path: Path, name: str) -> None:
    folder = _run(tmp_path / "one")
    (folder / name).unlink()
    assert not is_valid(folder, check_run)
    assert find_runs(tmp_path) == []


@pytest.mark.parametrize("name", ["cell.json", "predictions.csv", "maps/a.txt", "done.json"])
def test_a_run_with_one_flipped_bit_does_not_count(tmp_path: Path, name: str) -> None:
    folder = _run(tmp_path / "one")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert not is_valid(folder, check_run)


@pytest.mark.parametrize(
    "files", ["{}", '{"files": {}}', '{"files": ["cell.json"]}', "[]", "", '{"files": {"cell.json']
)
def test_a_done_file_that_says_nothing_does_not_count(tmp_path: Path, files: str) -> None:
    folder = _run(tmp_path / "one")
    (folder / "done.json").write_text(files)
    with pytest.raises(DamagedFileError):
        check_run(folder)


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname", "maps/../../secret.txt"])
def test_a_done_file_cannot_name_files_outside_the_run(tmp_path: Path, name: str) -> None:
    folder = _run(tmp_path / "one")
    publish_text(tmp_path / "secret.txt", "x")
    files = {"cell.json": sha256_of_file(folder / "cell.json"), name: sha256_of_file(tmp_path / "secret.txt")}
    publish_json(folder / "done.json", {"files": files})
    with pytest.raises(DamagedFileError, match="outside the run"):
        check_run(folder)


def test_a_run_without_a_cell_cannot_be_marked_done(tmp_path: Path) -> None:
    publish_text(tmp_path / "predictions.csv", "x")
    with pytest.raises(InputError, match=r"no cell\.json"):
        write_done(tmp_path)
    assert not is_valid(tmp_path, check_run)


def test_runs_are_found_at_any_depth_in_order_and_hidden_folders_are_not_looked_into(tmp_path: Path) -> None:
    for place, name in enumerate(["b", "a/deep", ".hydra_jobs/c"]):
        _run(tmp_path / name, cell=f"{place:012x}")
    _run(tmp_path / "half", cell="f" * 12, is_done=False)
    found = find_runs(tmp_path)
    assert [run.folder.relative_to(tmp_path).as_posix() for run in found] == ["a/deep", "b"]
    assert [run.cell["cell"] for run in found] == [f"{1:012x}", f"{0:012x}"]


def test_a_run_folder_is_a_sweep_of_one(tmp_path: Path) -> None:
    assert [run.folder for run in find_runs(_run(tmp_path / "one"))] == [tmp_path / "one"]


def test_unfinished_runs_are_named_also_when_killed_before_their_first_file(tmp_path: Path) -> None:
    _run(tmp_path / "done")
    _run(tmp_path / "half", cell="1" * 12, is_done=False)
    changed = _run(tmp_path / "changed", cell="2" * 12)
    publish_text(changed / "predictions.csv", "slide_id\nb\n")
    (tmp_path / "abcdef012345").mkdir()
    (tmp_path / "not_a_cell").mkdir()
    names = [path.name for path in unfinished_runs(tmp_path, find_runs(tmp_path))]
    assert names == ["abcdef012345", "changed", "half"]


def test_a_copied_run_is_refused_because_it_would_count_twice(tmp_path: Path) -> None:
    _run(tmp_path / "one")
    _run(tmp_path / "copy of one")
    with pytest.raises(InputError, match="the same cell"):
        find_runs(tmp_path)


def test_no_such_sweep_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="runs="):
        find_runs(tmp_path / "none")
