"""The pages at `/`, `/docs` and `/report`: headers and content."""

from __future__ import annotations

import base64
import hashlib
import re
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path, PurePosixPath

import httpx
import pytest

from service.pages import FOLDER, PAGE_FILES, PAGE_POLICY, report_policy
from service.problems import PROBLEMS
from tests.helpers.tiny_bundle import make_tiny_bundle
from tests.service.conftest import Served, paint, wait_for
from tests.service.test_service_problems import check

KEY = "some-key-0123456789"
SWAGGER_UI = files("fastapi_offline") / "static"
REPORT = "<!DOCTYPE html><html><head><style>p { color: red }</style></head><body><p>All of it</p></body></html>"
PATHS = ["/", "/docs", *(f"/page/{name}" for name in sorted(PAGE_FILES))]
SOURCES = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()}


@pytest.mark.parametrize("path", PATHS)
def test_each_file_comes_with_its_type_and_a_policy_that_lets_nothing_foreign_in(service: Served, path: str) -> None:
    answer = service.client.get(path)
    assert answer.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "camera=()" in answer.headers["permissions-policy"]
    kinds = {"": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    assert answer.headers["content-type"].startswith(kinds[PurePosixPath(path).suffix])


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/docs", "/page/swagger-ui-bundle.js"])
def test_a_browser_that_has_the_file_gets_304(service: Served, path: str) -> None:
    first = service.client.get(path)
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = service.client.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
        assert again.headers["content-security-policy"] == PAGE_POLICY
    assert service.client.get(path, headers={"if-none-match": '"other"'}).content == first.content
    assert first.headers["cache-control"] == "no-cache"


def test_head_says_what_get_would(service: Served) -> None:
    got, asked = service.client.get("/"), service.client.head("/")
    assert (asked.status_code, asked.content) == (200, b"")
    changing = {"date", "x-request-id"}
    assert {k: v for k, v in asked.headers.items() if k not in changing} == {
        k: v for k, v in got.headers.items() if k not in changing
    }


def test_other_methods_are_refused(service: Served) -> None:
    answer = service.client.post("/", content=b"x")
    check(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_what_is_no_file_of_the_page_is_not_found(service: Served) -> None:
    inside = ("", "index.html", "docs.html", "redoc.standalone.js", "../page.py", "%2e%2e/page.py")
    for path in ("/page", *(f"/page/{name}" for name in inside)):
        assert service.client.get(path).status_code == 404


class _Markup(HTMLParser):
    """Collector of references, inline code and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.inline: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.references += [value for name in ("src", "href") if (value := given.get(name))]
        self.ids += [value for name in ("id",) if (value := given.get(name))]
        if tag == "style" or (tag == "script" and "src" not in given) or "style" in given:
            self.inline.append(tag)
        self.inline += [name for name in given if name.startswith("on")]


@pytest.mark.parametrize("name", ["index", "docs"])
def test_the_html_has_nothing_inline_and_refers_to_nothing_outside(name: str) -> None:
    markup = _Markup()
    markup.feed(SOURCES[f"{name}.html"])
    assert markup.inline == []
    served = {path.removeprefix("/") for path in PATHS}
    others = {"openapi.json", "report"}
    assert set(markup.references) <= served | others  # relative, for proxies with a prefix
    assert f"page/{name.replace('index', 'page')}.js" in markup.references
    assert len(markup.ids) == len(set(markup.ids))


def test_styles_and_scripts_load_nothing_from_outside_and_make_no_markup_of_text() -> None:
    for name, source in SOURCES.items():
        found = set(re.findall(r"https?://[^\s\"'`)]+", source)) - {"http://www.w3.org/2000/svg"}
        assert not found, f"{name}: {found}"
    assert not re.search(r"@import|url\(", SOURCES["page.css"])
    for name, source in SOURCES.items():
        if name.endswith(".js"):
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(", source)
            imported = re.findall(r'from "\./([^"]+)"', source)
            assert all(module in PAGE_FILES for module in imported)


def test_the_api_page_is_swagger_ui_that_asks_nobody_else() -> None:
    version = re.search(rb'PACKAGE_VERSION:"(\d+)', (SWAGGER_UI / "swagger-ui-bundle.js").read_bytes())
    assert version
    assert int(version[1]) >= 5  # older versions do not support OpenAPI 3.1
    loaded = re.findall(rb"url\(.{6}|@import", (SWAGGER_UI / "swagger-ui.css").read_bytes())
    assert {part.strip(b"url(\"'")[:5] for part in loaded} == {b"data:"}
    assert "validatorUrl: null" in SOURCES["docs.js"]  # by default the script calls another server


def test_scripts_name_only_elements_that_there_are() -> None:
    ids = set(re.findall(r'\bid="([^"]+)"', SOURCES["index.html"]))
    named = {name for source in SOURCES.values() for name in re.findall(r'\$\("([^"]+)"\)', source)}
    assert named
    assert named <= ids


def test_the_wheel_takes_every_file_along() -> None:
    root = FOLDER.parents[1]
    declared = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packed = {file for pattern in declared["package-data"]["service"] for file in (root / "service").glob(pattern)}
    assert set(FOLDER.iterdir()) <= packed


def test_every_problem_of_an_image_has_plain_words() -> None:
    table = SOURCES["words.js"].partition("const ADVICE = {")[2].partition("};")[0]
    worded = set(re.findall(r"^  (\w+): \[", table, re.MULTILINE))
    assert worded - {"network"} <= set(PROBLEMS)
    not_for_people = {
        *("views", "top_k", "missing_file", "too_many_files", "label", "report_not_found", "invalid_request"),
        *("malformed_body", "bad_request", "unsupported_media_type", "not_found", "method_not_allowed"),
    }
    assert set(PROBLEMS) - worded == not_for_people


def test_the_page_needs_no_key_and_the_report_does(serve: Callable[..., Served]) -> None:
    served = serve(api_keys=KEY)
    for path in PATHS:
        assert served.client.get(path).status_code == 200
    check(served.client.get("/report"), 401, "unauthorized")
    check(served.client.get("/report", headers={"x-api-key": KEY}), 404, "report_not_found")


def test_the_page_counts_as_no_image(serve: Callable[..., Served]) -> None:
    served = serve(rate_limit=0.01, rate_burst=1)
    for path in [*PATHS, *PATHS]:
        assert served.client.get(path).status_code == 200
    assert served.predict(paint(), views=1).status_code == 200


def test_the_page_is_counted_under_its_own_paths(serve: Callable[..., Served]) -> None:
    served = serve()
    served.client.get("/page/page.css")
    counted = 'transferapp_requests_total{route="/page/{name}",status="200"} 1.0'
    wait_for(lambda: counted in served.client.get("/metrics").text)


# The report


@pytest.fixture
def reported(serve: Callable[..., Served], tmp_path: Path) -> Served:
    make_tiny_bundle(tmp_path / "bare")
    make_tiny_bundle(tmp_path / "told", report=REPORT)
    served = serve(models=tmp_path, default_model="told", watch_seconds=0)
    wait_for(lambda: served.client.get("/readyz").status_code == 200)
    return served


def test_a_report_is_served_as_it_was_written_and_may_do_nothing(reported: Served) -> None:
    answer = reported.client.get("/report")
    assert answer.text == REPORT
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    digest = base64.b64encode(hashlib.sha256(b"p { color: red }").digest()).decode()
    assert policy["default-src"] == "'none'"
    assert policy["style-src"] == f"'sha256-{digest}'"
    assert "script-src" not in policy
    assert "allow-scripts" not in policy["sandbox"]
    assert reported.client.get("/info").json()["report"] is True


def test_a_report_without_styles_is_allowed_none() -> None:
    assert "style-src 'none'" in report_policy(b"<p>plain</p>")


def test_the_report_is_cached_and_head_has_no_body(reported: Served) -> None:
    tag = reported.client.get("/report").headers["etag"]
    assert reported.client.get("/report", headers={"if-none-match": tag}).status_code == 304
    head = reported.client.head("/report", params={"model": "told"})
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(REPORT)))


def test_a_bundle_without_a_report_says_so(reported: Served) -> None:
    check(reported.client.get("/report", params={"model": "bare"}), 404, "report_not_found")
    assert reported.client.get("/info", params={"model": "bare"}).json()["report"] is False
    check(reported.client.get("/report", params={"model": "none"}), 404, "model_not_found")


def test_a_report_that_was_altered_is_not_shown(reported: Served, tmp_path: Path) -> None:
    (tmp_path / "told" / "report.html").write_text(REPORT.replace("All", "None"), encoding="utf-8")
    answer: httpx.Response = reported.client.get("/report")
    check(answer, 404, "report_not_found")
    assert str(tmp_path) not in answer.text
