"""Claims: one owner at a time, free the moment the owner dies; where there are no locks, by leases that beat."""

import contextlib
import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import bounded
import pytest

from feature_extraction import claims
from feature_extraction.claims import claim, is_claimed, is_still_ours
from feature_extraction.lease import LeaseWatch, newest_generation

HOLD = """
import errno, fcntl, os, sys, time
from pathlib import Path
from feature_extraction.claims import claim
if sys.argv[2] == "no locks":
    def refuse(*_): raise OSError(errno.ENOLCK, "No locks available")
    fcntl.flock = refuse
if sys.argv[3] == "clock":
    import itertools
    shifts = itertools.cycle([172800.0, -172800.0])
    real, time.time = time.time, lambda: real() + next(shifts)
with claim(Path(sys.argv[1]), period_s=float(sys.argv[4])) as is_ours:
    print(is_ours, flush=True)
    sys.stdin.read()
"""
BEAT_S = 0.05
PATIENT_S = 2.0
"""A waiter's period, far above the owner's: a busy machine must not make a live owner look dead."""


@contextlib.contextmanager
def another_owner(
    path: Path, *, locks: str = "locks", clock: str = "", period_s: float = BEAT_S
) -> Generator["subprocess.Popen[str]", None, None]:
    """A second process that holds the claim until its input ends."""
    path.parent.mkdir(exist_ok=True)
    words = [sys.executable, "-c", HOLD, str(path), locks, clock, str(period_s)]
    with (
        path.with_suffix(".said").open("w") as said,
        bounded.started(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said) as p,
    ):
        assert p.stdout is not None
        assert p.stdout.readline().strip() == "True"
        yield p


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def wait_until(is_true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)


def try_claim(path: Path, period_s: float) -> bool:
    with claim(path, period_s=period_s) as is_ours:
        return is_ours


def test_a_claim_excludes_others_and_dies_with_its_owner(tmp_path: Path):
    path = tmp_path / "locks" / "S.lock"
    with another_owner(path) as owner:
        with claim(path) as is_ours:
            assert not is_ours
        assert is_claimed(path)
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait(120)
    assert not is_claimed(path)
    with claim(path) as is_ours:
        assert is_ours
        assert is_still_ours(path)
    with claim(path) as is_ours:
        assert is_ours


def test_a_stale_lock_file_means_nothing(tmp_path: Path):
    path = tmp_path / "S.lock"
    path.write_text("pid 1 on another host")
    with claim(path) as is_ours:
        assert is_ours


def test_a_claim_given_back_is_free_while_a_forked_child_lives(tmp_path: Path):
    path = tmp_path / "S.lock"
    code = (
        "import os, sys, time; from pathlib import Path; from feature_extraction.claims import claim\n"
        "with claim(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        time.sleep(60); os._exit(0)\n"
        "print(child, flush=True); sys.stdin.read(); os.kill(child, 9)"
    )
    words = [sys.executable, "-c", code, str(path)]
    with bounded.started(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) > 0
        with claim(path) as is_ours:
            assert is_ours
        parent.communicate("", timeout=120)


def test_looking_makes_no_file_and_disturbs_nobody(tmp_path: Path):
    path = tmp_path / "S.lock"
    assert not is_claimed(path)
    assert list(tmp_path.iterdir()) == []
    code = (
        "import sys, time; from pathlib import Path; from feature_extraction.claims import is_claimed\n"
        "path = Path(sys.argv[1]); print('looking', flush=True)\n"
        "while True: is_claimed(path); time.sleep(.001)"
    )
    words = [sys.executable, "-c", code, str(path)]
    with bounded.started(words, stdout=subprocess.PIPE) as watcher:
        assert watcher.stdout is not None
        watcher.stdout.readline()
        refused = sum(not try_claim(path, PATIENT_S) for _ in range(3000))
    assert refused == 0


def test_an_error_that_is_not_about_locks_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output"), claim(tmp_path / "S.lock"):
        pass


