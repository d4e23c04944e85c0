"""The page at `/` for people, the API's at `/docs`, and the bundle's report: files out of memory, under policies that let
nothing foreign in.

The pages stand before the gate: they and their assets need no key and count as no image, whatever the settings; what they
ask for then does. Their files lie in `service/page/`, plain HTML, CSS and JavaScript that the browser gets as they are;
Swagger UI, which shows the API, comes out of the package `fastapi-offline`, so that `/docs` needs no other server.
The report is a bundle's own, behind the gate like everything that a bundle holds.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Query, Request, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.problems import Refusal, documented, problem_response
from transferapp.errors import BundleError

router = APIRouter()

FOLDER = Path(__file__).with_suffix("")
REPORT = "report.html"

SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")
"""What is served of the package `fastapi-offline`; none of its functions is used."""

PAGES = {"index.html": "/", "docs.html": "/docs"}
"""Files with an address of their own; all others are below `/page/`."""

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_SHUT = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; " + _SHUT
)

SAFETY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Kept, but asked for anew each time: after an update nobody runs an old script against a new service.
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class Asset:
    """One file of a page.

    Attributes:
        path: Where it is served.
        body: Its bytes.
        headers: Everything that goes with it.
    """

    path: str
    body: bytes
    headers: Mapping[str, str]


@cache
def assets() -> Mapping[str, Asset]:
    """Every file of the pages by the path it is served at."""
    bodies = {file.name: file.read_bytes() for file in FOLDER.iterdir() if file.suffix in CONTENT_TYPES}
    swagger_ui = files("fastapi_offline") / "static"
    bodies.update({name: (swagger_ui / name).read_bytes() for name in SWAGGER_UI})
    found = {}
    for name, body in sorted(bodies.items()):
        path = PAGES.get(name, f"/page/{name}")
        headers = {
            "content-type": CONTENT_TYPES[Path(name).suffix],
            "content-security-policy": PAGE_POLICY,
            "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
            **SAFETY,
        }
        found[path] = Asset(path, body, headers)
    return found


class Page:
    """ASGI middleware that answers for the pages' own paths and passes everything else on.

    Args:
        app: What lies further in: the gate, and all that it guards.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._assets = assets()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asset = self._assets.get(scope["path"]) if scope["type"] == "http" else None
        if asset is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = asset  # its path is what the metrics count under
        if scope["method"] not in ("GET", "HEAD"):
            refusal = Refusal(
                f"{scope['method']} {asset.path}: Method Not Allowed",
                code="method_not_allowed",
                headers={"Allow": "GET, HEAD"},
            )
            await problem_response(refusal, scope)(scope, receive, send)
            return
        if asset.path not in PAGES.values():
            scope["state"]["log_level"] = logging.DEBUG
        await cached(asset.body, asset.headers, scope)(scope, receive, send)


def cached(body: bytes, headers: Mapping[str, str], scope: Scope) -> Response:
    """The answer with this body; 304 without one where the browser has it already, and for HEAD the headers alone."""
    known = Headers(scope=scope).get("if-none-match", "")
    if _matches(known, headers["etag"]):
        kept = {name: value for name, value in headers.items() if name != "content-type"}
        return Response(status_code=304, headers=kept)
    if scope["method"] == "HEAD":
        return Response(headers={**headers, "content-length": str(len(body))})
    return Response(body, headers=dict(headers))


def _matches(if_none_match: str, etag: str) -> bool:
    """Whether a header names this tag (RFC 9110, 13.1.2): a list, each perhaps marked as weak, or a star."""
    named = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in named or named == ["*"]


@router.head("/report", include_in_schema=False)
@router.get(
    "/report",
    summary="A model's report",
    response_class=Response,
    responses={
        200: {"description": "The report of the fit, one HTML page.", "content": {"text/html": {}}},
        304: {"description": "It is the one that If-None-Match names."},
        **documented("model_not_found", "report_not_found", "not_ready"),
    },
)
def report(
    request: Request,
    model: str | None = Query(None, description="The model. Default: the default one; GET /models says which."),
) -> Response:
    """Show how the model was made and how it did when it was tested: the report that its bundle brings."""
    slot = request.app.state.models.slot(model)
    bundle = slot.get().bundle
    if not has_report(bundle.manifest):
        raise Refusal(f"The bundle of {slot.name} has no {REPORT}", code="report_not_found")
    try:
        page = bundle.read(REPORT)
    except BundleError as error:  # not its own words: they name the folder
        raise Refusal(
            f"The {REPORT} of {slot.name} is missing or is not the one that was written", code="report_not_found"
        ) from error
    headers = {
        "content-type": CONTENT_TYPES[".html"],
        "content-security-policy": report_policy(page),
        "etag": f'"{hashlib.sha256(page).hexdigest()[:32]}"',
        **{
            name: value for name, value in SAFETY.items() if name != "cross-origin-opener-policy"
        },  # the sandbox sees to it
    }
    return cached(page, headers, request.scope)


def has_report(manifest: Mapping[str, object]) -> bool:
    """Whether a bundle brings a report."""
    files = manifest["files"]
    return isinstance(files, Mapping) and REPORT in files


def report_policy(page: bytes) -> str:
    """The policy for a report: its own style sheets by their hashes, images inside it, and nothing else.

    A bundle may come from anywhere. So its page runs no script, asks for nothing, and is of no origin (`sandbox`): it could
    not reach the service even if there were a way to run something.
    """
    sheets = re.findall(rb"<style>(.*?)</style>", page, re.DOTALL)
    hashes = sorted({base64.b64encode(hashlib.sha256(sheet).digest()).decode() for sheet in sheets})
    styles = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return f"default-src 'none'; style-src {styles}; img-src data:; {_SHUT}; sandbox allow-popups"
