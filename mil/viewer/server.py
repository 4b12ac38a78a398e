"""The viewer's server: an export's own files and the tiles of its slides, to this machine only."""

import shutil
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from feature_extraction.errors import InputError, SlideError
from mil.viewer.layout import LIVE, PICTURE_SCRIPT, SLIDES
from mil.viewer.live import LiveSlides
from mil.viewer.requests import TYPES, file_at, is_own_host, parts_of, tile_at
from mil.viewer.script import script_text

LOOPBACK = "127.0.0.1"
HEADERS = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""No page of another site may load, embed or frame what is served here."""


def make_server(folder: Path, slides: LiveSlides, port: int) -> ThreadingHTTPServer:
    """A server of the export on 127.0.0.1 that waits for ``serve_forever``.

    Args:
        folder: The export.
        slides: Those at hand.
        port: 0 takes a free one.

    Raises:
        InputError: The port is taken or not allowed.
    """
    handler = partial(_Handler, folder.resolve(), slides)
    try:
        return _Server((LOOPBACK, port), handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"port={port}: {error}; choose another port=… (0 takes a free one)") from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that goes away in the middle of an answer is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one request.

    Args:
        root: The export's folder, resolved.
        slides: Those at hand.
        rest: What the server gives every handler.
    """

    protocol_version = "HTTP/1.1"
    timeout = 60
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def __init__(self, root: Path, slides: LiveSlides, *rest: object) -> None:
        self._root, self._slides = root, slides
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer with the content."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer without the content."""
        self._answer(with_body=False)

    def __getattr__(self, name: str) -> object:
        """Any other method is refused rather than unknown."""
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def version_string(self) -> str:
        """Says nothing of versions."""
        return "promptmil"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Which slides are looked at is written nowhere."""

    def end_headers(self) -> None:
        """Every answer has `HEADERS`."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def _refuse(self) -> None:
        self.close_connection = True  # its body is not read
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD")

    def _answer(self, *, with_body: bool) -> None:
        if not is_own_host(self.headers.get("Host")):
            self.send_error(HTTPStatus.FORBIDDEN, "only for this machine: use http://127.0.0.1")
            return
        parts = parts_of(self.path)
        if parts is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            made = self._made(parts)
        except SlideError as error:
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"the slide cannot be read there ({error.code})")
            return
        if made is not None:
            self._send_headers(Path(parts[-1]).suffix, len(made))
            if with_body:
                self.wfile.write(made)
            return
        self._send_file(parts, with_body=with_body)

    def _made(self, parts: tuple[str, ...]) -> bytes | None:
        """What is made of a slide at hand, None for everything else."""
        tile = tile_at(parts, LIVE)
        if tile is not None:
            return self._slides.tile(*tile)
        if len(parts) == 3 and (parts[0], parts[2]) == (SLIDES, PICTURE_SCRIPT):
            pyramid = self._slides.pyramid(parts[1])
            return None if pyramid is None else script_text("picture", pyramid.described(LIVE)).encode()
        return None

    def _send_file(self, parts: tuple[str, ...], *, with_body: bool) -> None:
        path = file_at(self._root, parts)
        if path is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as stream:
            self._send_headers(path.suffix, path.stat().st_size)
            if with_body:
                shutil.copyfileobj(stream, self.wfile)

    def _send_headers(self, suffix: str, n_bytes: int) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", TYPES[suffix])
        self.send_header("Content-Length", str(n_bytes))
        self.end_headers()
