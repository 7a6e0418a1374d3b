"""A small OpenID provider on loopback: a form to log in, one-time codes, tokens, a user's card."""

import base64
import contextlib
import hashlib
import hmac
import html
import json
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

KEY, SECRET = "the-workbench", "a secret of this test"
FORM = """<!DOCTYPE html><html lang="en"><head><title>Provider</title>
<link rel="icon" href="data:,"></head><body><form method="post">{fields}
<label>Name <input name="name"></label><label>Password <input name="word" type="password"></label>
<button name="answer" value="yes">Allow</button> <button name="answer" value="no">Refuse</button>
</form><p>{told}</p></body></html>"""


@dataclass
class Provider:
    """Who may log in, what was handed out, and how the provider misbehaves."""

    people: dict[str, str]
    secret: str = SECRET
    id_tokens: bool = True
    down: bool = False
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    codes: dict[str, tuple[str, str]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def card(self, name: str) -> dict[str, Any]:
        """What is told of a user."""
        return {"sub": name, "email": name, "email_verified": True, **self.cards.get(name, {})}

    def environment(self) -> dict[str, str]:
        """Panel's settings for this provider."""
        return {
            "PANEL_OAUTH_PROVIDER": "generic",
            "PANEL_OAUTH_KEY": KEY,
            "PANEL_OAUTH_SECRET": SECRET,
            "PANEL_OAUTH_AUTHORIZE_URL": f"{self.url}/authorize",
            "PANEL_OAUTH_TOKEN_URL": f"{self.url}/token",
            "PANEL_OAUTH_USER_URL": f"{self.url}/user",
        }

    def id_token(self, name: str) -> str:
        """A signed card, for one audience and five minutes."""
        card = {**self.card(name), "iss": self.url, "aud": KEY}
        parts = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
            for part in ({"alg": "HS256", "typ": "JWT"}, card)
        ]
        mark = hmac.new(self.secret.encode(), b".".join(parts), hashlib.sha256).digest()
        return b".".join([*parts, base64.urlsafe_b64encode(mark).rstrip(b"=")]).decode()


class _Handler(BaseHTTPRequestHandler):
    provider: Provider

    def log_message(self, *_: Any) -> None:
        """Keep the output of the tests clean."""

    def _send(self, status: int, body: str, kind: str = "text/html", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": f"{kind}; charset=utf-8", **headers}.items():
            self.send_header(name, value)
        raw = body.encode()
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _json(self, status: int, **row: Any) -> None:
        self._send(status, json.dumps(row, ensure_ascii=False), "application/json")

    def _form(self) -> dict[str, str]:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        return {name: values[0] for name, values in parse_qs(raw).items()}

    def do_GET(self) -> None:
        """The form of /authorize, or the card of /user."""
        place = urlsplit(self.path)
        if place.path == "/user":
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            name = self.provider.tokens.get(token)
            self._json(200, **self.provider.card(name)) if name else self._json(401, error="token")
            return
        asked = {name: values[0] for name, values in parse_qs(place.query).items()}
        if asked.get("client_id") != KEY or asked.get("response_type") != "code":
            self._send(400, "This application is not known here.")
            return
        self.provider.asked.append(asked)
        kept = "".join(
            f'<input type="hidden" name="{name}" value="{html.escape(asked[name])}">'
            for name in ("redirect_uri", "state")
        )
        self._send(200, FORM.format(fields=kept, told=""))

    def do_POST(self) -> None:
        """The answer to the form, or the tokens for a code."""
        form = self._form()
        if urlsplit(self.path).path == "/token":
            self._token(form)
            return
        back, state = form["redirect_uri"], form["state"]
        if form.get("answer") == "no":
            told = {
                "error": "access_denied",
                "error_description": "The user said no.",
                "state": state,
            }
        elif self.provider.people.get(form.get("name", "")) == form.get("word"):
            code = secrets.token_urlsafe()
            self.provider.codes[code] = form["name"], back
            told = {"code": code, "state": state}
        else:
            self._send(401, FORM.format(fields="", told="Wrong name or password."))
            return
        self._send(302, "", Location=f"{back}?{urlencode(told)}")

    def _token(self, form: dict[str, str]) -> None:
        if self.provider.down:
            self._send(503, "<h1>We are down</h1>")
            return
        if (form.get("client_id"), form.get("client_secret")) != (KEY, self.provider.secret):
            told = "The secret of this application is wrong."
            self._json(401, error="invalid_client", error_description=told)
            return
        name, back = self.provider.codes.pop(form.get("code", ""), ("", ""))
        if not name or back != form.get("redirect_uri"):
            self._json(400, error="invalid_grant", error_description="This code is not valid.")
            return
        token = secrets.token_urlsafe()
        self.provider.tokens[token] = name
        more = {"id_token": self.provider.id_token(name)} if self.provider.id_tokens else {}
        self._json(200, access_token=token, token_type="Bearer", expires_in=300, **more)


@contextlib.contextmanager
def provider(people: dict[str, str], **settings: Any) -> Iterator[Provider]:
    """A provider that knows these names and passwords, on a port of its own."""
    made = Provider(people, **settings)
    handler = type("Handler", (_Handler,), {"provider": made})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()
