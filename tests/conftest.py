"""What every test shares: shape checks switched on, the shared data folder, and small real inputs."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Shapes in signatures are checked in tests only: users pay nothing for them.
install_import_hook(["mil", "feature_extraction"], "beartype.beartype")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores must not fight over them

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real slides, a real dual encoder and a real-tissue cohort beside the checkout; users do not have them."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/data with real slides and weights is not beside this checkout")
    return folder
