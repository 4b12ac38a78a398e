"""Packages that only some encoder families need: imported when one is used, or one line that says how to get them."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch

from feature_extraction.errors import InputError

WHEELS = "https://download.pytorch.org/whl"


def require(name: str, *, extra: str) -> ModuleType:
    """Import a package that an encoder family needs.

    Args:
        name: Of the package, as it is imported.
        extra: That brings it, as in ``pip install 'promptmil[<extra>]'``.

    Raises:
        InputError: It, or one that it needs, is not installed; or torchvision was built for another torch, which breaks
            every package that imports it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        what = name if error.name in (None, name) else f"{name} ({error.name} is missing)"
        raise InputError(f"this encoder needs {what}: pip install 'promptmil[{extra}]'") from error
    except (RuntimeError, OSError) as error:
        raise InputError(_cannot_be_imported(name, str(error).partition("\n")[0])) from error


def _cannot_be_imported(name: str, reason: str) -> str:
    """The operators of torchvision are compiled for one build of torch; with another one its import raises."""
    built_for = torch.__version__.partition("+")[2]
    index = f" --index-url {WHEELS}/{built_for}" if built_for else ""
    return (
        f"{name} cannot be imported with torch {torch.__version__} and torchvision {_version('torchvision')} ({reason})"
        f"; install the torchvision of this torch: pip install --force-reinstall --no-deps torchvision{index}"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(none)"
