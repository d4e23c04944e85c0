"""Every error as an RFC 9457 document: `application/problem+json` with a stable `code`.

A code names one fault for good; `PROBLEMS` says which HTTP status and title it has. The members beyond the RFC's own
are `code`, `request_id`, `limit` (the setting that was hit, and its value) and `mend` (what to do about it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from transferapp.errors import ImageError, TransferAppError, UsageError

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:transferapp:problem:"


class Kind(NamedTuple):
    """What a code means to HTTP.

    Attributes:
        status: The HTTP status.
        title: The same sentence for every problem with this code.
        mend: What to do about it, where the error itself has no better advice.
    """

    status: int
    title: str
    mend: str


_CONVERT = "Convert it to JPEG or PNG"
_SEND_AGAIN = "Send the whole file again, or save the image anew"
_SEND = (
    "Send the image as the field `file` of a form (curl -F file=@image.jpg URL), as the body itself "
    "(curl --data-binary @image.jpg -H 'Content-Type: image/jpeg' URL), or in base64 as `image` of a JSON object"
)
_WAIT = "Try again after the seconds that Retry-After names"
_REPORT = "Try again; if it happens again, report the request_id to whoever runs the service"

PROBLEMS: Mapping[str, Kind] = {
    # the image
    "empty_file": Kind(422, "The file is empty", "Send an image"),
    "unsupported_format": Kind(415, "Not an image in a supported format", _CONVERT),
    "truncated": Kind(422, "The image is cut off", _SEND_AGAIN),
    "undecodable": Kind(422, "The image cannot be decoded", _SEND_AGAIN),
    "too_many_bytes": Kind(413, "The file is too large", "Send a smaller or more strongly compressed image"),
    "too_many_pixels": Kind(413, "The image has too many pixels", "Scale it down"),
    "too_small": Kind(422, "The image is too small", "Send a larger image"),
    "aspect_ratio": Kind(422, "The image is too long and thin", "Crop it"),
    # the request
    "views": Kind(422, "Unknown number of views", "Ask for views=1, 10 or 50, or leave it out"),
    "top_k": Kind(422, "top_k is out of range", "Ask for a number of classes from 1, or leave it out"),
    "missing_file": Kind(422, "No image in the form", _SEND),
    "too_many_files": Kind(422, "Too many images", "Send them in several requests"),
    "label": Kind(422, "No such class", "GET /info lists the classes, or leave it out for the most probable one"),
    "model_not_found": Kind(404, "No such model", "GET /models lists what there is"),
    "report_not_found": Kind(404, "The model has no report", "GET /info describes the model, too"),
    "unauthorized": Kind(
        401, "A key is needed", "Send one of the service's keys as `Authorization: Bearer KEY` or as `X-API-Key: KEY`"
    ),
    "rate_limited": Kind(429, "Too many images in too short a time", _WAIT),
    "invalid_request": Kind(422, "The request cannot be understood", "GET /openapi.json says what it must be"),
    "malformed_body": Kind(
        400,
        "The body is not what its header says",
        "Let an HTTP library build the form, its Content-Type header included",
    ),
    "bad_request": Kind(400, "Not an HTTP request", "Let an HTTP library build the request"),
    "unsupported_media_type": Kind(415, "Unsupported content type", _SEND),
    "body_too_large": Kind(413, "The body is too large", "Send a smaller or more strongly compressed image"),
    "body_too_slow": Kind(408, "The body came too slowly", "Send it over a faster connection, or a smaller one"),
    "not_found": Kind(404, "No such page", "GET /openapi.json lists what there is"),
    "method_not_allowed": Kind(405, "Method not allowed", "The header Allow names those that are"),
    # the service
    "overloaded": Kind(503, "Too many requests at once", _WAIT),
    "timeout": Kind(503, "The answer took too long", f"{_WAIT}, or ask for fewer views"),
    "resources": Kind(503, "Not enough memory", "Try again later, or send a smaller image"),
    "not_ready": Kind(503, "The model is not ready", "Try again in a second; GET /readyz tells when it is"),
    "model_output_invalid": Kind(500, "The model gave no usable answer", _REPORT),
    "internal": Kind(500, "Internal error", _REPORT),
}

_BY_STATUS = {404: "not_found", 405: "method_not_allowed"}


class Refusal(TransferAppError):  # noqa: N818 - a refusal is no fault of the service
    """A request that the service does not carry out.

    Args:
        what: One sentence: what happened.
        code: A key of `PROBLEMS`.
        limit: The setting that was hit, by its name.
        headers: Sent with the answer.
        members: Further members of the document.
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