@pytest.mark.usefixtures("no_locks")
def test_without_locks_it_is_said_once_and_one_owner_at_a_time_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    claims._say_once.cache_clear()
    path = tmp_path / "S.lock"
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with claim(path) as is_ours, claim(path) as is_ours_twice:
                assert is_ours
                assert not is_ours_twice
                assert is_claimed(path)
            assert not is_claimed(path)
    assert [r.message.startswith("this file system has no locks") for r in caplog.records] == [True]
    assert len(list((tmp_path / "S.lock.lease").iterdir())) == 1  # past generations are cleared away


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("clock", ["", "clock"])
def test_a_live_lease_is_never_taken_whatever_the_clocks_say(
    tmp_path: Path, clock: str, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "S.lock"
    with another_owner(path, locks="no locks", clock=clock) as owner:
        if clock:
            monkeypatch.setattr(time, "time", lambda: 4e9)
        end = time.monotonic() + 3.5 * PATIENT_S
        while time.monotonic() < end:
            assert not try_claim(path, PATIENT_S)
            if clock:
                for file in (path, *(tmp_path / "S.lock.lease").iterdir()):
                    os.utime(file, (0, 172800.0))
            time.sleep(0.1)
        assert owner.poll() is None
        owner.communicate("", timeout=120)
        assert owner.returncode == 0
    assert try_claim(path, PATIENT_S)  # it was given back, so nobody waits


@pytest.mark.usefixtures("no_locks")
def test_a_dead_lease_is_taken_after_three_periods_and_not_before(tmp_path: Path):
    path, period_s = tmp_path / "S.lock", 0.2
    with another_owner(path, locks="no locks") as owner:
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait(120)
    assert is_claimed(path)
    first_seen = time.monotonic()
    assert not try_claim(path, period_s)
    wait_until(lambda: try_claim(path, period_s))
    assert time.monotonic() - first_seen > 3 * period_s


@pytest.mark.usefixtures("no_locks")
def test_an_owner_that_does_not_beat_is_shown_as_dead_and_keeps_its_lease(tmp_path: Path):
    path = tmp_path / "S.lock"
    with claim(path) as is_ours:
        assert is_ours
        assert is_claimed(path, dead_after_s=60.0)
        (newest,) = (tmp_path / "S.lock.lease").iterdir()
        long_ago = time.time() - 61
        os.utime(newest, (long_ago, long_ago))
        assert not is_claimed(path, dead_after_s=60.0)
        assert is_claimed(path)
    assert not is_claimed(path, dead_after_s=60.0)


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("content", [b"", b"1", b"pid 1 on another host", b"\xff\x00" * 40])
def test_garbage_in_a_lease_is_an_owner_that_does_not_beat(tmp_path: Path, content: bytes):
    path = tmp_path / "S.lock"
    path.write_bytes(content)
    (tmp_path / "S.lock.lease").mkdir()
    (tmp_path / "S.lock.lease" / "7").write_bytes(content)
    (tmp_path / "S.lock.lease" / "notes.txt").write_bytes(content)
    assert not try_claim(path, 0.02)
    wait_until(lambda: try_claim(path, 0.02))
    assert newest_generation(tmp_path / "S.lock.lease") == 8


def test_of_many_that_take_a_dead_lease_exactly_one_gets_it(tmp_path: Path):
    for trial in range(20):
        folder = tmp_path / str(trial)
        folder.mkdir()
        (folder / "1").write_bytes(b"an owner that died")
        watches = [LeaseWatch() for _ in range(8)]
        assert [watch.take(folder, period_s=0.01) for watch in watches] == [None] * 8
        time.sleep(0.04)
        start, won = threading.Barrier(8), []

        def take(watch: LeaseWatch, start: threading.Barrier = start, folder: Path = folder, won: list = won) -> None:
            start.wait(120)
            won.append(watch.take(folder, period_s=60.0))

        for watch in watches:  # 60 s for those who won: their beat must not matter here
            watch._sights[folder] = type(watch._sights[folder])(
                generation=1, content=b"an owner that died", since_s=-1e6
            )
        threads = [threading.Thread(target=take, args=(watch,)) for watch in watches]
        for thread in threads:
            thread.start()
        bounded.join(*threads)
        leases = [lease for lease in won if lease is not None]
        assert len(leases) == 1
        assert leases[0].is_held()
        leases[0].give_back()


def test_a_slow_taker_cannot_use_a_number_that_was_cleared_away(tmp_path: Path):
    from feature_extraction.lease import _follow

    first = LeaseWatch().take(tmp_path)
    assert first is not None
    first.give_back()
    second = LeaseWatch().take(tmp_path)
    assert second is not None
    second.give_back()
    third = LeaseWatch().take(tmp_path)
    assert third is not None
    assert _follow(tmp_path, 1, 60.0) is None  # it had looked when the first one held
    assert third.is_held()
    third.give_back()


@pytest.mark.usefixtures("no_locks")
def test_an_owner_that_stood_still_finds_out_and_says_so(tmp_path: Path):
    path = tmp_path / "S.lock"
    with another_owner(path, locks="no locks", period_s=0.2) as owner:
        os.kill(owner.pid, signal.SIGSTOP)
        assert not try_claim(path, 0.2)
        wait_until(lambda: try_claim(path, 0.2))
        os.kill(owner.pid, signal.SIGCONT)
        said = path.with_suffix(".said")
        wait_until(lambda: "another took its work over" in said.read_text())
        assert said.read_text().startswith("this file system has no locks")
        owner.communicate("", timeout=120)


@pytest.mark.usefixtures("no_locks")
def test_a_claim_that_was_lost_is_no_longer_ours(tmp_path: Path):
    path = tmp_path / "S.lock"
    with claim(path, period_s=60.0) as is_ours:
        assert is_ours
        assert is_still_ours(path)
        (tmp_path / "S.lock.lease" / "2").write_bytes(b"somebody who waited")
        assert not is_still_ours(path)
