"""`scripts/demo.py`, the program behind `make demo`."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts" / "demo.py"
RUN = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("demo", sys.argv[1])
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)
demo.BUNDLE = pathlib.Path(sys.argv[2])
sys.exit(demo.main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(bundle: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the demo as the leader of a process group, so that a test can press Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(SCRIPT), str(bundle), *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def nothing_left(bundle: Path) -> bool:
    """Return whether no process names the bundle."""
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "ps -eo args" in listing
    return str(bundle) not in listing


def write_split(bundle: Path, origin: Path, rows: list[tuple[str, str, str]]) -> None:
    bundle.mkdir()
    (bundle / "bundle.json").write_text(json.dumps({"data": {"origin": str(origin)}}), encoding="utf-8")
    with (bundle / "split.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["sha256", "split", "class_name", "name"])
        writer.writerows(("0" * 64, *row) for row in rows)


def test_the_packaged_images_are_three_classes(demo: ModuleType) -> None:
    folder = demo.packaged_images()
    assert sorted(child.name for child in folder.iterdir() if child.is_dir()) == ["global", "local", "nominal"]
    assert demo.PACKAGE not in sys.modules


def test_without_the_package_it_says_how_to_get_it(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package_here")
    with pytest.raises(demo.DemoError, match="pip install conformal-clip-data") as caught:
        demo.packaged_images()
    assert caught.value.exit_code == 5


def test_the_predicted_image_was_held_out(demo: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("1.jpg", "2, or so.jpg"):
        (tmp_path / "a" / name).write_bytes(b"")
    rows = [("train", "a", "a/1.jpg"), ("test", "a", "a/gone.jpg"), ("test", "a", "a/2, or so.jpg")]
    write_split(tmp_path / "bundle", tmp_path, rows)
    assert demo.held_out_image(tmp_path / "bundle") == (tmp_path / "a" / "2, or so.jpg", "a")


def test_without_test_images_it_takes_a_validation_image_and_never_a_training_image(
    demo: ModuleType, tmp_path: Path
) -> None:
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(b"")
    write_split(tmp_path / "both", tmp_path, [("train", "a", "1.jpg"), ("val", "b", "2.jpg")])
    assert demo.held_out_image(tmp_path / "both") == (tmp_path / "2.jpg", "b")
    write_split(tmp_path / "none", tmp_path, [("train", "a", "1.jpg")])
    with pytest.raises(demo.DemoError, match="no held-out image"):
        demo.held_out_image(tmp_path / "none")


def test_curl_takes_any_path(demo: ModuleType) -> None:
    assert demo.curl_form_path("a b/c.jpg") == "a b/c.jpg"
    assert demo.curl_form_path('a,b;"c\\d.jpg') == '"a,b;\\"c\\\\d.jpg"'


def test_pretty_is_the_same_json(demo: ModuleType) -> None:
    value = {"short": [1, 2], "name": "Zoë", "long": [{"label": "x" * 40, "score": 0.5}] * 3, "empty": {}}
    text = demo.pretty(value)
    assert json.loads(text) == value
    assert '"short": [1, 2]' in text
    assert "Zoë" in text
    assert max(map(len, text.splitlines())) <= 104


def test_settings_of_the_service_do_not_leak_in(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_MAX_PIXELS", "1")
    monkeypatch.setenv("TRANSFERAPP_CACHE", "/somewhere")
    environment = demo.environment()
    assert "TRANSFERAPP_MAX_PIXELS" not in environment
    assert environment["TRANSFERAPP_CACHE"] == "/somewhere"


def test_a_wrong_folder_ends_it_with_the_commands_own_line_and_code(tmp_path: Path) -> None:
    process = start(tmp_path / "bundle", str(tmp_path / "nowhere"))
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 3
    assert output.count("nowhere") >= 2
    assert [line for line in output.splitlines() if line.startswith("Error:")] == output.splitlines()[-1:]
    assert "Traceback" not in output


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of solid color with noise."""
    folder = tmp_path_factory.mktemp("data") / "two, classes"
    random = np.random.default_rng(0)
    for name, color in (("red", (220, 60, 60)), ("blue", (60, 60, 220))):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(np.array(color) + random.normal(0, 25, (64, 64, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.slow
def test_from_images_to_an_answer(images: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "bundle", str(images), TRANSFERAPP_CACHE=str(tmp_path / "cache"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    commands = [line.split()[1:3] for line in output.splitlines() if line.startswith("$ ")]
    assert [words[0] for words in commands] == ["transferapp"] * 3 + ["curl"] * 2 + ["kill"]
    assert [words[1] for words in commands[:3]] == ["fit", "predict", "serve"]
    assert '"views": 10' in output
    assert '"class_names": ["blue", "red"]' in output
    assert "(Stopped, exit code 0.)" in output
    assert nothing_left(tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize(("everyone", "number", "code"), [(True, signal.SIGINT, 130), (False, signal.SIGTERM, 143)])
def test_cut_short_it_leaves_no_process(
    images: Path, tmp_path: Path, everyone: bool, number: signal.Signals, code: int
) -> None:
    process = start(tmp_path / "bundle", str(images), TRANSFERAPP_CACHE=str(tmp_path / "cache"))
    assert process.stdout
    while "$ transferapp fit" not in process.stdout.readline():
        assert process.poll() is None
    (os.killpg if everyone else os.kill)(process.pid, number)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == code
    assert "nothing is left running" in output
    assert "Traceback" not in output
    assert nothing_left(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
