"""The command that serves the workbench to a team: whose store, and who may look."""

import contextlib
import html
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from browser import Server, settled, shot, watched, width
from dash_page import pulled
from oauth_provider import Provider, provider
from patience import eventually
from servers import answers, free_port
from tornado.httpclient import HTTPClientError

from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Interaction
from llmops_kit.llm import run_sync

PAGES = ("", "index", "guardrails", "static/../guardrails", "guardrails/autoload.js")


@contextlib.contextmanager
def workbench(folder: Path, *options: str, **environment: str) -> Iterator[Server]:
    """`llmops-kit workbench` on the store `folder`/team.db, once it answers."""
    port, log = free_port(), folder / "server.log"
    program = str(Path(sys.executable).with_name("llmops-kit"))
    command = [program, "workbench", "--port", str(port), "--db", str(folder / "team.db"), *options]
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, cwd=folder, start_new_session=True, stdout=out, stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )  # fmt: skip
        try:
            assert answers(server, port), log.read_text()
            yield Server(port, log)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(120)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a workbench with a login and a store of its own."""
    folder = tmp_path_factory.mktemp("team")
    logins = folder / "logins.json"
    logins.write_text(json.dumps({"maria": "correct horse battery"}))
    logins.chmod(0o600)
    with workbench(folder, "--login", str(logins)) as server:
        yield server.url("").rstrip("/")


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_shown_without_a_login(guarded: str, page: str) -> None:
    reply = httpx.get(f"{guarded}/{page}", follow_redirects=True)
    assert reply.url.path == "/login" or reply.status_code >= 400
    assert "llmops-kit" not in reply.text


def test_the_login_page_needs_no_network(guarded: str) -> None:
    page = httpx.get(f"{guarded}/login").text
    assert "<form" in page
    assert "<script" not in page and "https://" not in page


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("maria", "wrong horse battery"),
        ("maria", ""),
        ("", "correct horse battery"),
        ("ravi", "correct horse battery"),
        ("' OR 1=1 --", "' OR 1=1 --"),
        ("maria", "logins.json"),
    ],
)
def test_a_wrong_login_opens_nothing(guarded: str, name: str, word: str) -> None:
    with httpx.Client(follow_redirects=True) as visitor:
        told = visitor.post(f"{guarded}/login", data={"username": name, "password": word})
        assert "Invalid username or password" in told.text
        assert visitor.get(f"{guarded}/guardrails").url.path == "/login"


def test_the_right_login_opens_the_pages(guarded: str) -> None:
    with httpx.Client(follow_redirects=True) as visitor:
        visitor.post(
            f"{guarded}/login", data={"username": "maria", "password": "correct horse battery"}
        )
        page = visitor.get(f"{guarded}/index")
        assert page.url.path == "/index"
        assert page.status_code == 200
        forged = httpx.Cookies({"user": visitor.cookies["user"][:-6] + "000000"})
    assert httpx.get(f"{guarded}/index", cookies=forged, follow_redirects=True).url.path == "/login"


TEAM = "ann@example.org, *@example.com"
WORDS = {
    "ann@example.org": "a word of ann",
    "o'brien@example.com": "a word of o'brien",
    "mallory@evil.net": "a word of mallory",
    "eve@example.com": "a word of eve",
}


@dataclass
class Team:
    """A workbench behind an OpenID provider, and the store that it shows."""

    server: Server
    provider: Provider
    folder: Path

    def url(self, page: str = "index") -> str:
        return self.server.url(page)

    def store(self) -> FeedbackStore:
        return FeedbackStore(self.folder / "team.db")

    def login(self, visitor: httpx.Client, name: str, page: str = "index", **form: str) -> Any:
        """Open a page, and fill in the form of the provider that it leads to."""
        shown = visitor.get(self.url(page))
        assert shown.url.path == "/authorize", shown.url
        hidden = re.findall(r'name="(redirect_uri|state)" value="([^"]*)"', shown.text)
        kept = {field: html.unescape(value) for field, value in hidden}
        data = {**kept, "name": name, "word": WORDS.get(name, ""), "answer": "yes", **form}
        return visitor.post(str(shown.url), data=data)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The workbench for two people of an OpenID provider; four have an account there."""
    folder = tmp_path_factory.mktemp("oauth")
    FeedbackStore(folder / "team.db").close()
    with provider(WORDS) as found:
        settings = {**found.environment(), "LLMOPS_KIT_LLM": "extractive"}
        with workbench(folder, "--allow", TEAM, **settings) as server:
            yield Team(server, found, folder)


