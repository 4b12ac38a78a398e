"""torchvision, timm and open_clip for the tests of the families that need them, and for no other test.

The registry's torchvision is built for CUDA. Where torch is a CPU build, importing it raises, and whatever imports it
(lightning, torchmetrics) breaks with it; so these packages stay out of the environment. They are installed once into
a folder of their own, and the cases that need them run in a process of their own that has that folder.
"""

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import bounded
import pytest
import torch

PACKAGES = ("torchvision==0.28.0", "timm==1.0.31", "open-clip-torch==3.3.0", "ftfy==6.3.1", "wcwidth==0.9.4")
LIMIT_S = 240.0
"""To install, and then to run a file of cases: together less than a test may take, so that its fault is told."""
TESTS = Path(__file__).parent


def installed() -> Path:
    """The folder with the packages; skips the test where they cannot be had."""
    key = hashlib.sha256(" ".join([sys.version, *PACKAGES]).encode()).hexdigest()[:12]
    place = Path(sys.prefix if os.access(sys.prefix, os.W_OK) else tempfile.gettempdir()) / "vision_packages"
    place.mkdir(exist_ok=True)
    folder = place / key
    with _alone(place / f"{key}.lock"):  # two test processes may come at once
        if not folder.is_dir():
            _install(folder)
    return folder


def run_cases(file: str) -> None:
    """Run a file of cases in a process that has the packages; its failures are this test's failure."""
    paths = [str(installed()), str(TESTS)]
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-p", "vision_packages", TESTS / file]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = bounded.run(command, seconds=LIMIT_S, env=environment, cwd=TESTS.parent)
    assert done.returncode == 0, f"{file}:\n{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    assert " skipped" not in done.stdout, f"{file}: {done.stdout[-2000:]}"


def pytest_configure() -> None:
    """Called where this file is a plugin (``-p vision_packages``): torchvision becomes importable."""
    import_torchvision()


def import_torchvision() -> None:
    """Import torchvision although its operators are not those of this torch; they raise when used, and are not."""
    register = torch.library.register_fake

    def tolerant(name: str, *given: object, **options: object) -> Callable[[Callable], Callable]:
        decorate = register(name, *given, **options)

        def decorated(function: Callable) -> Callable:
            try:
                return decorate(function)
            except RuntimeError as error:
                if not name.startswith("torchvision::") or "does not exist" not in str(error):
                    raise
                return function

        return decorated

    torch.library.register_fake = tolerant
    try:
        import torchvision  # noqa: F401
    finally:
        torch.library.register_fake = register


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _install(folder: Path) -> None:
    half = folder.with_suffix(".half")
    shutil.rmtree(half, ignore_errors=True)
    # Without dependencies: torch, above all, is the one of the environment and no other.
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--retries", "1", "--timeout", "20"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", half, *PACKAGES]
    try:
        done = bounded.run(command, seconds=LIMIT_S)
    except pytest.fail.Exception:  # a registry that hardly answers is no fault of what is tested
        pytest.skip(f"{', '.join(PACKAGES)} cannot be installed within {LIMIT_S:g} s")
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines() or ["pip says nothing"]
        pytest.skip(f"{', '.join(PACKAGES)} cannot be installed: {reason[-1]}")
    half.rename(folder)
