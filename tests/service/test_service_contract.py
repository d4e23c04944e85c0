"""OpenAPI description, request ids, log lines, settings."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.logs import JsonFormatter, TextFormatter
from service.problems import PROBLEMS
from service.settings import Settings, read_settings, settings_table
from tests.service.conftest import Served, paint
from transferapp.errors import UsageError


@pytest.fixture(scope="module")
def openapi(bundle: Path) -> dict[str, Any]:
    schema = create_app(Settings(models=bundle)).openapi()
    return dict(json.loads(json.dumps(schema)))


def test_openapi_has_both_bodies_and_every_error(openapi: dict[str, Any]) -> None:
    predict = openapi["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {
        "multipart/form-data",
        "image/*",
        "application/octet-stream",
        "application/json",
    }
    assert set(predict["responses"]) == {"200", "400", "404", "408", "413", "415", "422", "429", "500", "503"}
    for status, response in predict["responses"].items():
        if status != "200":
            content = response["content"]["application/problem+json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            assert all(PROBLEMS[code].status == int(status) for code in content["examples"])
    views = next(p for p in predict["parameters"] if p["name"] == "views")["schema"]
    assert views["enum"] == [1, 10, 50]


def test_every_reference_in_openapi_leads_somewhere(openapi: dict[str, Any]) -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [found for value in node.values() for found in references(value)]
        return [found for value in node for found in references(value)] if isinstance(node, list) else []

    found = set(references(openapi))
    assert "#/components/schemas/Problem" in found
    for reference in found:
        assert reference.rpartition("/")[2] in openapi["components"]["schemas"]


def test_answers_have_the_documented_members(service: Served, openapi: dict[str, Any]) -> None:
    schemas = openapi["components"]["schemas"]
    assert set(service.predict(paint()).json()) == set(schemas["PredictionAnswer"]["properties"])
    assert set(service.client.get("/info").json()) == set(schemas["Info"]["properties"])
    assert set(service.predict(b"").json()) <= set(schemas["Problem"]["properties"])


def test_a_sane_request_id_is_kept_and_another_replaced(service: Served) -> None:
    assert service.client.get("/readyz", headers={"x-request-id": "a-B_9.c"}).headers["x-request-id"] == "a-B_9.c"
    for bad in ("x" * 65, "a b", '"', "a;b", ""):
        made = service.client.get("/readyz", headers={"x-request-id": bad}).headers["x-request-id"]
        assert made != bad
        assert len(made) == 16


def test_one_log_line_a_request(service: Served) -> None:
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger = logging.getLogger("service.middleware.request_context")
    keep, level = Keep(), logger.level
    logger.addHandler(keep)
    logger.setLevel(logging.INFO)
    try:
        service.predict(paint(), views=1)
        service.client.post("/predict", files={"file": ('evil"\r\nname.jpg', b"")})
        service.client.get("/no%0d%0ainjected")
        service.client.get("/readyz")  # logged at level debug only
    finally:
        logger.removeHandler(keep)
        logger.setLevel(level)
    lines = [JsonFormatter().format(record) for record in records]
    assert len(lines) == 3
    assert all("\n" not in line and "evil" not in line for line in lines)
    first, second, third = (json.loads(line) for line in lines)
    assert (first["method"], first["path"], first["status"], first["views"]) == ("POST", "/predict", 200, 1)
    assert first["bytes"] == len(paint())
    assert (second["status"], second["code"]) == (422, "empty_file")
    assert third["path"] == "/no\r\ninjected"  # escaped in the line, as the assertion above shows
    assert "\n" not in TextFormatter().format(records[2])


def test_settings_come_from_the_environment_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_MODELS", "/models/dogs")
    monkeypatch.setenv("TRANSFERAPP_PORT", "9000")
    settings = read_settings(port=9001, host=None)
    assert (settings.models, settings.port, settings.host) == (Path("/models/dogs"), 9001, "127.0.0.1")


def test_a_setting_out_of_range_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_PORT", "99999")
    with pytest.raises(UsageError, match=r"TRANSFERAPP_PORT.*65535"):
        read_settings()
    with pytest.raises(UsageError, match="--queue-size"):
        read_settings(port=1, queue_size=-1)
    with pytest.raises(UsageError, match="--max-pixels"):
        read_settings(port=1, max_pixels=255)  # smaller than any accepted image


@pytest.mark.parametrize("value", ["tcp://10.96.0.12:8000", "udp://[fd00::1]:53"])
def test_a_port_set_by_kubernetes_is_ignored_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    monkeypatch.setenv("TRANSFERAPP_PORT", value)
    settings = read_settings()
    assert settings.port == 8000
    monkeypatch.setattr(logging.getLogger("service"), "propagate", True)  # for caplog
    create_app(settings)
    (record,) = [record for record in caplog.records if record.message == "port_ignored"]
    assert (record.__dict__["value"], record.__dict__["port"]) == (value, 8000)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("cors_origins", "https://a.example, http://localhost:3000/", ("https://a.example", "http://localhost:3000")),
        ("cors_origins", "https://A.example", ("https://a.example",)),
        ("cors_origins", "*", ("*",)),
        ("cors_origins", "", ()),
        ("root_path", "/images/", "/images"),
        ("root_path", "/", ""),
        ("root_path", "/a/b.c-d_e~f", "/a/b.c-d_e~f"),
    ],
)
def test_origins_and_prefix(monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: object) -> None:
    monkeypatch.setenv(f"TRANSFERAPP_{name.upper()}", value)
    assert getattr(read_settings(), name) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("cors_origins", value)
            for value in ("a.example", "https://a.example/page", "https://*,x", "https://", "null")
        ),
        *(("root_path", value) for value in ("images", "/a//b", "/a b", "https://a.example/b", "/{a}")),
    ],
)
def test_origins_and_prefix_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"TRANSFERAPP_{name.upper()}", value)
    with pytest.raises(UsageError, match=f"TRANSFERAPP_{name.upper()}"):
        read_settings()


def test_every_setting_is_described() -> None:
    table = settings_table()
    for name, field in Settings.model_fields.items():
        assert field.description
        assert f"`TRANSFERAPP_{name.upper()}`" in table
    assert "| `TRANSFERAPP_WORKERS` | one per core | Images predicted at once. |" in table.splitlines()
