"""Errors as RFC 9457 documents: `application/problem+json` with a stable `code`.

Members beyond the RFC's own: `code`, `request_id`, `limit` (the setting that was exceeded, and its value), `hint`; below `/v2`
also `error`, as the Open Inference Protocol has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Scope

from transferapp.errors import ImageError, TransferAppError, UsageError

MEDIA_TYPE = "application/problem+json"


class Kind(NamedTuple):
    """HTTP status, title and default hint of an error code."""

    status: int
    title: str
    hint: str


_CONVERT = "Convert it to JPEG or PNG"
_COMPRESS = "Send a smaller or more strongly compressed image"
_SEND_AGAIN = "Send the whole file again, or save the image anew"
_SEND = (
    "Send the image as the field `file` of a form (curl -F file=@image.jpg URL), as the body itself "
    "(curl --data-binary @image.jpg -H 'Content-Type: image/jpeg' URL), or in base64 as `image` of a JSON object"
)
_WAIT = "Try again after the seconds in Retry-After"
_REPORT = "Try again; if it happens again, report the request_id to the operator"

PROBLEMS: Mapping[str, Kind] = {
    # the image
    "empty_file": Kind(422, "The file is empty", "Send an image"),
    "unsupported_format": Kind(415, "Not an image in a supported format", _CONVERT),
    "truncated": Kind(422, "The image is cut off", _SEND_AGAIN),
    "undecodable": Kind(422, "The image cannot be decoded", _SEND_AGAIN),
    "too_many_bytes": Kind(413, "The file is too large", _COMPRESS),
    "too_many_pixels": Kind(413, "The image has too many pixels", "Scale it down"),
    "too_small": Kind(422, "The image is too small", "Send a larger image"),
    "aspect_ratio": Kind(422, "The image is too long and thin", "Crop it"),
    # the request
    "views": Kind(422, "Unknown number of views", "Ask for views=1, 10 or 50, or leave it out"),
    "top_k": Kind(422, "top_k is out of range", "Ask for a number of classes from 1, or leave it out"),
    "missing_file": Kind(422, "No image in the request", _SEND),
    "too_many_files": Kind(422, "Too many images", "Send them in several requests"),
    "label": Kind(422, "No such class", "GET /info lists the classes; leave it out for the most probable one"),
    "model_not_found": Kind(404, "No such model", "GET /models lists the models"),
    "report_not_found": Kind(404, "The model has no report", "GET /info describes the model, too"),
    "unauthorized": Kind(
        401, "A key is needed", "Send one of the service's keys as `Authorization: Bearer KEY` or as `X-API-Key: KEY`"
    ),
    "rate_limited": Kind(429, "Too many images in too short a time", _WAIT),
    "invalid_request": Kind(422, "The request is invalid", "GET /openapi.json describes valid requests"),
    "malformed_body": Kind(
        400, "The body does not match its header", "Let an HTTP library build the form and its Content-Type header"
    ),
    "bad_request": Kind(400, "Not an HTTP request", "Let an HTTP library build the request"),
    "unsupported_media_type": Kind(415, "Unsupported content type", _SEND),
    "body_too_large": Kind(413, "The body is too large", _COMPRESS),
    "body_too_slow": Kind(408, "The body arrived too slowly", "Send it over a faster connection, or a smaller image"),
    "not_found": Kind(404, "No such page", "GET /openapi.json lists the pages"),
    "method_not_allowed": Kind(405, "Method not allowed", "The header Allow lists the methods that are"),
    # the service
    "overloaded": Kind(503, "Too many requests at once", _WAIT),
    "timeout": Kind(503, "The answer took too long", f"{_WAIT}, or ask for fewer views"),
    "resources": Kind(503, "Not enough memory", "Try again later, or send a smaller image"),
    "not_ready": Kind(503, "The model is not ready", "Try again in a second; GET /readyz answers 200 once it is"),
    "model_output_invalid": Kind(500, "The model gave no usable answer", _REPORT),
    "internal": Kind(500, "Internal error", _REPORT),
}


class RequestError(TransferAppError):
    """A request that the service refuses.

    Args:
        what: One sentence: what happened.
        code: A key of `PROBLEMS`.
        limit: The setting that was exceeded, and its value; by default the application's for that code.
        headers: Additional headers of the answer.
        members: Additional members of the document.
        **parts: `expected`, `got`, `hint` as for every error.
    """

    def __init__(
        self,
        what: str,
        *,
        code: str,
        limit: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
        **parts: str | None,
    ) -> None:
        super().__init__(what, code=code, **parts)
        self.limit = limit
        self.headers = headers
        self.members = members or {}


def problem_response(error: TransferAppError, scope: Scope) -> JSONResponse:
    """Return the answer to a request that failed with `error`, whose code is stored in the scope for log and metrics."""
    document = problem_document(error, scope)
    scope.setdefault("state", {})["code"] = document["code"]
    headers = error.headers if isinstance(error, RequestError) else None
    return JSONResponse(document, document["status"], headers=headers, media_type=MEDIA_TYPE)


def problem_document(error: TransferAppError, scope: Scope) -> dict[str, Any]:
    """Return the members of a problem document. Limits that the error does not carry are those of the application."""
    code = _known_code(error)
    kind = PROBLEMS[code]
    refused = error if isinstance(error, RequestError) else None
    limit = (refused and refused.limit) or (scope["app"].state.limits.get(code) if "app" in scope else None)
    detail = str(TransferAppError(error.what, expected=error.expected, got=error.got))
    return {
        "type": f"urn:transferapp:problem:{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "code": code,
        "request_id": scope.get("state", {}).get("request_id"),
        **({"limit": dict(limit)} if limit else {}),
        "hint": (error.hint or kind.hint).rstrip(".") + ".",
        **(refused.members if refused else {}),
        **({"error": detail} if path_below_root(scope).startswith("/v2/") else {}),
    }


def path_below_root(scope: Scope) -> str:
    """Return the path of a request without the prefix that a proxy keeps; `/` where nothing is left."""
    return str(scope.get("path", "").removeprefix(scope.get("root_path", ""))) or "/"


def internal_error() -> RequestError:
    """Return the error for an unexpected exception, whose text belongs in the log only."""
    return RequestError("An unexpected error occurred in the service", code="internal")


def _known_code(error: TransferAppError) -> str:
    """Return the error's code, or one for its class where `PROBLEMS` lacks it."""
    if error.code in PROBLEMS:
        return error.code
    if isinstance(error, ImageError):
        return "undecodable"
    return "invalid_request" if isinstance(error, UsageError) else "internal"


