"""Every error that leaves the gateway by HTTP leaves through here, in OpenAI's envelope."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import hdrs, web

from wire import headers
from wire.errors import ErrorCode, TtsError

log = logging.getLogger(__name__)

REQUEST_ID = web.RequestKey("request_id", str)
# A client's own id is kept when it can do no harm in a log line, a header or a worker; any other is replaced.
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

BODY_SECONDS = 30.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def error_response(error: TtsError, request_id: str | None = None) -> web.Response:
    """Return the response for an error: its status, its envelope, Retry-After where waiting helps."""
    extra = {} if request_id is None else {headers.REQUEST_ID: request_id}
    if error.retry_after_seconds is not None:
        extra["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if error.code is ErrorCode.UNAUTHORIZED:
        extra["WWW-Authenticate"] = "Bearer"
    return web.json_response(error.envelope(), status=error.status, headers=extra)


@web.middleware
async def errors_as_envelopes(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give every request its id, and every failed one the envelope; a response that has begun is not touched here."""
    given = request.headers.getall(headers.REQUEST_ID, [])
    sane = len(given) == 1 and SANE_REQUEST_ID.fullmatch(given[0]) is not None
    request[REQUEST_ID] = given[0] if sane else secrets.token_hex(8)
    try:
        _check_framing(request)
        return await handler(request)
    except TtsError as error:
        return error_response(error, request.get(REQUEST_ID))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return error_response(_translated(request, error), request.get(REQUEST_ID))
    except Exception:  # request boundary
        log.exception("request failed: %s %s", request.method, request.path)
        ours = TtsError(ErrorCode.INTERNAL, "The gateway failed on this request; its log has the reason.")
        return error_response(ours, request.get(REQUEST_ID))


def _check_framing(request: web.Request) -> None:
    """Refuse a body whose end a proxy in front may have seen elsewhere; the connection is not used again.

    aiohttp's parser refuses all that is malformed. A list of codings is not, but whoever does not know the first one
    may overlook the last.

    Raises:
        TtsError: `invalid_body`.
    """
    coding = request.headers.get(hdrs.TRANSFER_ENCODING, "chunked")
    if coding.lower() != "chunked":
        request.protocol.close()
        raise TtsError(
            ErrorCode.INVALID_BODY, f"The Transfer-Encoding is {coding[:40]!r}; send it chunked or not at all."
        )


def _translated(request: web.Request, error: web.HTTPException) -> TtsError:
    match error:
        case web.HTTPNotFound():
            return TtsError(ErrorCode.NOT_FOUND, f"There is no {request.path[:200]!r} here. See GET /openapi.json.")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return TtsError(
                ErrorCode.METHOD_NOT_ALLOWED, f"{request.method} is not allowed on {request.path}; use {allowed}."
            )
        case web.HTTPRequestEntityTooLarge():
            return TtsError(ErrorCode.BODY_TOO_LARGE, f"The body is larger than {request.client_max_size} bytes.")
        case _:
            return TtsError(ErrorCode.INVALID_BODY, error.reason)


async def read_json(request: web.Request, timeout_seconds: float = BODY_SECONDS) -> Mapping[str, Any]:
    """Return the body as a JSON object; it must be there within the time.

    Raises:
        TtsError: another content type, a compressed body, one that is too large or too slow, or no JSON object.
    """
    if request.content_type != "application/json":
        raise TtsError(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE,
            f"The Content-Type is {request.content_type!r}; send JSON, with the header Content-Type: application/json.",
        )
    coding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if coding.lower() != "identity":
        raise TtsError(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE, f"The Content-Encoding is {coding[:40]!r}; send the JSON as it is."
        )
    try:
        async with asyncio.timeout(timeout_seconds):
            data = await request.read()
    except TimeoutError:
        raise TtsError(
            ErrorCode.BODY_TIMEOUT, f"The body was not there within {timeout_seconds:g} s. Send it faster."
        ) from None
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or bytes that are no UTF-8
        raise TtsError(ErrorCode.INVALID_BODY, f"The body is not JSON: {str(error)[:200]}") from None
    if not isinstance(body, dict):
        raise TtsError(ErrorCode.INVALID_BODY, f"The body must be a JSON object, not {type(body).__name__}.")
    return body