def request_id_of(scope: Scope) -> str | None:
    """The id that the outermost layer gave this request."""
    identifier = scope.get("state", {}).get("request_id")
    return None if identifier is None else str(identifier)


def problem_response(error: TransferAppError, scope: Scope, limits: Mapping[str, Any] | None = None) -> JSONResponse:
    """The answer to a request that failed with `error`.

    Args:
        error: What happened.
        scope: The request, for its id; the code is left there for the log.
        limits: For errors that do not carry their limit: code to limit.
    """
    code, kind = _classify(error)
    scope.setdefault("state", {})["code"] = code
    document = problem_document(error, request_id_of(scope), limits)
    return JSONResponse(document, kind.status, headers=getattr(error, "headers", None), media_type=MEDIA_TYPE)


def problem_document(
    error: TransferAppError, request_id: str | None, limits: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The members of a problem document; arguments as for `problem_response`."""
    code, kind = _classify(error)
    detail = TransferAppError(error.what, expected=error.expected, got=error.got)
    document: dict[str, Any] = {
        "type": TYPE_PREFIX + code,
        "title": kind.title,
        "status": kind.status,
        "detail": str(detail),
        "code": code,
        "request_id": request_id,
    }
    limit = getattr(error, "limit", None) or (limits or {}).get(code)
    if limit:
        document["limit"] = dict(limit)
    document["mend"] = (error.hint or kind.mend).rstrip(".") + "."
    document.update(getattr(error, "members", {}))
    return document


def internal_problem(scope: Scope) -> JSONResponse:
    """The answer when something broke that nobody foresaw; what it was stands in the log, not in the answer."""
    return problem_response(Refusal("Something went wrong inside the service", code="internal"), scope)


def _classify(error: TransferAppError) -> tuple[str, Kind]:
    if error.code in PROBLEMS:
        return error.code, PROBLEMS[error.code]
    # A code this table does not know yet still gets the status of its family.
    for family, code in ((ImageError, "undecodable"), (UsageError, "invalid_request")):
        if isinstance(error, family):
            return code, PROBLEMS[code]
    return "internal", PROBLEMS["internal"]


def install(app: FastAPI, limits: Mapping[str, Any]) -> None:
    """Make `app` answer every error that a request can cause with a problem document.

    Args:
        app: The application.
        limits: Code to the limit behind it, for errors that do not carry theirs.
    """

    async def on_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, TransferAppError)
        return problem_response(error, request.scope, limits)

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = _BY_STATUS.get(error.status_code, "invalid_request" if error.status_code < 500 else "internal")
        path = request.url.path
        what = f"{request.method} {path[:100]}: {error.detail}"
        return problem_response(Refusal(what, code=code, headers=error.headers), request.scope)

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        name = str(first["loc"][-1])
        refusal = Refusal(
            f"{name}: {first['msg']}",
            code=name if name in PROBLEMS else "invalid_request",
            got=repr(first.get("input"))[:100],
            limit=limits.get(name),
        )
        return problem_response(refusal, request.scope)

    app.add_exception_handler(TransferAppError, on_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)


def problems_table() -> str:
    """Every code as a Markdown table, for the documentation."""
    rows = ["| code | status | what happened | what to do |", "|---|---|---|---|"]
    rows += [f"| `{code}` | {kind.status} | {kind.title} | {kind.mend} |" for code, kind in PROBLEMS.items()]
    return "\n".join(rows) + "\n"


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the error answers with these codes, one entry a status, one example a code."""
    answers: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        kind = PROBLEMS[code]
        answer = answers.setdefault(kind.status, {"description": "", "content": {MEDIA_TYPE: {}}})
        content = answer["content"][MEDIA_TYPE]
        content["schema"] = {"$ref": "#/components/schemas/Problem"}
        content.setdefault("examples", {})[code] = {
            "summary": kind.title,
            "value": {
                "type": TYPE_PREFIX + code,
                "title": kind.title,
                "status": kind.status,
                "detail": f"{kind.title}.",
                "code": code,
                "request_id": "5f0c6f8e2b3a4d1c",
                "mend": f"{kind.mend}.",
            },
        }
        answer["description"] = ", ".join(f"`{name}`" for name in content["examples"])
    return answers
