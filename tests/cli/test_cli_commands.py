"""Commands on tiny bundles and lists: text and `--json`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.corpus import CORPUS
from tests.helpers.fitted import environment, transferapp
from transferapp.backbones.registry import BACKBONES, EMBEDDED
from transferapp.bundle.predictor import Predictor


def test_backbones_says_which_need_no_network(tmp_path: Path) -> None:
    env = environment(KERAS_HOME=str(tmp_path))
    listed = transferapp("backbones", env=env)
    assert (listed.returncode, listed.stderr) == (0, "")
    lines = {line.split()[0]: line for line in listed.stdout.splitlines() if line.strip()}
    for name in BACKBONES:
        assert ("embedded" in lines[name]) == (name in EMBEDDED)
        assert ("to be downloaded" in lines[name]) == (name not in EMBEDDED)


def test_backbones_as_json_knows_what_keras_has_cached(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / BACKBONES["vgg16"].weights).write_bytes(b"")
    rows = json.loads(transferapp("backbones", "--json", env=environment(KERAS_HOME=str(tmp_path))).stdout)
    found = {row["name"]: row for row in rows}
    assert list(found) == list(BACKBONES)
    assert found["vgg16"]["availability"] == "cached"
    assert found["resnet50"]["availability"] == "to be downloaded"
    assert found["efficientnet_lite2"] == {
        "name": "efficientnet_lite2",
        "availability": "embedded",
        "parameters_millions": 6.2,
        "image_size": [260, 260],
    }


def test_predict_shows_the_best_classes_of_every_image(tiny: Path, colors: Path) -> None:
    red, blue = colors / "red" / "0.png", colors / "blue" / "1.png"
    done = transferapp("predict", tiny, red, blue, "--top-k", "2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert (lines[0], lines[3]) == (f"{red}  (single_color)", f"{blue}  (single_color)")
    assert [line.split()[0] for line in lines[1:3] + lines[4:]] == ["red", "blue", "blue", "green"]


def test_predict_takes_every_image_of_a_folder(tiny: Path, colors: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("b/2.png", "a.png", "b/c/1"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((colors / "red" / "0.png").read_bytes())
    for name in ("notes.txt", ".hidden.png", "b/Thumbs.db"):
        (folder / name).write_text("no image")
    done = transferapp("predict", tiny, folder, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == [
        str(folder / name) for name in ("a.png", "b/2.png", "b/c/1")
    ]
    (folder / "b" / "bad.jpg").write_text("no image")
    done = transferapp("predict", tiny, folder)
    assert done.returncode == 3
    assert done.stderr.startswith(f"Error: {folder / 'b' / 'bad.jpg'} is in no format that can be read")
    assert done.stdout.count("\n  red ") == 3
    (tmp_path / "empty").mkdir()
    done = transferapp("predict", tiny, tmp_path / "empty")
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{tmp_path / 'empty'} has no images" in done.stderr


@pytest.mark.parametrize("views", [None, 1, 10, 50])
def test_predict_as_json_says_what_the_predictor_says(tiny: Path, colors: Path, views: int | None) -> None:
    image = colors / "green" / "2.png"
    done = transferapp("predict", tiny, image, "--json", *(["--views", views] if views else []))
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    expected = Predictor.load(tiny).predict(image, views=views)
    document = json.loads(line)
    assert document == {
        "file": str(image),
        "predictions": [vars(score) for score in expected.scores],
        "model": "tiny",
        "model_version": document["model_version"],
        "novelty": expected.novelty,
        "known": True,
        "prediction_set": ["green"],
        "views": views or 10,
        "notes": ["single_color"],
    }
    assert len(document["predictions"]) == 3


def test_predict_is_silent_about_damaged_tags(tiny: Path, tmp_path: Path) -> None:
    cases = [case for case in CORPUS if case.accepted]
    files = [tmp_path / case.name for case in cases]
    for file, case in zip(files, cases, strict=True):
        file.write_bytes(case.data)
    done = transferapp("predict", tiny, *files)
    assert (done.returncode, done.stderr) == (0, "")


def test_evaluate_as_json_has_the_figures(tiny: Path, colors: Path) -> None:
    done = transferapp("evaluate", tiny, "--data", colors, "--views", "1", "--json")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document.keys() >= {"accuracy", "top5_accuracy", "loss", "num_images", "per_class", "views", "split"}
    assert (document["accuracy"], document["top5_accuracy"], document["num_images"]) == (1.0, 1.0, 12)
    assert document["per_class"]["blue"] == {"num_images": 4, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert document["confusion"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]


def test_evaluate_for_people_has_them_too(tiny: Path, colors: Path) -> None:
    done = transferapp("evaluate", tiny, "--data", colors, "--views", "1")
    assert done.returncode == 0
    words = " ".join(done.stdout.split())
    assert "accuracy 1.000 (95 % interval 0.76 to 1.00)" in words
    assert "measured on 12 images, 1 crop each, split: all" in words
    assert "green 4 1.000 1.000 1.000" in words
