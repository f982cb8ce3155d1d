"""Authentication of the console: session cookie, CSRF tokens and security headers.

A browser holds a session cookie that it gets for the key printed on the terminal; a program may
send the key itself. Requests that change state also need a token, which only the console's pages
contain. Requests to other host names (DNS rebinding) and from other origins are refused.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlencode

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillroom.serve.access import LOOPBACK_NAMES, parse_host_name
from stillroom.serve.middleware.auth import has_two_lengths, replay_body

__all__ = ["TOKEN_FIELD", "TOKEN_HEADER", "ConsoleAuth"]

TOKEN_HEADER = "x-stillroom-token"  # noqa: S105  # a header's name
TOKEN_FIELD = "token"  # noqa: S105  # a field's name
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_PUBLIC_PATHS = ("/static/",)
_FORM_CONTENT_TYPE = b"application/x-www-form-urlencoded"
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_SECURITY_HEADERS = {
    "content-security-policy": _CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # With "no-referrer" a browser sends the origin "null" with the console's own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
ErrorRenderer = Callable[[Request, int, str], Awaitable[Response]]


class ConsoleAuth:
    """Checks host, origin, session and token before the app sees a request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        key: str,
        refuse: ErrorRenderer,
        body_bytes: int = 1_000_000,
        names: frozenset[str] = frozenset(),
    ) -> None:
        self.app, self.refuse, self.body_bytes = app, refuse, body_bytes
        self.names = LOOPBACK_NAMES | names
        self._key = hashlib.sha256(key.encode()).digest()
        self._cookie = _derive_token(key, b"session")
        self.token = _derive_token(key, b"token")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(message, is_asset=scope["path"].startswith(_PUBLIC_PATHS))
            await send(message)

        if has_two_lengths(scope):
            reason = "the request has both Content-Length and Transfer-Encoding"
            refused = PlainTextResponse(reason, 400, {"connection": "close"})
            await refused(scope, receive, send_guarded)
            return
        request = Request(scope, receive)
        refusal = self._check_host(request)
        if refusal:
            await PlainTextResponse(refusal, 403)(scope, receive, send_guarded)
            return
        if scope["path"].startswith(_PUBLIC_PATHS) and scope["method"] in _SAFE_METHODS:
            await self.app(scope, receive, send_guarded)
            return
        if response := await self._let_in(request):
            await response(scope, receive, send_guarded)
            return
        if not self._is_inside(request):
            response = await self.refuse(request, 401, "the console requires its key")
            await response(scope, receive, send_guarded)
            return
        refusal, body = await self._check_token(request)
        if refusal:
            response = await self.refuse(request, 403, refusal)
            await response(scope, receive, send_guarded)
            return
        await self.app(
            scope, replay_body(body, receive) if body is not None else receive, send_guarded
        )

    def _check_host(self, request: Request) -> str:
        """Return the reason to refuse a request by its host or origin, or an empty text."""
        host = request.headers.get("host", "")
        if parse_host_name(host) not in self.names:
            return "the console answers under the names of this machine only"
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return "requests from pages of other origins are refused"
        return ""

    async def _let_in(self, request: Request) -> Response | None:
        """Return a redirect with the session cookie if the request contains the right key."""
        key = request.query_params.get("key") if request.method in _SAFE_METHODS else None
        if request.method == "POST" and request.url.path == "/enter":
            body = await _read_body(request, 4096)
            key = parse_qs((body or b"").decode("latin-1")).get("key", [""])[0].strip()
        if key is None:
            return None
        if not self._is_key(key):
            return await self.refuse(request, 401, "the key is wrong")
        parameters = [(k, v) for k, v in request.query_params.multi_items() if k != "key"]
        path = "/" if request.url.path == "/enter" else request.url.path
        # A path that starts with two slashes would be read as another host.
        location = "/" + path.lstrip("/\\") + (f"?{urlencode(parameters)}" if parameters else "")
        response = RedirectResponse(location, 303)
        response.set_cookie(
            _build_cookie_name(request), self._cookie, httponly=True, samesite="strict", path="/"
        )
        return response

    def _is_key(self, key: str) -> bool:
        return hmac.compare_digest(hashlib.sha256(key.encode()).digest(), self._key)

    def _bears_key(self, request: Request) -> bool:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self._is_key(key.strip())

    def _is_inside(self, request: Request) -> bool:
        cookie = request.cookies.get(_build_cookie_name(request), "")
        return _compare_digest(cookie, self._cookie) or self._bears_key(request)

    async def _check_token(self, request: Request) -> tuple[str, bytes | None]:
        """Return the reason to refuse a change, or an empty text; and the form's body, if read."""
        if request.method in _SAFE_METHODS or self._bears_key(request):
            return "", None
        if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            return "the form does not come from a page of the console", None
        if _compare_digest(request.headers.get(TOKEN_HEADER, ""), self.token):
            return "", None
        if (
            not request.headers.get("content-type", "")
            .encode("latin-1")
            .startswith(_FORM_CONTENT_TYPE)
        ):
            return "the request has no token of the console", None
        body = await _read_body(request, self.body_bytes)
        if body is None:
            return f"the form is larger than {self.body_bytes} bytes", None
        fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
        if not _compare_digest(fields.get(TOKEN_FIELD, [""])[0], self.token):
            return "the form belongs to an earlier session: reload the page and send it again", None
        return "", body


def _build_cookie_name(request: Request) -> str:
    """Return the cookie's name, with the port in the browser's URL.

    Browsers send the cookies of a host to all of its ports: the port keeps several consoles, local
    or forwarded, apart.
    """
    _, _, port = request.headers.get("host", "").rpartition(":")
    return f"stillroom_console_{port}" if port.isdecimal() else "stillroom_console"


def _derive_token(key: str, purpose: bytes) -> str:
    return hmac.new(key.encode(), b"stillroom console " + purpose, hashlib.sha256).hexdigest()


def _compare_digest(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode("utf-8", "replace"), right.encode())


async def _read_body(request: Request, limit: int) -> bytes | None:
    """Return a body, or None if it exceeds the limit."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts)


def _add_headers(message: Message, *, is_asset: bool) -> None:
    """Add the console's headers to a response, replacing those of the inner app."""
    security_headers = {
        **_SECURITY_HEADERS,
        "cache-control": "no-cache" if is_asset else "no-store",
    }
    headers = [
        (k, v)
        for k, v in message.get("headers", ())
        if k.decode("latin-1").lower() not in security_headers
    ]
    message["headers"] = headers + [(k.encode(), v.encode()) for k, v in security_headers.items()]
