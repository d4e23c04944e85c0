"""`transferapp fit` on class folders, then plan, predict and evaluate. Slow: it trains."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.fitted import BACKBONE, DRAWINGS, PER_CLASS, Fitted, drawing, environment, transferapp
from tests.helpers.fitted import draw_folders as draw
from transferapp.bundle.format import read_bundle
from transferapp.bundle.predictor import Predictor
from transferapp.evaluation.parity import MAX_DIFFERENCE

pytestmark = pytest.mark.slow

FILES = {
    "bundle.json",
    "history.csv",
    "model.bin",
    "model.keras",
    "novelty.npz",
    "model.xml",
    "README.md",
    "report.html",
    "split.csv",
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings that the fit has not seen."""
    return draw(tmp_path_factory.mktemp("unseen") / "fresh", per_class=8, seed=7)


def test_a_fit_shows_its_decision_and_how_good_it_is(fit: Fitted) -> None:
    assert fit.stdout.startswith("DECISION CARD\n")
    words = " ".join(fit.stdout.split())
    assert "27 training images, 3 classes → small + " in words
    assert "test accuracy " in words
    assert re.search("of 9 (held-out )?test images", words)  # where some drawings look alike, none is called held out
    assert f"transferapp predict {fit.bundle} IMAGE..." in words


def test_a_fit_leaves_a_whole_bundle(fit: Fitted) -> None:
    bundle = read_bundle(fit.bundle)
    assert {file.name for file in fit.bundle.iterdir()} == FILES
    assert set(bundle.manifest["files"]) == FILES - {"bundle.json"}
    for name in bundle.manifest["files"]:
        bundle.file(name)
    assert bundle.class_names == tuple(DRAWINGS)
    assert bundle.manifest["data"]["counts"] == {
        "train": dict.fromkeys(DRAWINGS, 9),
        "val": dict.fromkeys(DRAWINGS, 2),
        "test": dict.fromkeys(DRAWINGS, 3),
    }
    assert {path.name for path in fit.bundle.parent.iterdir()} <= {"drawings", ".drawings.lock"}


