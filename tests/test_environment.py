"""What the project's own install brings along, checked where it is made fresh."""

import importlib
import importlib.metadata
import os

import pytest


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="a developer's machine may have a GPU build of torch")
def test_no_cuda_package_came_along():
    names = {(distribution.metadata["Name"] or "").lower() for distribution in importlib.metadata.distributions()}
    assert not [name for name in names if name.startswith("nvidia")]
    assert "torchvision" not in names


@pytest.mark.parametrize("module", ["transformers", "lightning", "openslide", "h5py", "hydra", "shapely", "pyarrow"])
def test_each_dependency_can_be_imported_beside_the_others(module: str):
    assert importlib.import_module(module).__name__ == module


def test_nobody_else_owns_our_packages():
    owners = importlib.metadata.packages_distributions()
    assert set(owners.get("mil", [])) <= {"promptmil"}
