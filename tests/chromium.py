"""A real Chromium for tests, without a window, driven through a pipe; it may reach nothing but files and 127.0.0.1.

Needs Debian's chromium; root with apt-get installs it.
"""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import bounded
import pytest
from slurm_node import APT, INSTALL_SECONDS, no_daemons

PROGRAM, PACKAGES = "chromium", ("chromium", "fonts-dejavu-core")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-default-browser-check"),
    *("--disable-extensions", "--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-pipe"),
)
READ_FD, WRITE_FD = 3, 4
"""Where Chromium reads commands and writes answers; each ends with a zero byte."""
ANSWER_SECONDS = 60.0
KEYS = {"Escape": 27, "Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class NoChromiumError(Exception):
    """Chromium cannot run here; the message says why."""


def install() -> None:
    """Make sure that Chromium is there."""
    if shutil.which(PROGRAM) is not None:
        return
    if os.getuid() or shutil.which("apt-get") is None:
        raise NoChromiumError(f"{PROGRAM} not found, and only root with apt-get can install it")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        with no_daemons():
            done = bounded.run(["apt-get", *APT, *words], env=environment, seconds=INSTALL_SECONDS)
        if done.returncode:
            raise NoChromiumError(f"apt-get {words[0]} failed: {done.stderr.strip()[-300:]}")


class LeftPageError(AssertionError):
    """The page was left for another one before it answered."""


LEFT_PAGE = ("Inspected target navigated or closed", "Execution context was destroyed", "Cannot find context")
"""How Chromium says so."""


class Browser:
    """The other end of Chromium's pipe."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._numbers = itertools.count(1)
        self._rest = b""
        self.events: list[dict] = []

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict:
        """Send a command and wait for its answer; events that come meanwhile are kept."""
        number = next(self._numbers)
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + ANSWER_SECONDS
        while True:
            answer = self._next(end - time.monotonic(), method)
            if answer.get("id") == number:
                if "error" in answer:
                    kind = LeftPageError if str(answer["error"]["message"]).startswith(LEFT_PAGE) else AssertionError
                    raise kind(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _next(self, seconds: float, waiting_for: str) -> dict:
        end = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read_fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no answer to {waiting_for} within {ANSWER_SECONDS:g} s"
            read = os.read(self._read_fd, 1 << 20)
            assert read, f"Chromium is gone, waiting for {waiting_for}"
            self._rest += read
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)


class Page:
    """A tab, with everything that it asked for and complained about."""

    def __init__(self, browser: Browser, width: int = 1400, height: int = 900) -> None:
        self.browser = browser
        self.context = browser.call("Target.createBrowserContext")["browserContextId"]
        self._target = browser.call("Target.createTarget", url="about:blank", browserContextId=self.context)["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def call(self, method: str, **parameters: object) -> dict:
        return self.browser.call(method, self._session, **parameters)

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> object:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression is true, on this page or on the one that it is being left for."""

        def is_so() -> bool:
            with contextlib.suppress(LeftPageError):
                return bool(self.run(f"Boolean({condition})"))
            return False

        bounded.until(is_so, pause=0.03)

    def settled(self, script: str) -> object:
        """The value of an expression once it stays the same: after a movement."""
        seen: list[object] = []

        def is_still() -> bool:
            seen.append(self.run(script))
            return len(seen) > 3 and seen[-1] == seen[-2] == seen[-3]

        bounded.until(is_still, pause=0.06)
        return seen[-1]

    def mouse(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        self.mouse(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click_on(self, selector: str) -> None:
        """Click an element's middle."""
        find = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{find}.scrollIntoView({{block: 'center'}})")
        x, y = self.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({find}.getBoundingClientRect())")  # type: ignore[misc]
        self.click(x, y)

    def press(self, key: str) -> None:
        """A key, down and up."""
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        code = {"windowsVirtualKeyCode": KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **code)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)}).textContent"))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def requests(self) -> list[str]:
        """Every address that the page asked for."""
        return [event["params"]["request"]["url"] for event in self._of("Network.requestWillBeSent")]

    def complaints(self) -> list[str]:
        """Errors and warnings: of scripts, of loading, of the policy, of the console."""
        found = [json.dumps(event["params"]) for event in self._of("Runtime.exceptionThrown")]
        found += [
            json.dumps(e["params"]) for e in self._of("Log.entryAdded") if e["params"]["entry"]["level"] != "info"
        ]
        loud = ("error", "warning", "assert")
        return found + [
            json.dumps(e["params"]) for e in self._of("Runtime.consoleAPICalled") if e["params"]["type"] in loud
        ]

    def close(self) -> None:
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)

    def _of(self, method: str) -> list[dict]:
        self.run("0")  # whatever was said before is read now
        return [e for e in self.browser.events if e["method"] == method and e.get("sessionId") == self._session]


@contextlib.contextmanager
def chromium(folder: Path) -> Generator[Browser, None, None]:
    """Start Chromium with a profile of its own in ``folder``, and end it."""
    install()
    to_child, to_browser = os.pipe()
    from_browser, from_child = os.pipe()
    words = [PROGRAM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    with (folder / "output").open("wb") as stream:
        process = bounded.started(
            words,
            env={**os.environ, "TMPDIR": str(folder)},  # nothing of it stays when it is killed
            pass_fds=(READ_FD, WRITE_FD),
            preexec_fn=_at_its_numbers(to_child, from_child),
            stdin=bounded.subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        with process:
            for descriptor in (to_child, from_child):
                os.close(descriptor)
            try:
                yield Browser(from_browser, to_browser)
            finally:
                os.close(to_browser)
                os.close(from_browser)


def _at_its_numbers(read_fd: int, write_fd: int) -> Callable[[], None]:
    """In the child: both ends under the numbers that Chromium expects, whatever they are now."""

    def place() -> None:
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (read_fd, write_fd)]
        for descriptor, number in zip(high, (READ_FD, WRITE_FD), strict=True):
            os.dup2(descriptor, number, inheritable=True)

    return place


@pytest.fixture(scope="session", name="browser")
def browser_fixture() -> Generator[Browser, None, None]:
    """A Chromium for the session; tests skip with the reason where there can be none."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as name:
        try:
            install()
        except (NoChromiumError, OSError) as error:
            pytest.skip(f"no Chromium here: {error}")
        with chromium(Path(name)) as browser:
            yield browser


@pytest.fixture(name="page")
def page_fixture(browser: Browser) -> Generator[Page, None, None]:
    """A fresh tab."""
    made = Page(browser)
    yield made
    made.close()
