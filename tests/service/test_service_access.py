"""API keys and rate limits."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from service.middleware import access
from service.middleware.access import TokenBuckets
from service.registry import Phase
from service.settings import Settings, read_settings
from tests.service.conftest import PATIENCE, Served, paint
from tests.service.test_service_problems import check
from transferapp.errors import UsageError

ORIGIN = "https://site.example"
FIRST, SECOND = "first-key-0123456789", "second-key-0123456789"


@pytest.fixture(scope="module")
def keyed(bundle: Path) -> Iterator[Served]:
    keys = (SecretStr(FIRST), SecretStr(SECOND))
    served = Served(Settings(models=bundle, api_keys=keys))
    served.until(Phase.READY)
    yield served
    served.close()


def post(served: Served, **headers: str) -> httpx.Response:
    return served.client.post("/predict", content=paint(), headers={"content-type": "image/jpeg", **headers})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong-key-0123456789"},
        {"x-api-key": FIRST[:-1]},
        {"authorization": f"Basic {FIRST}"},
        {"authorization": "Bearer"},
        {"x-api-key": "é"},
    ],
)
def test_without_a_good_key_401(keyed: Served, headers: dict[str, str]) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = keyed.client.post("/predict", content=paint(), headers=encoded)
    check(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("key", [FIRST, SECOND])
def test_each_key_opens_in_either_header(keyed: Served, key: str) -> None:
    assert post(keyed, authorization=f"bearer {key}").status_code == 200
    assert post(keyed, **{"x-api-key": key}).status_code == 200


def test_a_request_without_a_key_is_answered_before_its_body_has_come(keyed: Served) -> None:
    with socket.create_connection(keyed.address, timeout=PATIENCE) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 401")


def test_what_tells_nothing_needs_no_key_and_all_else_does(keyed: Served) -> None:
    for path in ("/livez", "/readyz", "/openapi.json", "/docs"):
        assert keyed.client.get(path).status_code == 200
    for path in ("/info", "/models", "/metrics", "/nothing"):
        check(keyed.client.get(path), 401, "unauthorized")


def test_the_description_says_that_a_key_is_needed(keyed: Served) -> None:
    paths = keyed.client.get("/openapi.json").json()["paths"]
    assert paths["/predict"]["post"]["security"] == [{"bearer": []}, {"header": []}]
    assert "401" in paths["/predict"]["post"]["responses"]
    assert "security" not in paths["/livez"]["get"]


def test_every_key_is_compared_whole_and_in_constant_time(keyed: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(access, "hmac", Watched)
    for key in (FIRST, SECOND, "x"):
        compared.clear()
        post(keyed, **{"x-api-key": key})
        assert len(compared) == 2  # the first one's fitting does not end the search
        assert {len(side) for pair in compared for side in pair} == {32}


def test_beyond_the_rate_429(serve: Callable[..., Served]) -> None:
    served = serve(rate_limit=0.01, rate_burst=3)
    assert [served.predict(paint(), views=1).status_code for _ in range(3)] == [200] * 3
    answer = served.predict(paint())
    assert check(answer, 429, "rate_limited")["limit"] == {"rate_limit": 0.01, "rate_burst": 3}
    assert 90 <= int(answer.headers["retry-after"]) <= 100
    for path in ("/livez", "/readyz", "/info", "/models", "/metrics"):
        assert served.client.get(path).status_code == 200
    check(served.client.get("/report"), 404, "report_not_found")  # let in, and this bundle has none
    with socket.create_connection(served.address, timeout=PATIENCE) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 429")


def test_each_key_has_its_own_rate(serve: Callable[..., Served]) -> None:
    served = serve(rate_limit=0.01, rate_burst=1, api_keys=f"{FIRST},{SECOND}")
    assert post(served, **{"x-api-key": FIRST}).status_code == 200
    assert post(served, **{"x-api-key": FIRST}).status_code == 429
    assert post(served, **{"x-api-key": SECOND}).status_code == 200


@pytest.mark.parametrize(("views", "images"), [(50, 1), (10, 5)])
def test_a_request_is_charged_for_all_its_images(serve: Callable[..., Served], views: int, images: int) -> None:
    served = serve(rate_limit=0.01, rate_burst=5)
    files = [("file", paint())] * images
    assert served.client.post(f"/predict?views={views}", files=files).status_code == 200
    check(served.predict(paint()), 429, "rate_limited")


def test_a_bucket_fills_again() -> None:
    now = [0.0]
    buckets = TokenBuckets(rate=2, burst=3, now=lambda: now[0])
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a") == pytest.approx(0.5)
    assert buckets.take("b") == 0
    now[0] = 0.5
    assert buckets.take("a") == 0
    assert buckets.take("a") == pytest.approx(0.5)
    now[0] = 100.0
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0]  # no more than full, however long it waited
    assert buckets.take("a") > 0
    buckets.charge("a", 4)
    assert buckets.take("a") == pytest.approx(2.5)


def test_addresses_beyond_the_number_remembered_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MAX_BUCKETS", 10)
    buckets = TokenBuckets(rate=0.001, burst=1, now=lambda: 0.0)
    for number in range(1000):
        assert buckets.take(str(number)) == 0
    assert len(buckets._full_at) == 10
    assert buckets.take("999") > 0


def test_keys_that_are_too_short_are_refused_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_API_KEYS", f"{FIRST},secret")
    with pytest.raises(UsageError, match="TRANSFERAPP_API_KEYS") as refused:
        read_settings()
    assert "secret" not in str(refused.value)
    assert FIRST not in str(refused.value)
    monkeypatch.setenv("TRANSFERAPP_API_KEYS", f"{FIRST}, {SECOND},")
    settings = read_settings()
    assert [key.get_secret_value() for key in settings.api_keys] == [FIRST, SECOND]
    assert FIRST not in repr(settings)


# Pages of other origins


def preflight(served: Served, origin: str, path: str = "/predict") -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-api-key",
    }
    return served.client.options(path, headers=headers)


def test_other_origins_are_not_admitted_by_default(service: Served) -> None:
    check(preflight(service, ORIGIN), 405, "method_not_allowed")
    answer = service.client.get("/info", headers={"origin": ORIGIN})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_origin_that_is_listed_may_use_the_api(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(cors_origins=f"http://localhost:3000, {ORIGIN}", api_keys=FIRST)
    asked = preflight(served, ORIGIN)  # a browser sends no key with it
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "x-api-key" in asked.headers["access-control-allow-headers"].lower()
    assert post(served, origin=ORIGIN, **{"x-api-key": FIRST}).headers["access-control-allow-origin"] == ORIGIN
    refused = post(served, origin=ORIGIN)
    check(refused, 401, "unauthorized")
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    assert "Retry-After" in refused.headers["access-control-expose-headers"]
    monkeypatch.setattr(served.app.state.models.slot().get(), "predict", None)
    broken = post(served, origin=ORIGIN, **{"x-api-key": FIRST})
    check(broken, 500, "internal")
    assert broken.headers["access-control-allow-origin"] == ORIGIN
    for other in ("https://site.example.evil.example", "http://site.example", "null"):
        assert "access-control-allow-origin" not in preflight(served, other).headers
        assert "access-control-allow-origin" not in post(served, origin=other).headers


# A prefix that a proxy keeps


def test_every_path_works_below_the_prefix(serve: Callable[..., Served]) -> None:
    served = serve(root_path="/own/images", api_keys=FIRST)
    key = {"x-api-key": FIRST}
    for path in ("/", "/docs", "/page/page.js", "/livez", "/readyz", "/openapi.json"):
        assert served.client.get(f"/own/images{path}").status_code == 200
        assert served.client.get(path).status_code == 200  # for health checks past the proxy
    for path in ("/info", "/models", "/report", "/metrics", "/own/images/livez", "/livez/own/images", "images/livez"):
        check(served.client.get(f"/own/images{path}"), 401, "unauthorized")
    answer = served.client.post("/own/images/predict", content=paint("blue"), headers=key)
    assert answer.json()["predictions"][0]["label"] == "blue"
    bare = served.client.get("/own/images")
    assert (bare.status_code, bare.headers["location"]) == (307, "/own/images/")
    assert served.client.get("/own/images/openapi.json").json()["servers"] == [{"url": "/own/images"}]
    check(served.client.get("/own/images/nothing", headers=key), 404, "not_found")


def test_without_a_prefix_there_is_none(service: Served) -> None:
    assert "servers" not in service.client.get("/openapi.json").json()
    check(service.client.get("/own/images"), 404, "not_found")
