"""The first thing that a request meets: who asks, and how many bytes of it are taken.

Both are ASGI middleware without anything of ours beneath, so they guard all that is mounted.
"""

from __future__ import annotations

import asyncio
import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everyway.apps.server.answers import plain

OPEN = ("/healthz", "/readyz")
"""What a balancer asks without a token."""
COOKIE = "everyway_token"
"""Where a browser keeps the token."""
HERE = {"localhost", "127.0.0.1", "::1"}
"""What this machine calls itself."""
PATIENCE = 60.0
"""Seconds that the body of a request may take to come."""
AT_ONCE = 16
"""Bodies of the largest size that are held at a time, however many requests they are of."""
LINGER = 2**30
"""Bytes of a body that is too large which are read, and dropped, so that who sends it sees why it
is refused."""


class Known:
    """Lets those pass who give the token; without one, what was meant for this machine.

    A server on loopback is reached by every page in a browser of its machine: by a form that a
    foreign page sends, or by a foreign name that points here.  Both name another host than this.
    """

    def __init__(self, app: ASGIApp, token: str, loopback: bool) -> None:
        self.app, self.token, self.loopback = app, token.encode(), loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN:
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        if self.token and scope["type"] == "http" and scope["method"] == "GET":
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if self._is_token(given):
                return await self._let_in(given, scope, receive, send)
        if self.token and not self._has_token(headers):
            said = "give the server's token, as Authorization: Bearer TOKEN"
            return await _refused(401, said, "invalid_api_key", scope, receive, send)
        if not self.token and not self._from_here(headers):
            said = "this server is for its own machine; with --token-file it is for others"
            return await _refused(403, said, "forbidden", scope, receive, send)
        await self.app(scope, receive, send)

    def _has_token(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        cookie = SimpleCookie()
        try:
            cookie.load(headers.get("cookie", ""))
        except CookieError:
            pass
        kept = cookie[COOKIE].value if COOKIE in cookie else ""
        return self._is_token(given if scheme.lower() == "bearer" else kept)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.token)

    async def _let_in(self, token: str, scope: Scope, receive: Receive, send: Send) -> None:
        """A browser that opens /?token=TOKEN keeps it, and its address bar does not show it."""
        answer = RedirectResponse("/" + scope["path"].lstrip("/"), 303)
        answer.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        await answer(scope, receive, send)

    def _from_here(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            own = not self.loopback or urlsplit(f"//{host}").hostname in HERE
            return own and (origin is None or urlsplit(origin).netloc == host)
        except ValueError:  # no address at all
            return False


class Bounded:
    """Takes the whole body of a request, of at most so many bytes and in PATIENCE, and then hands
    it on: nothing behind it reads from a slow or endless sender."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit, self.held = app, limit, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = bytearray()
        try:
            await self._passed(body, scope, receive, send)
        finally:
            self.held -= len(body)

    async def _passed(self, body: bytearray, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            dropped = await asyncio.wait_for(self._fill(body, receive), PATIENCE)
        except asyncio.TimeoutError:
            return await _refused(408, "the request came too slowly", None, scope, receive, send)
        if dropped is None:
            return None
        if len(body) > self.limit:
            said = f"the request is larger than {self.limit} bytes, the most that is taken here"
            return await _refused(413, said, "too_large", scope, receive, send)
        if dropped:
            said = "too much is sent to this server at a time; try again in a while"
            return await _refused(429, said, "rate_limit_exceeded", scope, receive, send)
        given: list[Message] = [{"type": "http.request", "body": bytes(body)}]

        async def again() -> Message:
            return given.pop() if given else await receive()

        await self.app(scope, again, send)

    async def _fill(self, body: bytearray, receive: Receive) -> int | None:
        """At most a byte more than the limit, and nothing where too much is held.

        Returns how many bytes were dropped; None where the sender has gone.
        """
        dropped = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            full = self.held > AT_ONCE * self.limit
            taken = chunk[: 0 if full else max(0, self.limit + 1 - len(body))]
            body += taken
            self.held += len(taken)
            dropped += len(chunk) - len(taken)
            if not message.get("more_body") or dropped > LINGER:
                return dropped


async def _refused(
    status: int, said: str, code: str | None, scope: Scope, receive: Receive, send: Send
) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": said})
    else:
        await plain(status, said, code)(scope, receive, send)
