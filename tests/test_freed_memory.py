"""A training process reuses the pages that it has."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from mil.freed_memory import keep_freed_memory
if {asked}:
    assert keep_freed_memory()
for _ in range(20):
    torch.empty(10_000_000).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.empty(10_000_000).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, asked: bool) -> int:
    """Pages that the system made for twenty blocks of 40 MB, one after the other."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(asked=asked)], capture_output=True, text=True, check=True, timeout=120
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's switch")
def test_large_blocks_are_used_again_without_new_pages():
    assert faults(asked=True) < 500 < faults(asked=False)
