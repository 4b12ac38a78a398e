"""The viewer's server by real HTTP: an export's own files to this machine, and nothing else however it is asked for."""

import http.client
import io
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from urllib.parse import quote

import bounded
import numpy as np
import pytest
from PIL import Image
from test_viewer import said
from viewer_files import EVIL, Maps, make_maps

from feature_extraction.errors import InputError
from feature_extraction.slide import Slide
from mil.cli import main
from mil.viewer.live import LiveSlides, read_manifest
from mil.viewer.server import make_server

SECRET = "of another folder"
OUTSIDE = [
    *("/../secret.txt", "/../../secret.txt", "/slides/../../secret.txt", "/assets/../../secret.txt", "/./index.html"),
    *("/%2e%2e/secret.txt", "/%2E%2E/secret.txt", "/.%2e/secret.txt", "/%2e./secret.txt", "/..%2fsecret.txt"),
    *("/%2e%2e%2fsecret.txt", "/..%5csecret.txt", "/..\\secret.txt", "/%252e%252e/secret.txt"),
    *("/%c0%ae%c0%ae/secret.txt", "/%e0%80%ae%e0%80%ae/secret.txt", "/..%c0%afsecret.txt", "/..%00/secret.txt"),
    *("/secret.txt%00.html", "/%00", "//secret.txt", "///etc/passwd", "/etc/passwd", "//etc/passwd"),
    *("/slides//S1/index.html", "/assets/", "secret.txt", "../secret.txt", "http://127.0.0.1/../secret.txt"),
    *("file:///etc/passwd", "*", "/C:/secret.txt", "/link.txt", "/linked/secret.txt", "/slides/linked/index.html"),
    *("/viewer.json", "/.hidden.txt", "/.hidden/x.js", "/slides", "/slides/", "/slides/S1", "/favicon.ico"),
    *("/slides/S1/live/1/0_0.jpg", "/slides/S1/live/0011/0_0.jpg", "/slides/S2/live/11/-1_0.jpg"),
    *("/slides/S2/live/11/9_0.jpg", "/slides/S2/live/99/0_0.jpg", "/slides/S2/live/../data.js"),
    *("/slides/none/picture.js", "/" + "a" * 5000, "/" + "%41" * 20, "/%ff%fe", "/a%0d%0aX-Evil:%201"),
    *("/assets/style.css/", "/slides/S2/live/%D9%A1%D9%A1/0_0.jpg", "/index.html/", "/index.html%20"),
    *("/INDEX.HTML/..", "/;/index.html", "/slides/S2/live/11/0_0.jpg/", "/slides/S2/live/11/0_0.html"),
]  # fmt: skip


class Server:
    """A server of an export in a thread, and a client that sends what a browser would not."""

    def __init__(self, maps: Maps, *, slides: dict[str, Path]) -> None:
        self.slides = LiveSlides(read_manifest(maps.viewer), slides)
        self.server = make_server(maps.viewer, self.slides, 0)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def ask(self, target: str, method: str = "GET", host: str | None = None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection._validate_path = lambda _: None  # type: ignore[method-assign] # what must be refused is sent
        connection.putrequest(method, target, skip_host=True)
        connection.putheader("Host", f"127.0.0.1:{self.port}" if host is None else host)
        connection.endheaders()
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def raw(self, request: bytes) -> bytes:
        """The first line of the answer to exactly these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as client:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            return client.makefile("rb").read()

    def close(self) -> None:
        self.server.shutdown()
        bounded.join(self.thread)
        self.server.server_close()
        self.slides.close()


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Maps:
    """An export beside something that is nobody's business, with links to it and hidden files."""
    made = make_maps(tmp_path_factory.mktemp("served"))
    secret = made.out / "secret.txt"
    secret.write_text(SECRET)
    (made.viewer / "link.txt").symlink_to(secret)
    (made.viewer / "linked").symlink_to(made.out)
    (made.viewer / "slides" / "linked").symlink_to(made.viewer / "slides" / "S1")
    (made.viewer / ".hidden.txt").write_text(SECRET)
    (made.viewer / ".hidden").mkdir()
    (made.viewer / ".hidden" / "x.js").write_text(SECRET)
    return made


@pytest.fixture(scope="module")
def server(maps: Maps) -> Generator[Server, None, None]:
    """With the slides S2 and the evilly named at hand; S1 is not."""
    made = Server(maps, slides={"S2": maps.slides / "1.svs", EVIL: maps.slides / "2.svs"})
    yield made
    made.close()


def test_the_files_of_an_export_are_served_as_what_they_are(server: Server, maps: Maps):
    for path in (path for path in maps.viewer.rglob("*") if path.is_file() and not path.is_symlink()):
        parts = path.relative_to(maps.viewer).parts
        if parts[0] in ("linked", ".hidden", ".hidden.txt", "viewer.json") or parts[:2] == ("slides", "linked"):
            continue
        status, headers, body = server.ask("/" + "/".join(quote(part, safe="") for part in parts))
        assert status == 200, path
        assert body == path.read_bytes() or path.name == "picture.js"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Frame-Options"] == "DENY"
    assert server.ask("/")[2] == (maps.viewer / "index.html").read_bytes()
    assert server.ask("/?a=/../b#c")[0] == 200
    assert server.ask("/slides/S1/")[1]["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("target", OUTSIDE)
def test_nothing_outside_the_export_is_served(server: Server, target: str):
    status, _, body = server.ask(target)
    assert status == 404
    assert SECRET.encode() not in body
    assert b"root:" not in body
    answer = server.raw(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode("utf-8", "surrogateescape"))
    assert answer.split(b"\r\n")[0].split(b" ")[1] == b"404"


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:8642",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "127.0.0.2",
            "0.0.0.0",
        ),
        *(
            "[::1]",
            "127.0.0.1@evil.example",
            "127.0.0.1:80:80",
            "127.0.0.1:",
            "localhost:x",
            "127.1",
            "",
            " ",
            "LOCALHOST.x",
        ),
    ],
)
def test_a_name_that_only_points_here_is_refused(server: Server, host: str):
    assert server.ask("/index.html", host=host)[0] == 403
    assert server.ask("/slides/S2/live/11/0_0.jpg", host=host)[0] == 403


