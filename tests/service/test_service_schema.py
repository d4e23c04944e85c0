"""Agreement of the answers with the OpenAPI description, by schemathesis."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import load_all_checks
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from service.app import create_app
from service.settings import Settings
from tests.service.conftest import PATIENCE, Served, paint

EXAMPLES = 40
"""Requests per route and mode."""

images = st.sampled_from([paint(), paint("blue", form="PNG"), paint()[:500], b"", b"<html>"])
for media_type in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, images | st.binary(max_size=200))
load_all_checks()

PATHS = create_app(Settings()).openapi()["paths"]
CASES = [
    (method, path, mode)
    for path, methods in PATHS.items()
    for method, operation in methods.items()
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE
    or "requestBody" in operation
    or any(parameter["in"] != "path" for parameter in operation.get("parameters", ()))  # any text is a name
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_every_answer_is_one_that_is_described(service: Served, method: str, path: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{service.client.base_url}/openapi.json")

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def run(case: schemathesis.Case) -> None:
        # That what fits the description is accepted is not checked: no schema can say which bytes are an image. Nor that a
        # form which does not fit is refused: on the wire its fields are bytes, whatever types they were made of.
        left_out = [positive_data_acceptance]
        if case.media_type == "multipart/form-data":
            left_out.append(negative_data_rejection)
        case.call_and_validate(excluded_checks=left_out, timeout=PATIENCE)

    run()
