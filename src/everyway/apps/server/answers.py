"""What a caller is told of a mistake: a status and the JSON that OpenAI's clients read, whose
exceptions are of these statuses."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from everyway.apps.files import FileError
from everyway.apps.server.border import TooLarge
from everyway.apps.server.scheduler import (
    Busy,
    Cancelled,
    Closed,
    Expired,
    Refused,
    Returned,
    UnknownModel,
)
from everyway.errors import EverywayError


class Fault(BaseModel):
    """One line that says how to mend it, and its kind."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Refusal(BaseModel):
    """The body of every answer that is none of 2xx."""

    error: Fault


class Missing(EverywayError):
    """There is nothing of that name, or not any more."""


class Conflict(EverywayError):
    """A job is not in the state that is asked for."""


INVALID, SERVER = "invalid_request_error", "server_error"
STATUS: dict[type[Exception], tuple[int, str, str | None]] = {
    Busy: (429, "rate_limit_error", "rate_limit_exceeded"),
    Closed: (503, SERVER, "shutting_down"),
    Returned: (503, SERVER, "shutting_down"),
    Expired: (504, SERVER, "timeout"),
    Cancelled: (409, INVALID, "cancelled"),
    Conflict: (409, INVALID, "conflict"),
    Refused: (400, INVALID, "content_policy_violation"),
    TooLarge: (413, INVALID, "too_large"),
    FileError: (507, SERVER, "disk_full"),
    UnknownModel: (404, INVALID, "model_not_found"),
    Missing: (404, INVALID, "not_found"),
    EverywayError: (400, INVALID, None),
}
"""Kind of error -> status, and OpenAI's type and code; of several the most special counts."""
RETRY = {429, 503}
FULL = {errno.ENOSPC, errno.EDQUOT}


def refusal(error: Exception, request_id: str = "") -> tuple[int, Fault, Mapping[str, str]]:
    """(status, what is said, headers) of an error; of a fault of ours nothing but where to look."""
    kind = next((k for k in type(error).__mro__ if k in STATUS), None)
    if kind is not None:
        status, type_, code = STATUS[kind]
        wait = round(getattr(error, "retry_after", 5))
        headers = {"retry-after": str(wait)} if status in RETRY else {}
        message = " ".join(str(error).split())
        return status, Fault(message=message, type=type_, code=code), headers
    if isinstance(error, OSError) and error.errno in FULL:
        said = "the server's disk is full; ask again later"
        return 507, Fault(message=said, type=SERVER, code="disk_full"), {}
    said = f"a fault of the server; its log has more under {request_id or 'this time'}"
    return 500, Fault(message=said, type=SERVER, code="internal"), {}


def answer(error: Exception, request_id: str = "") -> JSONResponse:
    """The whole answer."""
    status, fault, headers = refusal(error, request_id)
    return JSONResponse(Refusal(error=fault).model_dump(), status, dict(headers))


def plain(status: int, message: str, code: str | None = None) -> JSONResponse:
    """An answer that no error of ours stands behind."""
    fault = Fault(message=message, type=INVALID if status < 500 else SERVER, code=code)
    return JSONResponse(Refusal(error=fault).model_dump(), status)


async def of_validation(request: Request, error: Exception) -> JSONResponse:
    """Of what FastAPI found wrong with a request, the first."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    message = first["msg"].removeprefix("Value error, ")
    said = f"{where}: {message}" if where and first["type"] != "value_error" else message
    fault = Fault(message=said, type=INVALID, param=where or None)
    return JSONResponse(Refusal(error=fault).model_dump(), 400)


async def of_http(request: Request, error: Exception) -> JSONResponse:
    """Of what Starlette refuses itself, as a path that is none."""
    assert isinstance(error, HTTPException)
    return plain(error.status_code, str(error.detail))


async def of_ours(request: Request, error: Exception) -> JSONResponse:
    return answer(error)


HANDLERS: dict[Any, Any] = {
    RequestValidationError: of_validation,
    HTTPException: of_http,
    EverywayError: of_ours,
}
"""As FastAPI takes them; any other error is answered where requests have their names."""
