"""Every call to the disk fails once, or from there on: a clear message, nothing half published, and it goes on."""

import errno
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from bounded import until
from forked import Forker, check_files
from nth_call import LOOKING, REMOVING, TAKING
from pyramids import tissue_pixels, write_slide

from feature_extraction.store import FeatureFile

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("nth_call")]


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    with Forker(tmp_path_factory.mktemp("said")) as forker:
        yield forker


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one slide of one level."""
    folder = tmp_path_factory.mktemp("one")
    write_slide(folder / "S0.svs", tissue_pixels(500, 500), levels=(1,))
    return folder


@dataclass(frozen=True)
class Failing:
    """From its n-th call on, a disk fails so.

    Attributes:
        code: What the calls say.
        lasts: Whether every later call fails too, rather than one.
        spares: Calls that never fail.
    """

    code: int
    lasts: bool
    spares: frozenset[str]

    def of(self, n: int, folder: Path) -> dict[str, object]:
        """Arguments of `nth_call.fail_calls`."""
        last = 10**9 if self.lasts else n
        return {"folder": str(folder), "n": n, "last": last, "code": self.code, "spared": sorted(self.spares)}


FAILING = {
    "one call fails": Failing(errno.EIO, lasts=False, spares=frozenset()),
    "one write fails": Failing(errno.EIO, lasts=False, spares=LOOKING | REMOVING | TAKING - {"write"}),
    "full from there on": Failing(errno.ENOSPC, lasts=True, spares=LOOKING | REMOVING),
    "read-only from there on": Failing(errno.EROFS, lasts=True, spares=LOOKING),
    "dead from there on": Failing(errno.EIO, lasts=True, spares=frozenset()),
}


def check_failing_call(forker: Forker, one: Path, out: Path, failing: Failing, n: int) -> bool:
    """The contract when the n-th call fails; returns whether the run came that far."""
    options = {"slides": one, "out": out, "batch_size": 4, "threads": 1}
    ended = forker.run(options, prepare="nth_call:fail_calls", **failing.of(n, out))
    assert isinstance(ended.report, dict)
    failed = ended.report["failed"]
    assert ended.code in (0, 3), (failed, ended.said)
    assert "Traceback" not in ended.said, (failed, ended.said)
    files = list(out.glob("*/*.h5"))
    for path in files:
        FeatureFile(path).features()
    if ended.code == 0:
        assert len(files) == 1, failed
    else:
        lines = [line for line in ended.said.splitlines() if "code=E-disk" in line or line.startswith("error: ")]
        assert lines, (failed, ended.said)
        assert all("demo-" in line or str(out) in line for line in lines), (failed, lines)
    if "unlink" in failing.spares or not failing.lasts:
        assert list(out.rglob(".tmp-*")) == [], failed
    again = forker.run(options)
    assert again.code == 0, (failed, again.said)
    assert len(list(out.glob("*/*.h5"))) == 1
    assert pd.read_csv(out / "status.csv")["status"].tolist() == ["done"], failed
    shutil.rmtree(out)
    return bool(failed)


@pytest.mark.parametrize(
    "stride", [pytest.param(9, id="every ninth"), pytest.param(1, id="every", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("failing", FAILING.values(), ids=FAILING.keys())
def test_the_nth_call_to_the_disk_fails(
    forker: Forker,
    one: Path,
    tmp_path: Path,
    failing: Failing,
    stride: int,
):
    if failing is FAILING["one write fails"]:
        stride = 1  # they are few, and leave half of what was to be written
    calls = itertools.count(1 + list(FAILING.values()).index(failing) % stride, stride)
    n = next(n for n in calls if not check_failing_call(forker, one, tmp_path / "out", failing, n))
    assert n > 60 or (stride == 1 and n > 10)  # the calls were seen at all
    until(lambda: forker.left_behind() == [], 60)  # a killed reader takes a moment to go


def test_a_journal_whose_removal_fails_costs_no_crash(forker: Forker, one: Path, tmp_path: Path):
    """The slide is published by then: the run may complain, and the next one finds the slide done."""
    out = tmp_path / "out"
    removing = Failing(errno.EPERM, lasts=True, spares=LOOKING | TAKING).of(1, out)
    options = {"slides": one, "out": out, "batch_size": 4, "threads": 1}
    ended = forker.run(options, prepare="nth_call:fail_calls", **removing)
    assert ended.code == 3, ended.said
    assert "Traceback" not in ended.said
    assert "Operation not permitted" in ended.said
    check_files(out, 1)
    assert forker.run(options).code == 0
    check_files(out, 1)
    assert pd.read_csv(out / "status.csv")["status"].tolist() == ["done"]
    assert json.loads((out / "summary.json").read_text())["new"] == 0
