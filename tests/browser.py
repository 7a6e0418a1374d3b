"""The workbench under `panel serve`, and a Chromium that notes whatever goes wrong on a page."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parent.parent
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What Tornado logs when a page is closed while the server is sending to it, or asks if it is there.
LEFT_WHILE_SENDING = re.compile(
    r"[^\n]*Task exception was never retrieved\nfuture: [^\n]*WebSocketClosedError[^\n]*\n"
    r"Traceback.*?\ntornado\.websocket\.WebSocketClosedError\n"
    r"|(?:[^\n]*\n)Traceback[^\n]*\n(?:  [^\n]*\n)*    assert self\.ws_connection is not None\n"
    r"(?: +\^+\n)?AssertionError\n"
    r"|[^\n]*(?:error handling message\n[^\n]*\n error: AssertionError\(\)\n"
    r"|Uncaught exception GET [^\n]*/ws[^\n]*\nHTTPServerRequest[^\n]*\n)"
    r"Traceback[^\n]*\n(?:  [^\n]*\n)*    assert self\._session is not None\n"
    r"(?: +\^+\n)?AssertionError\n",
    re.S,
)
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def process(command: list[str], log: Path, cwd: Path, **env: str) -> Iterator[subprocess.Popen]:
    """A program with its output in `log`; it is ended with the block."""
    with log.open("wb") as out:
        running = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, cwd=cwd, env={**os.environ, **env}
        )
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(60)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def wait_for(url: str, running: subprocess.Popen, log: Path, seconds: float = 240) -> None:
    """Return when the address answers; AssertionError with the log if it does not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and running.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=120):
            return
        time.sleep(0.2)
    raise AssertionError(f"{url} does not answer:\n{log.read_text()[-3000:]}")


@dataclass
class Server:
    """A running `panel serve` of launchers: `url("ask")` is a page, `faults()` what its log has."""

    port: int
    log: Path

    def url(self, slug: str = "index", query: str = "") -> str:
        return f"http://127.0.0.1:{self.port}/{slug}{query}"

    def faults(self) -> list[str]:
        """Lines of the log that no healthy server writes, the first with what stands around it."""
        bad = re.compile(r"Error running application|Traceback|\bERROR\b|could not|Error\b")
        text = LEFT_WHILE_SENDING.sub("", self.log.read_text())
        lines = [line for line in text.splitlines() if bad.search(line)]
        if lines:
            begin = text.index(lines[0])
            lines[0] = text[max(0, begin - 500) : begin + 4000]
        return lines


@contextlib.contextmanager
def serve(
    folder: Path,
    slugs: Sequence[str] | None = None,
    scripts: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    **env: str,
) -> Iterator[Server]:
    """Serve launchers of nbs/apps, by default all, and scripts, by their names and texts.

    The server runs in `folder`, and its log is `folder`/server.log.
    """
    apps = ROOT / "nbs" / "apps"
    files = sorted(apps.glob("*.ipynb")) if slugs is None else [apps / f"{s}.ipynb" for s in slugs]
    for name, text in (scripts or {}).items():
        files.append(folder / f"{name}.py")
        files[-1].write_text(text)
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "panel", "serve", *map(str, files), "--port", str(port)]
    command += ["--address", "127.0.0.1", *options]
    if any(file.stem == "index" for file in files):
        command += ["--index", "index"]
    with process(command, log, folder, **env) as running:
        wait_for(f"http://127.0.0.1:{port}/{files[0].stem}", running, log)
        yield Server(port, log)


@dataclass
class Watch:
    """What a page did that it should not: console errors, failed requests, requests outside."""

    console: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        return [*self.console, *self.failed, *self.outside]

    def on(self, page: Any) -> None:
        """Listen to a Playwright page."""
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.console.append(f"exception: {error}"))
        page.on("requestfailed", self._failed)
        page.on("response", self._response)
        page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.console.append(f"console: {message.text}")

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # a page that is left aborts its own requests
            self.failed.append(f"failed: {request.url} ({request.failure})")

    def _response(self, response: Any) -> None:
        if response.status >= 400:
            self.failed.append(f"status {response.status}: {response.url}")

    def _request(self, request: Any) -> None:
        address = urlsplit(request.url)
        if address.scheme in {"http", "https", "ws", "wss"} and address.hostname not in LOOPBACK:
            self.outside.append(f"outside: {request.url}")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium of the system, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def watched(browser: Any, width: int = 1280, height: int = 900) -> Iterator[tuple[Any, Watch]]:
    """A new page in a context of its own, and the watch over it."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page, watch = context.new_page(), Watch()
    page.set_default_timeout(120_000)
    watch.on(page)
    try:
        yield page, watch
    except BaseException:
        print(heard(page))
        raise
    finally:
        context.close()


def heard(page: Any) -> str:
    """What a screen reader hears of a page, for a test that failed on it."""
    try:
        return page.locator("body").aria_snapshot(timeout=10_000)[-3_000:]
    except Exception as error:
        return f"The page cannot be read any more: {error}"


def settled(page: Any, quiet_ms: int = 400) -> None:
    """Wait until Bokeh has drawn everything and nothing was sent for a moment."""
    page.wait_for_function("window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")
    page.wait_for_timeout(quiet_ms)


def until(seen: Any, act: Callable[[], None], tries: int = 6, seconds: float = 5) -> None:
    """Repeat `act` until `seen` is on the page, as a person would: a chart that is being drawn anew
    loses a click, and a mouse that is already there moves nothing."""
    from playwright.sync_api import TimeoutError as Late

    for _ in range(tries - 1):
        act()
        with contextlib.suppress(Late):
            seen.wait_for(timeout=seconds * 1_000)
            return
    act()
    seen.wait_for()


def in_sight(part: Any, inside: Any) -> bool:
    """Whether a part begins above the end of what it is inside of, which scrolls."""
    box = inside.bounding_box()
    return part.bounding_box()["y"] < box["y"] + box["height"]


def inks(texts: Any) -> list[int]:
    """How light each of these texts of a chart is, from 0 to 255; 0 for one that has just gone."""
    fill = "(getComputedStyle(n).fill.match(/\\d+/g) ?? [0]).slice(0, 3).map(Number)"
    return texts.evaluate_all(f"all => all.map(n => Math.max(...{fill}))")


def width(page: Any) -> int:
    """How wide the page is, in pixels, with what hangs over its edge."""
    return page.evaluate("document.scrollingElement.scrollWidth")


def hovered(point: Any, seen: Any) -> None:
    """Come with the mouse to a point of a chart until what it says is on the page."""

    def come() -> None:
        point.page.mouse.move(5, 5)
        point.hover(force=True)

    until(seen, come)


def shot(page: Any, name: str) -> None:
    """Keep a picture if LLMOPS_KIT_SHOTS names a folder for them."""
    if folder := os.environ.get("LLMOPS_KIT_SHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(600)  # what fades in is there
        page.screenshot(path=str(Path(folder) / f"{name}.png"))
