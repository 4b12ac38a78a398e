"""What a request may ask of the viewer's server: which host, which file of the export, which tile."""

import re
from pathlib import Path
from urllib.parse import unquote

from mil.viewer.layout import SLIDES

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".jpg": "image/jpeg",
    ".txt": "text/plain; charset=utf-8",
}
"""Files of an export that a page loads, by suffix; no other is served."""
HOSTS = ("127.0.0.1", "localhost")
LONGEST = 4096
"""Of a request's path, in characters."""


def is_own_host(host: str | None) -> bool:
    """Whether the Host header names this machine's loopback address.

    A page of another site can make its own name mean 127.0.0.1 and read what is served there, but the browser then
    says that name. Any port: one may be forwarded from elsewhere.
    """
    return host is not None and re.fullmatch(rf"({'|'.join(map(re.escape, HOSTS))})(:\d{{1,5}})?", host) is not None


def parts_of(target: str) -> tuple[str, ...] | None:
    """The names in a request's path, decoded once; None for one that no file of an export has.

    A folder stands for its page. Nothing that begins with a dot is served, so that neither ``..`` nor a hidden file is.
    """
    path = re.split("[?#]", target, maxsplit=1)[0]
    if not path.startswith("/") or len(path) > LONGEST:
        return None
    try:
        parts = [unquote(part, errors="strict") for part in path[1:].split("/")]
    except UnicodeDecodeError:
        return None
    if parts[-1] == "":
        parts[-1] = "index.html"
    return tuple(parts) if all(_is_name(part) for part in parts) else None


def file_at(root: Path, parts: tuple[str, ...]) -> Path | None:
    """The file of the export, None where there is none; what lies behind a link is not part of it.

    Args:
        root: The export's folder, resolved.
        parts: Of `parts_of`.
    """
    path = root.joinpath(*parts)
    try:
        is_own = path.suffix in TYPES and path.resolve(strict=True) == path and path.is_file()
    except (OSError, ValueError, RuntimeError):
        return None
    return path if is_own else None


def tile_at(parts: tuple[str, ...], folder: str) -> tuple[str, int, int, int] | None:
    """Slide id, level, column and row that ``slides/<id>/<folder>/<level>/<column>_<row>.jpg`` asks for."""
    if len(parts) != 5 or parts[0] != SLIDES or parts[2] != folder:
        return None
    number = re.fullmatch(r"(\d{1,2})/(\d{1,6})_(\d{1,6})\.jpg", "/".join(parts[3:]), re.ASCII)
    return None if number is None else (parts[1], int(number[1]), int(number[2]), int(number[3]))


def _is_name(part: str) -> bool:
    return part != "" and not part.startswith(".") and not re.search(r"[/\\\x00-\x1f\x7f]", part)
