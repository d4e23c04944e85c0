"""Several models, and their replacement by new bundles during requests."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.registry import ModelRegistry
from tests.helpers.tiny_bundle import make_tiny_bundle
from tests.service.conftest import PATIENCE, Gate, Served, paint, wait_for
from tests.service.test_service_problems import check
from transferapp.bundle.format import MANIFEST, read_bundle
from transferapp.bundle.predictor import Predictor

NAMES = ("red", "green", "blue")
OTHERS = ("rot", "grün", "blau")
LOOK = 0.02


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two bundles."""
    make_tiny_bundle(tmp_path / "models" / "english", NAMES)
    make_tiny_bundle(tmp_path / "models" / "german", OTHERS)
    return tmp_path / "models"


def state(served: Served, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(m for m in served.client.get("/models").json()["models"] if m["name"] == name)
    return found


def version(path: Path) -> str:
    return read_bundle(path).version


def metric(served: Served, line: str) -> float:
    """Return the value of a metric, 0 if it is missing."""
    for candidate in served.client.get("/metrics").text.splitlines():
        if candidate.startswith(f"{line} "):
            return float(candidate.rpartition(" ")[2])
    return 0.0


@pytest.fixture
def events() -> Iterator[list[logging.LogRecord]]:
    """Log records of the registry."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    loggers = [logging.getLogger(name) for name in ("service.registry",)]
    keep = Keep()
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(keep)
        logger.setLevel(logging.INFO)
    yield records
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(keep)
        logger.setLevel(level)


# Many models


def test_each_model_answers_by_its_name(serve: Callable[..., Served], folder: Path) -> None:
    served = serve(models=folder)
    wait_for(lambda: served.client.get("/readyz").status_code == 200)
    image = paint("blue")
    assert served.predict(image).json()["model"] == "english"  # the first by name
    by_path = served.client.post("/models/german/predict", content=image)
    by_query = served.client.post("/predict?model=german", content=image)
    for answer in (by_path, by_query):
        assert (answer.json()["model"], answer.json()["predictions"][0]["label"]) == ("german", "blau")
        assert answer.json()["model_version"] == version(folder / "german")
    assert served.client.get("/info?model=german").json()["class_names"] == list(OTHERS)
    explained = served.client.post("/explain?model=german&label=rot", content=image).json()
    assert (explained["model"], explained["label"], explained["score"] < 0.1) == ("german", "rot", True)


def test_the_list_of_models(serve: Callable[..., Served], folder: Path) -> None:
    served = serve(models=folder, default_model="german")
    wait_for(lambda: served.client.get("/readyz").status_code == 200)
    english, german = served.client.get("/models").json()["models"]
    assert (english["name"], english["default"], german["name"], german["default"]) == (
        "english",
        False,
        "german",
        True,
    )
    assert german["version"] == version(folder / "german")
    assert (german["phase"], german["classes"], german["refused"]) == ("ready", 3, None)
    assert served.predict(paint("red")).json()["predictions"][0]["label"] == "rot"


def test_a_model_that_does_not_exist(serve: Callable[..., Served], folder: Path) -> None:
    served = serve(models=folder)
    for path in ("/predict?model=dutch", "/models/dutch/predict", "/explain?model=dutch", "/models/%00/predict"):
        document = check(served.client.post(path, content=paint()), 404, "model_not_found")
        assert "english, german" in document["detail"]
    check(served.client.get("/info?model=dutch"), 404, "model_not_found")


def test_a_class_that_does_not_exist(service: Served) -> None:
    check(service.client.post("/explain?label=mauve", content=paint()), 422, "label")


def test_one_bad_bundle_does_not_keep_the_others_from_serving(serve: Callable[..., Served], folder: Path) -> None:
    (folder / "german" / "model.bin").write_bytes(b"altered")
    served = serve(models=folder)
    wait_for(lambda: served.client.get("/readyz").status_code == 200)
    assert served.predict(paint()).status_code == 200
    found = state(served, "german")
    assert (found["phase"], found["version"], found["refused"]["code"]) == ("failed", None, "checksum_mismatch")
    assert str(folder) not in json.dumps(found)  # the bundle's path stays private
    check(served.client.post("/models/german/predict", content=paint()), 503, "not_ready")


def test_names_that_are_no_unicode_are_answered_as_text(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(models=make_tiny_bundle(tmp_path / "tiny", ("caf\udce9", "b", "c")))
    answer = served.predict(paint("red"))
    assert answer.json()["predictions"][0]["label"] == "caf\\udce9"
    assert served.client.get("/info").json()["class_names"][0] == "caf\\udce9"


# New bundles


def test_a_new_bundle_takes_the_place_of_the_old_one(
    serve: Callable[..., Served], tmp_path: Path, events: list[logging.LogRecord]
) -> None:
    path = make_tiny_bundle(tmp_path / "tiny", NAMES)
    served = serve(models=path, watch_seconds=LOOK)
    before = version(path)
    old = weakref.ref(served.app.state.models.slot().get())
    make_tiny_bundle(path, OTHERS)
    wait_for(lambda: state(served, "tiny")["version"] == version(path))
    assert served.predict(paint("blue")).json()["predictions"][0]["label"] == "blau"
    assert metric(served, 'transferapp_model_swaps_total{model="tiny"}') == 1
    text = served.client.get("/metrics").text
    assert f'version="{version(path)}"' in text
    assert before not in text

    def gone() -> bool:
        gc.collect()
        return old() is None

    wait_for(gone)
    assert [record.message for record in events if "model" in record.message] == [
        "model_ready",
        "model_swapped",
        "model_drained",
    ]


def test_requests_in_progress_keep_the_model_they_began_with(
    serve: Callable[..., Served], gate: Callable[[Served], Gate], tmp_path: Path
) -> None:
    path = make_tiny_bundle(tmp_path / "tiny", NAMES)
    served = serve(models=path, watch_seconds=LOOK, workers=1)
    held, before = gate(served), version(path)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(served.predict(paint("blue")).json())) for _ in range(2)]
    for thread in threads:
        thread.start()
    pool = served.app.state.pool
    wait_for(lambda: (pool.running, pool.waiting) == (1, 1))  # one in the network, one in the queue
    make_tiny_bundle(path, OTHERS)
    wait_for(lambda: state(served, "tiny")["version"] == version(path))
    held.open()
    for thread in threads:
        thread.join()
    assert {(a["predictions"][0]["label"], a["model_version"]) for a in answers} == {("blue", before)}
    assert served.predict(paint("blue")).json()["predictions"][0]["label"] == "blau"


def break_weights(path: Path) -> None:
    data = bytearray((path / "model.bin").read_bytes())
    data[0] ^= 1
    (path / "model.bin").write_bytes(data)


def break_manifest(path: Path) -> None:
    (path / MANIFEST).write_text("{")


def wrong_classes(path: Path) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["class_names"].append("one too many")
    (path / MANIFEST).write_text(json.dumps(manifest))


def foreign_network(path: Path) -> None:
    (path / "model.xml").unlink()


@pytest.mark.parametrize("spoil", [break_weights, break_manifest, wrong_classes, foreign_network])
def test_a_bad_bundle_is_refused_and_reported_while_the_old_one_serves(
    serve: Callable[..., Served],
    tmp_path: Path,
    events: list[logging.LogRecord],
    spoil: Callable[[Path], None],
) -> None:
    path = make_tiny_bundle(tmp_path / "tiny", NAMES)
    served = serve(models=path, watch_seconds=LOOK)
    before = state(served, "tiny")
    spoil(path)
    wait_for(lambda: state(served, "tiny")["refused"] is not None)
    after = state(served, "tiny")
    assert (after["version"], after["loaded"], after["phase"]) == (before["version"], before["loaded"], "ready")
    assert served.predict(paint("blue")).json()["predictions"][0]["label"] == "blue"
    assert served.client.get("/readyz").status_code == 200
    assert metric(served, 'transferapp_model_load_failures_total{model="tiny"}') == 1
    assert any(record.message == "bundle_refused" and record.still_serving for record in events)  # type: ignore[attr-defined]
    make_tiny_bundle(path, OTHERS)
    wait_for(lambda: state(served, "tiny")["version"] == version(path))
    assert state(served, "tiny")["refused"] is None


def test_a_bad_bundle_is_read_once_and_not_at_every_look(serve: Callable[..., Served], tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path / "tiny", NAMES)
    served = serve(models=path, watch_seconds=0)
    break_weights(path)
    for _ in range(5):
        served.app.state.models.check()
    assert metric(served, 'transferapp_model_load_failures_total{model="tiny"}') == 1


def test_a_bundle_that_is_still_being_copied_is_left_alone(serve: Callable[..., Served], tmp_path: Path) -> None:
    new = make_tiny_bundle(tmp_path / "new", OTHERS)
    path = make_tiny_bundle(tmp_path / "tiny", NAMES)
    served = serve(models=path, watch_seconds=0)
    models: ModelRegistry = served.app.state.models
    models.check()
    for name in (MANIFEST, "model.xml", "model.bin"):  # file by file over the one that is being served
        shutil.copyfile(new / name, path / name)
        models.check()
        assert models.slots["tiny"].refused is None
        assert served.predict(paint("blue")).json()["predictions"][0]["label"] == "blue"
    models.check()
    assert served.predict(paint("blue")).json()["predictions"][0]["label"] == "blau"


def test_models_come_and_go(serve: Callable[..., Served], folder: Path) -> None:
    served = serve(models=folder, watch_seconds=LOOK)
    make_tiny_bundle(folder / "danish", ("rød", "grøn", "blå"))
    wait_for(lambda: served.client.post("/models/danish/predict", content=paint()).status_code == 200)
    assert served.predict(paint()).json()["model"] == "english"  # still, though danish comes first by name
    shutil.rmtree(folder / "german")
    wait_for(lambda: served.client.post("/models/german/predict", content=paint()).status_code == 404)
    assert 'model="german"' not in served.client.get("/metrics").text.partition("transferapp_model_info")[2][:400]
    shutil.rmtree(folder / "english")
    for _ in range(5):
        served.app.state.models.check()
    assert served.predict(paint()).json()["model"] == "english"  # the default one stays


def swap_under_load(served: Served, path: Path, swaps: int) -> None:
    """Swap models under eight clients; every request must be answered by exactly one of them."""
    versions: dict[str, str] = {}
    predictors: list[weakref.ref[Predictor]] = []
    stop = threading.Event()
    answers: list[list[tuple[int, str, str]]] = [[] for _ in range(8)]

    def ask(seen: list[tuple[int, str, str]]) -> None:
        with httpx.Client(base_url=served.client.base_url, timeout=PATIENCE) as client:
            while not stop.is_set():
                answer = client.post("/predict?views=1", content=paint("blue"))
                body = answer.json()
                seen.append((answer.status_code, body.get("model_version"), body["predictions"][0]["label"]))

    threads = [threading.Thread(target=ask, args=(seen,)) for seen in answers]
    for thread in threads:
        thread.start()
    try:
        for number in range(swaps):
            names = (f"red{number}", f"green{number}", f"blue{number}")
            make_tiny_bundle(path, names)
            versions[version(path)] = names[2]
            wait_for(lambda: served.app.state.models.slot().get().bundle.version == version(path))
            predictors.append(weakref.ref(served.app.state.models.slot().get()))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    seen = [entry for part in answers for entry in part]
    assert {status for status, _, _ in seen} == {200}
    answered = {(model, label) for _, model, label in seen if model in versions}
    assert answered <= set(versions.items())
    assert len(answered) >= swaps // 2  # most of them have answered some request
    assert metric(served, 'transferapp_model_swaps_total{model="tiny"}') == swaps

    def only_the_last_lives() -> bool:
        gc.collect()
        return [predictor() is not None for predictor in predictors] == [False] * (swaps - 1) + [True]

    wait_for(only_the_last_lives)


def test_swaps_under_eight_clients_lose_no_request(serve: Callable[..., Served], tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path / "tiny", NAMES)
    served = serve(models=path, watch_seconds=LOOK, queue_size=100)
    swap_under_load(served, path, 5)


@pytest.mark.slow
def test_a_hundred_swaps_under_eight_clients_lose_no_request(serve: Callable[..., Served], tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path / "tiny", NAMES)
    served = serve(models=path, watch_seconds=LOOK, queue_size=100)
    swap_under_load(served, path, 100)