@pytest.fixture
def visitor() -> Iterator[httpx.Client]:
    """A browser of few words: it keeps cookies and follows where it is sent."""
    with httpx.Client(follow_redirects=True, timeout=300) as client:
        yield client


def title(reply: httpx.Response) -> str:
    found = re.search("<title>(.*?)</title>", reply.text, re.S)
    return found.group(1).strip() if found else ""


@pytest.mark.parametrize("page", ["", "index", "feedback"])
def test_without_a_login_a_page_leads_to_the_provider(
    team: Team, visitor: httpx.Client, page: str
) -> None:
    shown = visitor.get(team.url(page))
    asked = parse_qs(urlsplit(str(shown.url)).query)
    assert (shown.url.path, asked["client_id"]) == ("/authorize", ["the-workbench"])
    assert len(asked["state"][0]) > 60 and "client_secret" not in asked
    assert all("llmops" not in one.text for one in [*shown.history, shown])


def test_no_other_door_is_open_without_a_login(team: Team) -> None:
    for page in ("feedback/autoload.js?bokeh-autoload-element=x", "feedback/ws"):
        reply = httpx.get(team.url(page))
        assert reply.status_code >= 300 and "token" not in reply.text
    with pytest.raises(HTTPClientError, match="403"):
        run_sync(pulled(team.url("feedback"), "", "no token"))


def seen(team: Team, visitor: httpx.Client, page: str) -> str:
    """What a session of this page holds, opened by the door that `authorize_callback` forgets."""
    script = visitor.get(team.url(f"{page}/autoload.js?bokeh-autoload-element=x")).text
    found = re.search(r'"token":"([^"]+)"', script)
    assert found, script[:300]
    cookies = "; ".join(f"{one.name}={one.value}" for one in visitor.cookies.jar)
    return run_sync(pulled(team.url(page), cookies, found.group(1)))


def test_a_login_opens_the_page_that_was_asked_for(team: Team, visitor: httpx.Client) -> None:
    shown = team.login(visitor, "ann@example.org", "feedback")
    assert (shown.status_code, shown.url.path) == (200, "/feedback")
    assert title(shown) == "Feedback dashboard · llmops-kit"
    assert visitor.get(team.url("index")).url.path == "/index"
    held = seen(team, visitor, "feedback")
    assert "ann@example.org" in held and "Log out" in held and "Look for news" in held


def test_a_log_out_ends_it(team: Team, visitor: httpx.Client) -> None:
    team.login(visitor, "ann@example.org")
    told = visitor.get(team.url("logout"))
    assert title(told) == "Logged out" and "https://" not in told.text
    assert not visitor.cookies
    assert visitor.get(team.url("index")).url.path == "/authorize"


@pytest.mark.parametrize("page", ["index", "feedback", "assistant"])
def test_an_account_outside_the_list_sees_nothing(
    team: Team, visitor: httpx.Client, page: str
) -> None:
    shown = team.login(visitor, "mallory@evil.net", page)
    assert title(shown) == "Not for this account · llmops-kit"
    held = seen(team, visitor, page)
    assert "mallory@evil.net" in held and "may not look" in held and "Log out" in held
    assert "team.db" not in held and "Look for news" not in held and "Ask a question" not in held


def test_an_address_that_nobody_verified_opens_nothing(team: Team, visitor: httpx.Client) -> None:
    team.provider.cards["eve@example.com"] = {"email_verified": False}
    shown = team.login(visitor, "eve@example.com")
    assert title(shown) == "Not for this account · llmops-kit"


