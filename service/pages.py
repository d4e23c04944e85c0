"""Pages for people: `/`, `/docs` with the API in Swagger UI, and `/report` of a bundle.

The files of the first two are in `service/static/`, served as they are; Swagger UI comes from the package `fastapi-offline`,
so that `/docs` works without the internet. Policies in the headers let no page load anything from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Query, Request, Response
from starlette.staticfiles import StaticFiles

from service.problems import RequestError, documented
from transferapp.errors import BundleError

router = APIRouter()

FOLDER = Path(__file__).parent / "static"
REPORT = "report.html"

SWAGGER_UI = frozenset({"swagger-ui-bundle.js", "swagger-ui.css"})
"""Files served from the package `fastapi-offline`."""

PAGE_FILES = frozenset(file.name for file in FOLDER.iterdir() if file.suffix != ".html") | SWAGGER_UI
"""Files served below `/page/`."""

_CLOSED = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    + _CLOSED
)

SECURITY_HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Cached, but checked each time: after an update nobody runs an old script against a new service.
    "cache-control": "no-cache",
}


class PageFiles(StaticFiles):
    """Static files with security headers."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(SECURITY_HEADERS)
        return response


_FILES = PageFiles(directory=FOLDER, packages=[("fastapi_offline", "static")])


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def index(request: Request) -> Response:
    """Return the page that classifies photos."""
    return await _FILES.get_response("index.html", request.scope)


@router.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
async def docs(request: Request) -> Response:
    """Return the page that describes the API."""
    return await _FILES.get_response("docs.html", request.scope)


@router.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
async def page_file(request: Request, name: str) -> Response:
    """Return a script, style sheet or image of the pages."""
    if name not in PAGE_FILES:
        raise HTTPException(404)
    request.state.log_level = logging.DEBUG
    return await _FILES.get_response(name, request.scope)


@router.head("/report", include_in_schema=False)
@router.get(
    "/report",
    summary="Show a model's report",
    response_class=Response,
    responses={
        200: {"description": "The report of the fit, one HTML page.", "content": {"text/html": {}}},
        304: {"description": "If-None-Match names this report."},
        **documented("model_not_found", "report_not_found", "not_ready"),
    },
)
def report(
    request: Request,
    model: str | None = Query(None, description="Name of the model. Default: the default one; see GET /models."),
) -> Response:
    """Return the report in the model's bundle: how it was trained and its test metrics."""
    slot = request.app.state.models.slot(model)
    bundle = slot.get().bundle
    if not has_report(bundle.manifest):
        raise RequestError(f"The bundle of {slot.name} has no {REPORT}", code="report_not_found")
    try:
        page = bundle.read(REPORT)
    except BundleError as error:  # its message names the folder
        raise RequestError(f"The {REPORT} of {slot.name} is missing or altered", code="report_not_found") from error
    headers = {**SECURITY_HEADERS, "content-security-policy": report_policy(page)}
    headers["etag"] = f'"{hashlib.sha256(page).hexdigest()[:32]}"'
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(page, media_type="text/html", headers=headers)


def has_report(manifest: Mapping[str, object]) -> bool:
    """Return whether a bundle has a report."""
    files = manifest["files"]
    return isinstance(files, Mapping) and REPORT in files


def report_policy(page: bytes) -> str:
    """Return the Content-Security-Policy of a report: its own style sheets by their hashes, images inside it, nothing else.

    A bundle may come from anywhere. Therefore its page runs no script, loads nothing, and has no origin (`sandbox`): it
    could not reach the service even if it did run something.
    """
    sheets = re.findall(rb"<style>(.*?)</style>", page, re.DOTALL)
    hashes = sorted({base64.b64encode(hashlib.sha256(sheet).digest()).decode() for sheet in sheets})
    styles = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return f"default-src 'none'; style-src {styles}; img-src data:; {_CLOSED}; sandbox allow-popups"
