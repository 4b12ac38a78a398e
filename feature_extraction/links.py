"""No output is written through a link that leads out of the folder of outputs."""

import os
from collections.abc import Iterator
from pathlib import Path

from feature_extraction.errors import InputError

WORK = ".work"


def require_no_way_out(out: Path, folder: Path) -> None:
    """Refuse a feature folder from which links lead outside ``out``: writing there would change somebody's files.

    A link in the place of a published file does no harm, for publishing replaces it; files under ``.work`` are written
    in place, and folders are entered. ``out`` itself may be a link.

    Args:
        out: The folder of outputs.
        folder: A feature folder in it, which need not be there yet.

    Raises:
        InputError: A link leads outside; the message names it.
    """
    root = out.resolve()
    for link in [folder] if folder.is_symlink() else _links(folder):
        is_followed = link == folder or link.is_dir() or WORK in link.relative_to(folder).parts
        if is_followed and not link.resolve().is_relative_to(root):
            raise InputError(
                f"out={out}: {link.relative_to(out)} is a link to outside, and outputs follow none; remove it, or "
                "give the folder it leads to as out=…"
            )


def _links(folder: Path) -> Iterator[Path]:
    """Every link below a folder, none of them followed."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:  # tells links from files without asking for each
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir():
                yield from _links(Path(entry.path))
