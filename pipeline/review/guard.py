"""Around every request: its Host and origin checked, its body bounded; refusals as JSON of one form; safe headers."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from pipeline.errors import MasksieveError, ModelError, StorageError
from pipeline.review.access import Access, TooMany
from pipeline.review.refusals import Malformed, Refusal
from pipeline.storage.secrets import masked

log = logging.getLogger(__name__)

MOST_BODY_BYTES = 16 << 20
MOST_STRANGER_BYTES = 64 << 10
"""Of a body that is read before anybody asks who sends it."""
STATUS = {
    "login": 401,
    "foreign": 403,
    "not_found": 404,
    "lease_lost": 409,
    "conflict": 409,
    "budget_spent": 409,
    "malformed": 422,
    "too_large": 413,
    "too_many": 429,
    "unreachable": 503,
}
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def address(request: Request) -> str:
    """Where a request comes from."""
    return request.client.host if request.client else "unknown"


def cookie_name(request: Request) -> str:
    """Browsers share cookies between ports, so that each server needs a name of its own."""
    server = request.scope.get("server") or ("", 0)
    return f"masksieve-review-{server[1] or 0}"


def who(access: Access, request: Request) -> str:
    """The reviewer who asks. Raises NotLoggedIn, TooMany."""
    headers = request.headers
    return access.reviewer(
        request.cookies.get(cookie_name(request)), headers.get("authorization"), headers.get("x-reviewer"),
        address(request),
    )  # fmt: skip


class TooLarge(Refusal):
    """A body that no request needs."""

    kind = "too_large"


class PlainJSON(JSONResponse):
    """JSON in ASCII, so that no text breaks it."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def refused(error: MasksieveError) -> Response:
    """An error as every client gets it."""
    kind = error.kind if isinstance(error, Refusal) else "malformed"
    if isinstance(error, StorageError | ModelError):
        kind = "unreachable"
    told = {"expected": error.expected, "got": error.got, "next_step": error.next_step, "kind": kind}
    parts = {name: masked(text) for name, text in told.items()}
    headers = {"retry-after": str(math.ceil(error.wait_seconds))} if isinstance(error, TooMany) else {}
    if kind == "login":
        headers["www-authenticate"] = "Bearer"
    return PlainJSON({"error": parts}, STATUS.get(kind, 422), headers)


def tell_errors(app: FastAPI) -> None:
    """Let every error of an app come out as JSON of one form."""

    def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, MasksieveError)
        if isinstance(error, StorageError):
            log.warning("%s", error)
        return refused(error)

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if not isinstance(part, str) or len(part) <= 64)[:200]
        return refused(Malformed("a request as /api/v1/openapi.json says", f"{place}: {first['msg'][:200]}", "mend it"))

    def other(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = {404: "not_found", 413: "too_large"}.get(error.status_code, "malformed")
        text = HTTPStatus(error.status_code).phrase.lower()
        body = {"expected": "a path and method of the API", "got": text, "next_step": "see /api/v1/openapi.json"}
        return PlainJSON({"error": {**body, "kind": kind}}, error.status_code, error.headers)

    app.add_exception_handler(MasksieveError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)


class Guard:
    """The outermost layer of the app."""

    def __init__(self, app: Any, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        left, started = [MOST_BODY_BYTES], [False]

        async def send_safely(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                started[0] = True
                there = {name.lower() for name, _ in message["headers"]}
                fresh = "no-cache" if scope["path"].startswith("/static/") else "no-store"
                more = HEADERS if b"cache-control" in there else {**HEADERS, "cache-control": fresh}
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in more.items())]
            await send(message)

        async def receive_some() -> MutableMapping[str, Any]:
            message = await receive()
            left[0] -= len(message.get("body", b""))
            if left[0] < 0:
                raise _too_large()
            return message

        try:
            self._access.require_own_name(headers.get("host"))
            if scope["method"] not in ("GET", "HEAD"):
                self._access.require_own_page(headers.get("origin"), headers.get("sec-fetch-site"), headers.get("host"))
            size = headers.get("content-length", "0")
            if not size.isdecimal() or int(size[:20]) > MOST_BODY_BYTES:
                raise _too_large()
            if int(size) > MOST_STRANGER_BYTES or "transfer-encoding" in headers:
                who(self._access, Request(scope))
            await self._app(scope, receive_some, send_safely)
        except MasksieveError as error:
            if started[0]:
                raise
            await refused(error)(scope, receive, send_safely)


def _too_large() -> TooLarge:
    return TooLarge(f"a body of at most {MOST_BODY_BYTES >> 20} MB", "more", "send less at a time")
