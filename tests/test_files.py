"""Publishing: the old file or the new one, and no other question decides what is done."""

import re
import sys
from pathlib import Path

import bounded
import pytest

from feature_extraction.errors import DamagedFileError
from feature_extraction.files import address, is_valid, publish, read_json

ROOT = Path(__file__).parent.parent
FULL_DISK = """
import resource, sys
from pathlib import Path
from feature_extraction.files import publish
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    publish(Path(sys.argv[1]), bytes(200_000))
except OSError as error:
    print("OSError", error.errno)
"""


def test_publish_replaces_whole_files(tmp_path: Path):
    publish(tmp_path / "a" / "f", b"old")
    publish(tmp_path / "a" / "f", b"new")
    assert (tmp_path / "a" / "f").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["f"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path):
    """A file-size limit stands in for a full disk: the kernel refuses the write in the middle."""
    publish(tmp_path / "f", b"old")
    done = bounded.run([sys.executable, "-c", FULL_DISK, str(tmp_path / "f")], check=True)
    assert done.stdout.startswith("OSError")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_validity_is_the_checks_answer(tmp_path: Path):
    def refuse(path: Path) -> None:
        raise DamagedFileError("no")

    (tmp_path / "f").touch()
    assert not is_valid(tmp_path / "none", lambda path: path.read_bytes())
    assert not is_valid(tmp_path / "f", refuse)
    assert is_valid(tmp_path / "f", lambda path: path.read_bytes())


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_what_is_no_json_object_is_named(tmp_path: Path, text: str):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(DamagedFileError, match=r"f\.json"):
        read_json(tmp_path / "f.json")


def test_an_address_does_not_depend_on_the_order_of_keys():
    assert address({"a": 1, "b": [2, 3]}) == address({"b": [2, 3], "a": 1}) != address({"a": 1, "b": [3, 2]})


def test_no_code_decides_by_the_existence_of_a_path():
    sources = [path for package in ("mil", "feature_extraction") for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 40
    found = [path.name for path in sources if re.search(r"\.exists\(|path\.exists|lexists", path.read_text())]
    assert found == []
