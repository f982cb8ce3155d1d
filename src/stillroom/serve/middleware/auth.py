"""Authentication (API key, bearer token), scopes, rate limit, body size and security headers.

Plain ASGI, so that a client's disconnect reaches the application. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillroom.serve.access import LOOPBACK_NAMES, ApiKey, RequestLimits, parse_host_name
from stillroom.serve.errors import ApiError, JsonReply, client_disconnected

if TYPE_CHECKING:
    from stillroom.rag.index.view import AccessContext
    from stillroom.serve.routing import RouteRule

__all__ = [
    "ACCESS_KEY",
    "CLIENT_KEY",
    "AuthMiddleware",
    "has_two_lengths",
    "match_key",
    "replay_body",
]

ACCESS_KEY = "stillroom.access"
"""ASGI scope key of the client's Access, or None."""
CLIENT_KEY = "stillroom.asker"
"""ASGI scope key of the number of the client's API key; clients without a key share one."""

RECEIVED_KEY = "stillroom.received"
"""ASGI scope key of the number of bytes of an upload that have arrived."""

_SLOWEST_UPLOAD = 10_000  # bytes per second
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class AuthMiddleware:
    """Checks API key, host, origin and body size before the app sees a request.

    Without keys only requests to this machine's own names are answered, which protects from DNS
    rebinding.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_keys: Sequence[ApiKey],
        limits: RequestLimits,
        find_rule: Callable[[Scope], RouteRule | None],
    ) -> None:
        """Wrap ``app``; keys are kept as digests only, and ``find_rule`` knows the routes."""
        self.app, self.limits, self._find_rule = app, limits, find_rule
        self._keys = [key.digest for key in api_keys]
        self._askers = list(api_keys)
        self._buckets: dict[int, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        inner_receive: Receive

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_SECURITY_HEADERS]
            await send(message)

        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            if has_two_lengths(scope):
                raise ApiError(
                    400,
                    "the request has both Content-Length and Transfer-Encoding",
                    code="two_lengths",
                    headers={"Connection": "close"},
                )
            rule = self._find_rule(scope)
            scope[ACCESS_KEY] = self._check(scope, headers, rule)
            self._count(scope, rule)
            is_streamed = rule is not None and rule.is_upload and scope["method"] == "POST"
            bound = _BoundedBody(scope, self.limits, headers, receive, is_upload=is_streamed)
            inner_receive = (
                bound.receive if is_streamed else replay_body(await bound.read(), receive)
            )
        except ApiError as refusal:
            await _send_error(refusal, send_guarded)
            return
        await self.app(scope, inner_receive, send_guarded)

    def _count(self, scope: Scope, rule: RouteRule | None) -> None:
        """Refuse a client over its rate limit; each key has a token bucket."""
        rate = self.limits.requests_per_minute
        if not rate or _is_public(rule):
            return
        now, client = time.monotonic(), scope.get(CLIENT_KEY, 0)
        tokens, then = self._buckets.get(client, (float(rate), now))
        tokens = min(tokens + (now - then) * rate / 60, float(rate))
        if tokens < 1:
            wait = max(math.ceil((1 - tokens) * 60 / rate), 1)
            raise ApiError(
                429,
                f"more than {rate} requests a minute",
                code="rate_limited",
                headers={"Retry-After": str(wait)},
            )
        self._buckets[client] = (tokens - 1, now)

    def _check(
        self, scope: Scope, headers: dict[bytes, bytes], rule: RouteRule | None
    ) -> AccessContext | None:
        """Return the access of the client, or refuse the request."""
        host = parse_host_name(headers.get(b"host", b"").decode("latin-1"))
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and parse_host_name(origin.partition("://")[2]) != host:
            raise ApiError(403, "requests of other origins are refused", code="foreign_origin")
        if _is_public(rule):
            return None
        if self._keys:
            key_index = match_key(headers.get(b"authorization", b""), self._keys)
            if key_index is None:
                raise ApiError(
                    401,
                    "the API key is missing or wrong",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            key = self._askers[key_index]
            scope[CLIENT_KEY] = key_index
            if rule is not None and rule.scope not in {"any", *key.scopes}:
                raise ApiError(
                    403, f"the API key lacks the scope {rule.scope}", code="missing_scope"
                )
            return key.access
        if host not in LOOPBACK_NAMES:
            raise ApiError(403, "without API keys only this machine is served", code="foreign_host")
        return None


def _is_public(rule: RouteRule | None) -> bool:
    return rule is not None and rule.scope == "public"


class _BoundedBody:
    """Request body, read within a limit of bytes and seconds.

    An upload must also keep its pace: it holds a place that other clients wait for.
    """

    def __init__(
        self,
        scope: Scope,
        limits: RequestLimits,
        headers: dict[bytes, bytes],
        receive: Receive,
        *,
        is_upload: bool,
    ) -> None:
        self._most = limits.upload_bytes if is_upload else limits.body_bytes
        self._seconds = limits.upload_s if is_upload else limits.body_s
        self._end = time.monotonic() + self._seconds
        self._slack_end = time.monotonic() + limits.body_s
        self._scope, self._receive, self._size, self._is_whole = scope, receive, 0, False
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:19]) > self._most:
            raise self._too_large()

    async def receive(self) -> Message:
        """Receive a part of the body; after its end, later messages."""
        if self._is_whole:
            return await self._receive()
        try:
            end = min(self._end, self._slack_end + self._size / _SLOWEST_UPLOAD)
            remaining_s = max(end - time.monotonic(), 0.0)
            message = await asyncio.wait_for(self._receive(), remaining_s)
        except TimeoutError:
            raise ApiError(
                408,
                f"the body did not arrive within {self._seconds:g} s, or came too slowly",
                code="body_too_slow",
            ) from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._scope[RECEIVED_KEY] = self._size
            self._is_whole = not message.get("more_body")
            if self._size > self._most:
                raise self._too_large()
        return message

    async def read(self) -> bytes:
        """Return the whole body."""
        parts = []
        while not self._is_whole:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise client_disconnected()
            parts.append(message.get("body", b""))
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._most} bytes", code="body_too_large")


def has_two_lengths(scope: Scope) -> bool:
    """Return whether a request gives its length twice, which proxies may read otherwise.

    Source: RFC 9112, section 6.3.
    """
    names = {name.lower() for name, _ in scope["headers"]}
    return names.issuperset({b"content-length", b"transfer-encoding"})


def match_key(authorization: bytes, digests: Sequence[bytes]) -> int | None:
    """Return the index of the key in a header, or None; takes the same time for every key."""
    scheme, _, key = authorization.partition(b" ")
    key_digest = hashlib.sha256(key.strip()).digest()
    matches = [hmac.compare_digest(key_digest, digest) for digest in digests]
    known = [index for index, is_it in enumerate(matches) if is_it]
    return known[0] if known and scheme.lower() == b"bearer" else None


def replay_body(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that yields the body once, then later messages."""
    is_given = False

    async def give() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give


async def _send_error(refusal: ApiError, send: Send) -> None:
    body = bytes(JsonReply(refusal.to_json()).body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(key.lower().encode(), value.encode()) for key, value in refusal.headers.items()]
    if refusal.status in {408, 413}:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
