"""Who may speak to the server: requests with its token, to its own host name, from its own pages.

A page of any web site can send requests to a port of this machine. Three checks keep it out. The address has a random
token, which other pages cannot know. The Host header must name this server: a foreign name that an attacker points at
127.0.0.1 is refused (DNS rebinding). The Origin header, which browsers add to what pages send, must be this server's.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
MOST_BODY = 8 << 20
"""Bytes of a request: the positions of a million images."""


def new_token() -> str:
    """Return a token that nobody can guess."""
    return secrets.token_urlsafe(24)


@dataclass(frozen=True)
class Guard:
    """The checks, as a layer around an application.

    Attributes
    ----------
    app : ASGI application
        What answers requests that pass, below the path ``/TOKEN``.
    token : str
    hosts : frozenset of str
        Values of the Host header that name this server, such as ``127.0.0.1:8000``.
    """

    app: ASGIApp
    token: str
    hosts: frozenset[str] = field(default_factory=frozenset)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks over web sockets
            return
        reason = self.refusal(scope)
        if reason is not None:
            await PlainTextResponse(reason, 403, dict(HEADERS))(scope, receive, send)
            return
        start = len(self.token) + 1
        inner = {**scope, "path": scope["path"][start:] or "/", "raw_path": None, "root_path": ""}
        await self.app(inner, receive, _with_headers(send))

    def refusal(self, scope: Scope) -> str | None:
        """Return why a request is refused; None where it passes."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        if len(headers.get("host", [])) != 1 or headers["host"][0].lower() not in self.hosts:
            return "refused: another host name. Open the address that pipeline label printed."
        if any(origin.lower() not in {f"http://{host}" for host in self.hosts} for origin in headers.get("origin", [])):
            return "refused: another origin. Open the address that pipeline label printed."
        if headers.get("sec-fetch-site", ["none"])[0] not in ("none", "same-origin"):
            return "refused: another site. Open the address that pipeline label printed."
        given, _, rest = scope["path"].removeprefix("/").partition("/")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode()):
            return "refused: no token, or another. Open the address that pipeline label printed."
        if not rest and not scope["path"].endswith("/"):
            return "refused: the address ends in a slash"
        length = headers.get("content-length", ["0"])[0]
        if not length.isdigit() or int(length) > MOST_BODY or "transfer-encoding" in headers:
            return "refused: a body of this size"
        return None


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message["headers"]}
            added = [(name.encode(), text.encode()) for name, text in HEADERS.items() if name.encode() not in names]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return sent
