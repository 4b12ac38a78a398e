"""`promptmil convert` that is killed or run again: nothing half made, nothing made twice, nothing out of date."""

import os
import signal
import sys
from pathlib import Path

import bounded
import h5py
import numpy as np
import peer_folders as peers
import pytest

from feature_extraction.encoders.demo import SPEC
from feature_extraction.interop import trident
from feature_extraction.store import FeatureFile
from feature_extraction.verify import verify_folder

N_TILES = 20_000
KILLED_CHILD = """
import os, pkgutil, signal
from unittest.mock import patch
import peer_folders

kept, calls = pkgutil.resolve_name({function!r}), []

def die(*arguments, **options):
    calls.append(None)
    if len(calls) == {n_calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    return kept(*arguments, **options)

with patch({function!r}, die):
    peer_folders.convert(*{words!r})
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A cache with one slide of more rows than are taken at a time, in an order that is not ours."""
    y, x = np.divmod(np.arange(N_TILES), 200)
    features = np.random.default_rng(1).standard_normal((N_TILES, SPEC.widths["joint"])).astype(np.float32)
    coords = np.stack([x, y], axis=1) * 16
    peers.write_trident(tmp_path / "t", "A", features[::-1], coords[::-1], side=96, side_lv0=192, target=10)
    return tmp_path / "t"


def words(source: Path, out: Path) -> tuple[str, ...]:
    return "from=trident", f"source={source}", f"out={out}", "encoder=demo", "space=joint", "default_mpp=0.5"


def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the first row of each part that is read from now on."""
    seen: list[int] = []
    rows_of = trident.rows_of

    def spy(path: Path, name: str):
        read = rows_of(path, name)
        return lambda start, stop: seen.append(start) or read(start, stop)

    monkeypatch.setattr(trident, "rows_of", spy)
    return seen


@pytest.mark.parametrize(
    ("function", "n_calls", "resumes_at"),
    [
        ("feature_extraction.journal.Journal.append", 1, [0, 8192, 16384]),
        ("feature_extraction.journal.Journal.append", 3, [16384]),
        ("feature_extraction.interop.making.write_features", 1, []),
        ("feature_extraction.files.os.fsync", 1, []),
        ("feature_extraction.journal.Journal.remove", 1, []),
        ("feature_extraction.interop.importing.write_record", 1, []),
    ],
)
def test_a_killed_conversion_goes_on_where_it_ended(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, function: str, n_calls: int, resumes_at: list[int]
):
    out = tmp_path / "out"
    code = KILLED_CHILD.format(function=function, n_calls=n_calls, words=words(source, out))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = bounded.run([sys.executable, "-c", code], env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for path in out.glob("*/*.h5"):
        FeatureFile(path).features()
    read = starts(monkeypatch)
    assert peers.convert(*words(source, out)) == 0
    assert read == resumes_at
    assert peers.convert(*words(source, tmp_path / "clean")) == 0
    made, clean = (FeatureFile(peers.only_folder(tmp_path / name) / "A.h5") for name in ("out", "clean"))
    assert (made.content_sha256, made.header) == (clean.content_sha256, clean.header)
    assert not list(out.glob("*/.work/journal/*"))
    left = [finding.thing for finding in verify_folder(made.path.parent).findings]
    assert set(left) <= {"temporary file"}


def test_what_is_done_is_left_alone(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    peers.convert(*words(source, out))
    path = peers.only_folder(out) / "A.h5"
    before = path.stat()
    read = starts(monkeypatch)
    assert peers.convert(*words(source, out)) == 0
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert read == []
    assert (peers.summary(out)["new"], peers.summary(out)["done"]) == (0, 1)


@pytest.mark.parametrize("change", ["features", "corners", "mpp", "damage"])
def test_what_is_out_of_date_or_damaged_is_made_again(tmp_path: Path, source: Path, change: str):
    out, told = tmp_path / "out", list(words(source, tmp_path / "out"))
    peers.convert(*told)
    path = peers.only_folder(out) / "A.h5"
    before = FeatureFile(path)
    if change == "mpp":
        told[-1] = "default_mpp=0.51"
    elif change == "damage":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        with h5py.File(next(source.rglob("A.h5")), "a") as file:
            name = "features" if change == "features" else "coords"
            file[name][0] = file[name][0] + 1
    assert peers.convert(*told) == 0
    assert peers.summary(out)["new"] == 1
    after = FeatureFile(peers.only_folder(out) / "A.h5")
    after.features()
    assert (after.content_sha256 == before.content_sha256) == (change in ("mpp", "damage"))
    assert after.header.slide_mpp_x == (0.51 if change == "mpp" else 0.5)


def test_a_journal_of_another_source_is_not_continued(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    code = KILLED_CHILD.format(
        function="feature_extraction.journal.Journal.append", n_calls=3, words=words(source, out)
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    bounded.run([sys.executable, "-c", code], env=environment)
    assert list(out.glob("*/.work/journal/A.rows"))
    with h5py.File(next(source.rglob("A.h5")), "a") as file:
        file["features"][0] = 7
        expected = file["features"][0]
    read = starts(monkeypatch)
    assert peers.convert(*words(source, out)) == 0
    assert read == [0, 8192, 16384]
    assert np.array_equal(FeatureFile(peers.only_folder(out) / "A.h5").features()[-1], expected)


def test_a_slide_that_another_process_converts_is_left_to_it(tmp_path: Path, source: Path):
    from feature_extraction.claims import claim
    from feature_extraction.work import lock_path

    peers.convert(*words(source, tmp_path / "out"))
    folder = peers.only_folder(tmp_path / "out")
    (folder / "A.h5").unlink()
    with claim(lock_path(folder, "A")) as is_ours:
        assert is_ours
        assert peers.convert(*words(source, tmp_path / "out")) == 0
    assert peers.summary(tmp_path / "out")["elsewhere"] == 1
    assert not (folder / "A.h5").exists()