def test_it_recognizes_drawings_that_it_has_not_seen(fit: Fitted, fresh: Path) -> None:
    by_views = {}
    for views in (1, 10, 50):
        done = transferapp("evaluate", fit.bundle, "--data", fresh, "--views", views, "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert (document["num_images"], document["num_seen"], document["views"]) == (24, 0, views)
        by_views[views] = document
    assert min(document["accuracy"] for document in by_views.values()) >= 0.75
    assert len({document["loss"] for document in by_views.values()}) == 3, "the views make a difference"


def test_images_that_it_learned_from_are_left_out_and_counted(fit: Fitted) -> None:
    unseen = json.loads(transferapp("evaluate", fit.bundle, "--data", fit.images, "--json", "--views", "1").stdout)
    assert (unseen["num_images"], unseen["num_seen"], unseen["seen_included"]) == (9, 33, False)
    words = ("evaluate", fit.bundle, "--data", fit.images, "--json", "--views", "1", "--include-seen")
    everything = json.loads(transferapp(*words).stdout)
    assert (everything["num_images"], everything["num_seen"], everything["seen_included"]) == (42, 33, True)


def test_the_test_figures_of_the_fit_are_those_of_an_evaluation(fit: Fitted) -> None:
    said = read_bundle(fit.bundle).manifest["metrics"]["test"]
    measured = json.loads(transferapp("evaluate", fit.bundle, "--data", fit.images, "--json", "--views", "1").stdout)
    assert measured["accuracy"] == said["accuracy"]
    assert measured["loss"] == pytest.approx(said["loss"], abs=0.02)


@pytest.mark.parametrize("views", [1, 10])
def test_command_predictor_and_keras_give_the_same_scores(fit: Fitted, tmp_path: Path, views: int) -> None:
    import keras

    images = []
    for index, name in enumerate(DRAWINGS):
        images.append(tmp_path / f"{name}.png")
        drawing(name, 9000 + index).save(images[-1])
    predictor, exact = Predictor.load(fit.bundle), Predictor.load(fit.bundle, precision="f32")
    done = transferapp("predict", fit.bundle, *images, "--json", "--views", views)
    assert done.returncode == 0, done.stderr
    model = keras.saving.load_model(fit.bundle / "model.keras", compile=False, safe_mode=True)
    served = read_bundle(fit.bundle).manifest["precision"]["served"]
    for line, image in zip(done.stdout.splitlines(), images, strict=True):
        printed = {entry["label"]: entry["score"] for entry in json.loads(line)["predictions"]}
        own = {score.label: score.score for score in predictor.predict(image, views=views).scores}
        assert printed == pytest.approx(own, abs=1e-6)
        crops = predictor.crops(predictor.decode(image, views), views)
        reference = model.predict(crops.astype("float32"), verbose=0).mean(axis=0)
        assert reference.sum() == pytest.approx(1, abs=1e-5)
        ours = np.array([own[name] for name in predictor.class_names])
        assert np.abs(ours - reference).max() <= MAX_DIFFERENCE[served]
        in_f32 = exact.probabilities(crops).mean(axis=0)
        assert np.abs(in_f32 - reference).max() <= MAX_DIFFERENCE["f32"]


def test_plan_prints_the_decision_and_trains_nothing(fit: Fitted, tmp_path: Path) -> None:
    done = transferapp("plan", "--data", fit.images, "--backbone", BACKBONE, "--json", cwd=tmp_path, env=in_source())
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document.keys() >= {"size", "similarity", "divergence", "cut", "num_images", "num_classes", "reasons"}
    assert document["size"] == "small"
    assert document["similarity"] in ("similar", "different")
    assert 0 < document["divergence"] < 1.5
    assert (document["num_images"], document["num_classes"]) == (27, 3)
    assert document["cut"] in {stage["stage"] for stage in document["backbones"][0]["stages"]}
    assert all(reason.keys() == {"topic", "text", "values"} for reason in document["reasons"])
    assert list(tmp_path.iterdir()) == []
    manifest = read_bundle(fit.bundle).manifest
    assert document["reasons"] == manifest["plan"]["reasons"], "a fit follows the plan"


def test_plan_follows_overrides(fit: Fitted) -> None:
    words = ("plan", "--data", fit.images, "--backbone", BACKBONE, "--json", "--size", "large")
    document = json.loads(transferapp(*words, "--similarity", "similar").stdout)
    assert document["quadrant"] == "large + similar"
    assert document["tuned"] == "last stages"
    assert document["backbone_learning_rate"] <= document["head_learning_rate"] / 10
    assert any(reason["values"].get("override") == "large" for reason in document["reasons"])


def in_source(**changes: str) -> dict[str, str]:
    """The environment of a command that runs elsewhere than in the repository."""
    return environment(PYTHONPATH=str(Path(__file__).parents[2]), **changes)


def test_settings_come_from_a_file_and_flags_win(fit: Fitted, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"data: {fit.images}\nbackbone: {BACKBONE}\nseed: 3\ntrain_views: 2\nval_fraction: 0\n")
    done = transferapp("fit", "--config", settings, "--train-views", "0", "--json", cwd=tmp_path, env=in_source())
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    config = manifest["config"]
    assert (config["seed"], config["train_views"], config["val_fraction"]) == (3, "0", 0.0)
    assert manifest["head"]["train_views"] == 0
    assert [tried["views"] for tried in manifest["views_tried"]] == [0]
    assert manifest["metrics"]["validation"] is None
    written = read_bundle(tmp_path / "models" / "drawings").manifest
    assert written["name"] == "drawings", "named after the data, where no --out says otherwise"
    assert {key: written[key] for key in ("metrics", "plan", "head")} == {
        key: manifest[key] for key in ("metrics", "plan", "head")
    }


def test_fit_twice_gives_the_same_classifier(fit: Fitted, tmp_path: Path) -> None:
    env = environment(TRANSFERAPP_CACHE=str(tmp_path / "cache"))  # so that nothing comes from the first fit
    words = ("fit", "--data", fit.images, "--out", tmp_path / "again", "--backbone", BACKBONE)
    assert transferapp(*words, env=env).returncode == 0
    first, second = read_bundle(fit.bundle).manifest, read_bundle(tmp_path / "again").manifest
    for key in ("class_names", "metrics", "head", "views_tried"):
        assert second[key] == first[key]
    assert second["data"]["fingerprint"] == first["data"]["fingerprint"]
    assert second["plan"] == first["plan"]


def test_broken_files_are_named_and_left_out(fit: Fitted, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", per_class=PER_CLASS)
    (data / "dots" / "zero.png").write_bytes(b"")
    done = transferapp("plan", "--data", data, "--backbone", BACKBONE)
    assert done.returncode == 0, done.stderr
    assert "1 file was left out:" in done.stdout
    assert "dots/zero.png" in done.stdout
