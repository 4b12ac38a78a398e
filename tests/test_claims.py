"""Claims: one owner at a time, free the moment the owner dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from feature_extraction.claims import claim

HOLD = """
import sys, time
from pathlib import Path
from feature_extraction.claims import claim
with claim(Path(sys.argv[1])) as is_ours:
    print(is_ours, flush=True)
    time.sleep(60)
"""


def test_a_claim_excludes_others_and_dies_with_its_owner(tmp_path: Path):
    path = tmp_path / "locks" / "S.lock"
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline().strip() == "True"
    with claim(path) as is_ours:
        assert not is_ours
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    with claim(path) as is_ours:
        assert is_ours
    with claim(path) as is_ours:
        assert is_ours


def test_a_stale_lock_file_means_nothing(tmp_path: Path):
    path = tmp_path / "S.lock"
    path.write_text("pid 1 on another host")
    with claim(path) as is_ours:
        assert is_ours
