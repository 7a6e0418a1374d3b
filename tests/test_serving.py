"""The command that serves the workbench to a team: whose store, and who may look."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from servers import free_port

PAGES = ("", "index", "guardrails", "static/../guardrails", "guardrails/autoload.js")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a workbench with a login and a store of its own."""
    folder = tmp_path_factory.mktemp("team")
    logins = folder / "logins.json"
    logins.write_text(json.dumps({"maria": "correct horse battery"}))
    logins.chmod(0o600)
    port = free_port()
    program = str(Path(sys.executable).with_name("llmops-kit"))
    command = [program, "workbench", "--port", str(port), "--db", str(folder / "team.db")]
    command += ["--login", str(logins)]
    server = subprocess.Popen(command, cwd=folder, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert server.poll() is None, "the workbench ended"
                assert time.monotonic() < deadline, "the workbench does not answer"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_shown_without_a_login(guarded: str, page: str) -> None:
    reply = httpx.get(f"{guarded}/{page}", follow_redirects=True)
    assert reply.url.path == "/login" or reply.status_code >= 400
    assert "llmops-kit" not in reply.text


def test_the_login_page_needs_no_network(guarded: str) -> None:
    page = httpx.get(f"{guarded}/login").text
    assert "<form" in page
    assert "<script src=" not in page


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
