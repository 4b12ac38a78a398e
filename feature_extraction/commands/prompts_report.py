"""What the commands about prompt sets say of a set's defects, and the exit code that follows."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from feature_extraction.errors import InputError
from feature_extraction.prompt_lint import errors_of
from feature_extraction.prompts import Defect


def say_defects(console: Console, path: Path, defects: Sequence[Defect]) -> int:
    """Print every defect, one a line, and the count; returns the number of errors."""
    for defect in defects:
        console.print(f"{path.name}: {defect.severity}: {defect}", soft_wrap=True, markup=False, highlight=False)
    n_errors = len(errors_of(defects))
    count = f"{n_errors} errors, {len(defects) - n_errors} warnings"
    console.print(
        f"{path.name}: {count if defects else 'nothing found'}", soft_wrap=True, markup=False, highlight=False
    )
    return n_errors


def require_new(out: Path) -> Path:
    """A YAML file that is not there yet: people's corrections are never overwritten.

    Raises:
        InputError: It is there, or has another ending.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"out={out}: expected the path of a .yaml file")
    if out.is_file() or out.is_dir():
        raise InputError(f"out={out}: is there already, perhaps with corrections; give another name or remove it")
    return out
