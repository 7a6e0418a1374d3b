"""The feedback dashboard as tests see it: pages on stores, what must not happen, the cards."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from browser import Server, serve, settled, watched, width
from patience import eventually
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

LAUNCH = (
    "from llmops_kit.apps.dashboard import FeedbackDashboard as D\nD({!r}, every={}).servable()\n"
)


@contextlib.contextmanager
def dashboards(
    folder: Path,
    stores: Mapping[str, str],
    apps: Sequence[str] = (),
    every: int = 60,
    options: Sequence[str] = (),
    **env: str,
) -> Iterator[Server]:
    """Dashboards on these stores, each under its name, beside launchers of nbs/apps."""
    scripts = {name: LAUNCH.format(where, every) for name, where in stores.items()}
    env = {"LLMOPS_KIT_RUNS": str(folder), **env}
    with serve(folder, apps, scripts, options, **env) as running:
        yield running


@contextlib.contextmanager
def flawless(browser: Any, server: Server, height: int = 1400) -> Iterator[Any]:
    """A new page; whatever went wrong on it or in the server by the end fails."""
    with watched(browser, height=height) as (page, watch):
        yield page
        assert page.evaluate("window.hacked") is None
        assert watch.faults() == []
        assert server.faults() == []


@contextlib.asynccontextmanager
async def connected(url: str, cookies: str, token: str) -> AsyncIterator[WebSocketClientConnection]:
    """The socket of a session, as a browser holds it while its tab is open."""
    request = HTTPRequest(f"{url.replace('http', 'ws', 1)}/ws", headers={"Cookie": cookies})
    socket = await websocket_connect(request, subprotocols=["bokeh", token])
    try:
        yield socket
    finally:
        socket.close()


async def pulled(url: str, cookies: str, token: str) -> str:
    """The document of a session, as a browser gets it through its socket."""
    async with connected(url, cookies, token) as socket:
        said = [await socket.read_message() for _ in range(3)]
        for part in ({"msgid": "1", "msgtype": "PULL-DOC-REQ"}, {}, {}):
            await socket.write_message(json.dumps(part))
        while "PULL-DOC-REPLY" not in str(said[-3]):
            said.append(await socket.read_message())
            assert said[-1] is not None, said
        return str(said[-1])


def opened(
    page: Any, server: Server, slug: str = "feedback", query: str = "", shows: str = ".kpi .value b"
) -> Any:
    """Go to a page, and wait until it shows what it is opened for."""
    page.goto(server.url(slug, query))
    settled(page)
    page.locator(shows).first.wait_for()
    return page


def steady(page: Any) -> None:
    """Wait until the page has kept its size for twenty frames, however long a frame takes."""
    page.evaluate("window.kept = {size: '', frames: 0}")
    page.wait_for_function(
        """() => {
          const box = document.scrollingElement, now = `${box.scrollWidth} ${box.scrollHeight}`;
          kept.frames = kept.size === now ? kept.frames + 1 : 0;
          kept.size = now;
          return kept.frames >= 20;
        }""",
        polling="raf",
    )


def in_address(page: Any, name: str, value: str | None) -> None:
    """Wait until the address names this value; None: until it does not name it any more."""
    found = "([name, value]) => new URL(location).searchParams.get(name) === value"
    page.wait_for_function(found, arg=[name, value])


def kept(page: Any) -> None:
    """Wait until the assistant says that an opinion is stored."""
    page.locator(".told", has_text="Stored.").first.wait_for()


def card_of(page: Any, title: str) -> Any:
    return page.locator(".kpi", has=page.get_by_text(title, exact=True))


def shown_requests(page: Any, wanted: int) -> None:
    """Wait until the card of the requests has this number."""
    value = card_of(page, "Requests").locator("b")
    value.get_by_text(f"{wanted:,}", exact=True).wait_for()


def fits(page: Any) -> None:
    """Once drawn, nothing reaches over the right edge, and no text of a card is cut."""
    steady(page)
    assert eventually(lambda: width(page) <= 1280)
    cut = "all => all.filter(n => n.scrollWidth > n.clientWidth + 1).map(n => n.innerText)"
    texts = page.locator(".kpi, .kpi .top, .kpi .value, .kpi > .small")
    assert eventually(lambda: texts.evaluate_all(cut) == []), texts.evaluate_all(cut)


def fits_a_phone(page: Any, parts: str) -> None:
    """On a screen of 420 pixels none of these parts reaches over an edge; then back to the desk."""
    desk = page.viewport_size
    page.set_viewport_size({"width": 420, "height": 900})
    steady(page)
    over = """all => all.filter(n => n.getBoundingClientRect().right > innerWidth - 28)
      .map(n => `${n.className} ${n.innerText}`)"""
    some = page.locator(parts)
    assert eventually(lambda: some.evaluate_all(over) == []), some.evaluate_all(over)
    page.set_viewport_size(desk)
    steady(page)