def test_a_request_that_names_no_host_is_refused(server: Server):
    assert server.raw(b"GET /index.html HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:1", "127.0.0.1:65535"])
def test_this_machine_may_come_through_any_port(server: Server, host: str):
    assert server.ask("/index.html", host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT", "PROPFIND"])
def test_only_reading_is_allowed(server: Server, method: str):
    status, headers, _ = server.ask("/index.html", method=method)
    assert status == 405
    assert "Access-Control-Allow-Origin" not in headers


def test_a_head_has_the_headers_and_nothing_more(server: Server):
    status, headers, body = server.ask("/assets/style.css", method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) == len(server.ask("/assets/style.css")[2])
    assert server.ask("/slides/S2/live/11/0_0.jpg", method="HEAD")[2] == b""


def test_the_server_says_nothing_of_versions_and_listens_on_this_machine_only(server: Server):
    headers = server.ask("/index.html")[1]
    assert headers["Server"] == "promptmil"
    assert server.server.server_address[0] == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", server.port), timeout=5):
        pass


def test_a_slide_at_hand_is_served_whole_and_any_other_as_it_was_written(maps: Maps, tmp_path: Path):
    small = make_maps(tmp_path, ("S1", EVIL))
    small.export(most_tiles=1)
    served = Server(small, slides={EVIL: small.slides / "1.svs"})
    try:
        name = quote(EVIL, safe="")
        script = tmp_path / "picture.js"
        script.write_bytes(served.ask(f"/slides/{name}/picture.js")[2])
        assert said(script, "picture")["factor"] == 1
        assert said(script, "picture")["folder"] == "live"
        assert said(small.viewer / "slides" / EVIL / "picture.js", "picture")["factor"] == 4
        status, headers, body = served.ask(f"/slides/{name}/live/11/1_0.jpg")
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        with Slide("S", small.slides / "1.svs") as slide, Image.open(io.BytesIO(body)) as picture:
            expected = slide.read_region((509, 0), 0, (512, 511))
            assert np.abs(np.asarray(picture).astype(int) - expected).mean() < 12  # a JPEG of noise
        assert served.ask("/slides/S1/picture.js")[2] == (small.viewer / "slides" / "S1" / "picture.js").read_bytes()
    finally:
        served.close()


def test_another_file_than_the_maps_is_not_shown_under_it(maps: Maps):
    slides = LiveSlides(read_manifest(maps.viewer), {"S1": maps.slides / "1.svs", "S2": maps.slides / "none.svs"})
    assert slides.strangers == ["S1", "S2"]
    assert slides.pyramid("S1") is None
    assert len(slides) == 0


def test_a_slide_that_goes_bad_costs_its_tiles_and_says_no_name(tmp_path: Path):
    maps = make_maps(tmp_path, ("S1",))
    served = Server(maps, slides={"S1": maps.slides / "0.svs"})
    try:
        (maps.slides / "0.svs").write_bytes(b"no slide")
        status, _, body = served.ask("/slides/S1/live/11/0_0.jpg")
        assert status == 500
        assert str(tmp_path).encode() not in body
        assert b"0.svs" not in body
        assert served.ask("/slides/S1/data.js")[0] == 200
    finally:
        served.close()


def test_a_taken_port_and_a_folder_that_is_no_viewer_are_refused(
    server: Server, maps: Maps, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(InputError, match=f"port={server.port}: .* choose another"):
        make_server(maps.viewer, server.slides, server.port)
    with pytest.raises(InputError, match="port=70000"):
        make_server(maps.viewer, server.slides, 70_000)
    for folder, message in ((tmp_path, "so it is no viewer"), (tmp_path / "none", "no such folder")):
        assert main(["view", f"folder={folder}"]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "viewer.json").write_text('{"format": 0}')
    assert main(["view", f"folder={tmp_path}"]) == 2
    assert "made by another version" in capsys.readouterr().err


def test_the_command_serves_until_it_is_interrupted_and_ends_with_0(maps: Maps, tmp_path: Path):
    table = tmp_path / "slides.csv"
    table.write_text(f"path,slide_id\n{maps.slides / '0.svs'},S1\n{maps.slides / '0.svs'},S2\n")
    code = "import sys; from mil.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "view", str(maps.viewer), f"slides={table}", "port=0"]
    log = tmp_path / "log"
    with (
        log.open("wb") as stream,
        bounded.started(
            words, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        ) as process,
    ):
        bounded.until(
            lambda: process.poll() is not None or re.search(r"http://127\.0\.0\.1:(\d+)/", log.read_text()), 60
        )
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", log.read_text())
        assert found, log.read_text()
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
        connection.request("GET", "/slides/S1/live/11/0_0.jpg")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(2)
        assert process.wait(30) == 0
    assert "3 slides, 1 at full resolution" in log.read_text()
    assert "slide=S2: not the file that its map was made from" in log.read_text()
    assert str(maps.slides) not in log.read_text()