@pytest.mark.parametrize("id_tokens", [True, False])
def test_an_apostrophe_is_only_read_from_an_id_token(
    team: Team, visitor: httpx.Client, id_tokens: bool
) -> None:
    """A flaw of Panel that the chapter names; without it both would say the same."""
    team.provider.id_tokens = id_tokens
    try:
        team.login(visitor, "o'brien@example.com")
    finally:
        team.provider.id_tokens = True
    said = html.unescape(html.unescape(seen(team, visitor, "index").replace('\\"', '"')))
    assert ("o'brien@example.com" if id_tokens else 'o"brien@example.com') in said


def refusal(reply: httpx.Response, words: str) -> None:
    """The page says why, has a way back, and needs nothing from elsewhere."""
    assert reply.status_code == 401 and title(reply) == "Not logged in"
    assert words in html.unescape(reply.text) and "Try again" in reply.text
    assert "https://" not in reply.text and "<script" not in reply.text


def test_who_refuses_is_told_so(team: Team, visitor: httpx.Client) -> None:
    refusal(team.login(visitor, "ann@example.org", answer="no"), "The user said no.")
    assert visitor.get(team.url("index")).url.path == "/authorize"


def test_a_wrong_client_secret_is_told(team: Team, visitor: httpx.Client) -> None:
    right, team.provider.secret = team.provider.secret, "another one"
    try:
        reply = team.login(visitor, "ann@example.org")
    finally:
        team.provider.secret = right
    refusal(reply, "The secret of this application is wrong.")
    assert right not in reply.text


def test_a_provider_that_is_down_is_told(team: Team, visitor: httpx.Client) -> None:
    team.provider.down = True
    try:
        refusal(team.login(visitor, "ann@example.org"), "503")
    finally:
        team.provider.down = False


def test_the_code_of_another_visitor_opens_nothing(team: Team, visitor: httpx.Client) -> None:
    reply = team.login(visitor, "ann@example.org")
    code = next(one for one in reply.history if "code=" in str(one.url)).url
    with httpx.Client(follow_redirects=True, timeout=300) as other:
        refusal(other.get(str(code)), "OAuth state mismatch")
        assert other.get(team.url("index")).url.path == "/authorize"


@pytest.mark.parametrize(
    "query",
    [
        "error=<script>window.hacked=1</script>",
        "error=x&error_description=<img src=x onerror=window.hacked=1>",
        "error=a%0d%0aSet-Cookie:x=1",
        "error=%00&error_description=%e2%80%ae",
    ],
)
def test_a_hostile_answer_is_text(team: Team, query: str) -> None:
    reply = httpx.get(team.url(f"login?{query}"))
    assert reply.status_code == 401 and title(reply) == "Not logged in"
    assert "<script" not in reply.text and "<img" not in reply.text
    assert "x" not in reply.cookies


@pytest.mark.needs("chromium")
def test_log_in_ask_and_log_out(browser: Any, team: Team) -> None:
    with watched(browser) as (page, watch):
        page.goto(team.url("assistant"))
        page.get_by_label("Name").fill("ann@example.org")
        page.get_by_label("Password").fill(WORDS["ann@example.org"])
        page.get_by_role("button", name="Allow").click()
        page.get_by_text("Signed in; your name is kept as a hash.").wait_for()
        page.locator(".account", has_text="ann@example.org").wait_for()
        settled(page)
        assert width(page) <= 1280
        page.get_by_placeholder("Ask a question").fill("How long are audit logs kept?")
        page.keyboard.press("Enter")
        page.locator(".acts").first.wait_for()
        shot(page, "logged-in")
        page.get_by_role("link", name="Log out").click()
        page.get_by_role("heading", name="You are logged out").wait_for()
        shot(page, "logged-out")
        page.goto(team.url("assistant"))
        page.get_by_role("button", name="Allow").wait_for()
        assert watch.faults() == []
    rows = list[Interaction]()
    with contextlib.closing(team.store()) as store:
        assert eventually(lambda: rows.extend(store.read(Interaction)) or rows)
    assert [len(row.user) > 20 and "ann" not in row.user for row in rows] == [True]