def install(app: FastAPI) -> None:
    """Make `app` answer every error of a request with a problem document."""

    async def on_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, TransferAppError)
        return problem_response(error, request.scope)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        prefix = request.scope.get("root_path", "")
        if prefix and request.scope["path"] == prefix:
            return RedirectResponse(f"{prefix}/")  # links on the page are relative
        other = "invalid_request" if error.status_code < 500 else "internal"
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, other)
        what = f"{request.method} {request.url.path[:100]}: {error.detail}"
        return problem_response(RequestError(what, code=code, headers=error.headers), request.scope)

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        name = str(first["loc"][-1])
        refusal = RequestError(
            f"{name}: {first['msg']}",
            code=name if name in PROBLEMS else "invalid_request",
            got=repr(first.get("input"))[:100],
        )
        return problem_response(refusal, request.scope)

    app.add_exception_handler(TransferAppError, on_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)


def problems_table() -> str:
    """Return every code as a Markdown table for the documentation."""
    rows = ["| code | status | title | hint |", "|---|---|---|---|"]
    rows += [f"| `{code}` | {kind.status} | {kind.title} | {kind.hint} |" for code, kind in PROBLEMS.items()]
    return "\n".join(rows) + "\n"


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Describe the error answers with these codes for OpenAPI: one entry per status, one example per code."""
    answers: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        kind = PROBLEMS[code]
        scope = {"state": {"request_id": "5f0c6f8e2b3a4d1c"}}
        example = problem_document(TransferAppError(kind.title, code=code), scope)
        schema = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
        answer = answers.setdefault(kind.status, {"description": "", "content": {MEDIA_TYPE: schema}})
        examples = answer["content"][MEDIA_TYPE]["examples"]
        examples[code] = {"summary": kind.title, "value": example}
        answer["description"] = ", ".join(f"`{name}`" for name in examples)
    return answers
