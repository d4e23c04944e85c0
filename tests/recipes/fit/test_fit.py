"""Fit and plan as functions: errors before any work, progress, and the files they leave."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from tests.helpers.fitted import BACKBONE, fitted, images, workplace
from tests.helpers.tiny_bundle import make_tiny_bundle
from transferapp.bundle.format import read_bundle
from transferapp.bundle.predictor import Predictor
from transferapp.config import FitConfig, make_config
from transferapp.errors import BundleError, DataError, ResourceError, UsageError
from transferapp.recipes.evaluate import evaluate
from transferapp.recipes.fit import export as export_module
from transferapp.recipes.fit import fit as recipes
from transferapp.recipes.fit import resume
from transferapp.recipes.fit.resume import RunFolder, run_identity
from transferapp.system.hardware import Hardware
from transferapp.system.progress import Advance, Silent
from transferapp.system.storage import sha256_file


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(workplace() / "cache"))


class Recorder:
    """Notes what it is told: every task with its total and the numbers that it counted to."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int, list[int]]] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextlib.contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        counted: list[int] = []
        self.tasks.append((label, total, counted))
        yield counted.append


def config(out: Path, **changes: object) -> FitConfig:
    return make_config({"data": str(images()), "out": str(out), "backbone": BACKBONE, **changes})


def test_a_bundle_of_other_data_stays_where_no_place_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = make_tiny_bundle(tmp_path / "models" / "pets")
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    manifest["data"] = {"origin": str(tmp_path / "A" / "pets")}
    (bundle / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(DataError, match="holds the bundle of other data"):
        recipes.fit(make_config({"data": str(tmp_path / "B" / "pets")}))
    with pytest.raises(DataError, match="There is no file or folder"):  # the next check: the data are not there
        recipes.fit(make_config({"data": str(tmp_path / "B" / "pets"), "out": "models/pets"}))


def test_two_fits_do_not_write_to_one_place(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with (
        FileLock(tmp_path / ".bundle.lock"),
        pytest.raises(DataError, match=r"Another command is writing to") as caught,
    ):
        recipes.fit(config(target))
    assert caught.value.exit_code == 3
    assert not target.exists()


def test_a_folder_that_is_no_bundle_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    progress = Recorder()
    with pytest.raises(BundleError, match="is not a bundle, so it is left alone"):
        recipes.fit(config(tmp_path), progress)
    assert progress.tasks == []


def test_a_place_that_cannot_be_made_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    progress = Recorder()
    with pytest.raises(ResourceError, match="Could not write"):
        recipes.fit(config(tmp_path / "file" / "bundle"), progress)
    assert progress.tasks == []


def test_a_fit_that_fails_leaves_the_old_bundle_and_lets_go_of_its_place(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundle")
    before = {file.name: sha256_file(file) for file in bundle.iterdir()}
    with pytest.raises(DataError, match="There is no file or folder"):
        recipes.fit(config(bundle, data=str(tmp_path / "nowhere")))
    assert {file.name: sha256_file(file) for file in bundle.iterdir()} == before
    with FileLock(tmp_path / ".bundle.lock", blocking=False):
        pass  # nobody holds it
    assert {path.name for path in tmp_path.iterdir()} <= {"bundle", ".bundle.lock"}


def test_an_unknown_backbone_is_refused(tmp_path: Path) -> None:
    for job in (recipes.plan, recipes.fit):
        with pytest.raises(UsageError, match="Unknown backbone 'resnet49'"):
            job(config(tmp_path / "bundle", backbone="resnet49"))


def test_a_stopwatch_names_every_lap() -> None:
    watch = recipes.Stopwatch()
    watch.lap("first")
    watch.lap("second")
    assert list(watch.seconds) == ["first", "second"]
    assert all(seconds >= 0 for seconds in watch.seconds.values())


@pytest.mark.slow
def test_plan_finds_what_a_fit_then_does(tmp_path: Path) -> None:
    measurement = recipes.plan(config(tmp_path / "bundle"))
    manifest = json.loads((fitted().bundle / "bundle.json").read_text(encoding="utf-8"))
    assert [reason.to_json() for reason in measurement.plan.reasons] == manifest["plan"]["reasons"]
    assert measurement.plan.divergence == manifest["plan"]["divergence"]
    assert measurement.dataset.fingerprint() == manifest["data"]["fingerprint"]
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_fit_returns_what_it_wrote_and_tells_of_every_step(tmp_path: Path) -> None:
    progress = Recorder()
    target = tmp_path / "models" / "drawings"
    result = recipes.fit(config(target, train_views="1"), progress)
    assert result.path == target
    written = json.loads((target / "bundle.json").read_text(encoding="utf-8"))
    assert {key: written[key] for key in result.manifest} == json.loads(json.dumps(result.manifest))
    assert written["head"]["train_views"] == 1
    assert "drawings" in (target / "report.html").read_text(encoding="utf-8")
    for label, total, counted in progress.tasks:
        assert counted == sorted(counted), label
        assert not total or counted[-1] == total, label
    steps = " ".join(label for label, _, _ in progress.tasks)
    for step in ("reading 42 images", "probing", "random views", "test images", "network", "bundle"):
        assert step in steps


@pytest.mark.slow
def test_12_bit_images_are_served_as_they_were_trained_on(tmp_path: Path) -> None:
    for path in images().rglob("*.png"):
        gray = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        target = tmp_path / "deep" / path.relative_to(images())
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(gray).save(target)
    result = recipes.fit(config(tmp_path / "bundle", data=str(tmp_path / "deep")), Silent())
    assert result.manifest["input"]["sample_bits"] == 12
    assert result.manifest["data"]["findings"]["sample_depth"]["values"]["white"] == 4095
    served = evaluate(result.path, str(tmp_path / "deep"), views=1)
    assert served.metrics.accuracy == result.manifest["metrics"]["test"]["accuracy"]
    assert served.metrics.loss == pytest.approx(result.manifest["metrics"]["test"]["loss"], rel=0.01)


@pytest.mark.slow
def test_without_held_back_images_there_are_no_figures_but_a_bundle(tmp_path: Path) -> None:
    result = recipes.fit(config(tmp_path / "all", val_fraction=0.0, test_fraction=0.0, train_views="0"), Silent())
    assert result.manifest["metrics"] == {"validation": None, "test": None}
    # The training images themselves calibrate, each held out from the others.
    assert (result.manifest["novelty"]["num_held_out"], result.manifest["novelty"]["num_test"]) == (42, 0)
    assert (result.manifest["prediction_sets"]["num_held_out"], result.manifest["prediction_sets"]["num_test"]) == (
        42,
        0,
    )
    assert "cross-validated" in (tmp_path / "all" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_small_different_set_ships_a_mixture_whose_weights_the_manifest_lists(tmp_path: Path) -> None:
    result = recipes.fit(config(tmp_path / "mixed", similarity="different"), Silent())
    manifest = read_bundle(result.path).manifest
    mixture = manifest["plan"]["mixture"]
    assert mixture
    assert all(weight > 0 for weight in mixture.values())
    stages = [stage["stage"] for stage in manifest["backbones"][0]["stages"]]
    assert set(mixture) <= {*stages, f"{stages[-1]} (mean)"}
    assert manifest["backbones"][0]["mixture"] == mixture
    assert (manifest["candidates"], manifest["head"]["kind"], manifest["plan"]["budget"]) == ([], "linear", 0)
    assert manifest["parity"]["f32"]["max_difference"] < 1e-4
    assert "Mixture of stages" in (result.path / "report.html").read_text(encoding="utf-8")
    # As served, it calls as many of the test images unknown as the fit says.
    predictor = Predictor.load(result.path)
    with (result.path / "split.csv").open(newline="") as stream:
        test = [images() / row["name"] for row in csv.DictReader(stream) if row["split"] == "test"]
    predictions = [predictor.predict(path, views=1) for path in test]
    assert manifest["novelty"]["num_test"] == len(test) > 0
    assert manifest["novelty"]["num_refused"] == sum(p.known is False for p in predictions)
    covered = sum(path.parent.name in (p.prediction_set or ()) for path, p in zip(test, predictions, strict=True))
    assert manifest["prediction_sets"]["num_covered"] == covered
    # As served, it is right on as many of the test images as the fit says, which took them from cached rows.
    assert evaluate(result.path, str(images()), views=1).metrics.accuracy == manifest["metrics"]["test"]["accuracy"]


# ------------------------------------------------------------------------------------------------------------- fine-tuning

TUNED = {"size": "large", "tune": "last", "budget": "none", "epochs": 2, "image_size": 64, "batch_size": 8}


@pytest.mark.slow
def test_a_fit_that_tunes_writes_what_was_compared_and_what_ships(tmp_path: Path) -> None:
    progress = Recorder()
    result = recipes.fit(config(tmp_path / "tuned", rule_only=True, **TUNED), progress)
    manifest = read_bundle(tmp_path / "tuned").manifest
    probe, tuned = manifest["candidates"]
    assert (probe["name"], tuned["name"], tuned["cut"]) == ("linear classifier", "last stage", "block14")
    assert tuned["chosen"]
    assert manifest["head"]["kind"] == "fine-tuned"
    # Seven validation images, on which the features were not trained, are too few for either.
    assert (manifest["novelty"], manifest["prediction_sets"]) == (None, None)
    assert Predictor.load(tmp_path / "tuned").predict(next(images().glob("*/*"))).known is None
    assert manifest["backbone"]["cut"] == "top", "that is where the tuned head stands"
    assert manifest["metrics"]["validation"]["accuracy"] == tuned["accuracy"]
    assert manifest["plan"]["proposals"] == [{"name": "last stage", "cut": "block14", "head_only": False}]
    with (tmp_path / "tuned" / "history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["candidate"], row["epoch"]) for row in rows] == [("last stage", "1"), ("last stage", "2")]
    for row, epoch in zip(rows, tuned["history"], strict=True):
        for name in ("loss", "val_accuracy", "averaged_val_loss"):
            assert float(row[name]) == pytest.approx(epoch[name], rel=1e-5)
    assert "<h2>Fine-tuning</h2>" in (tmp_path / "tuned" / "report.html").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"tuned", ".tuned.lock"}, "no run is left unfinished"
    assert ("last stage: 2 epochs", 2, [0, 1, 2]) in progress.tasks
    # As served, it is right on as many of the test images as the fit says.
    evaluation = evaluate(result.path, str(images()), views=1)
    assert evaluation.metrics.accuracy == manifest["metrics"]["test"]["accuracy"]


@pytest.mark.slow
def test_where_a_cheaper_backbone_was_tuned_it_is_what_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transferapp.recipes.fit import fine_tune as tuning

    def without_time_at_first(trainer: Any, proposals: Any, deadline: float) -> Any:
        candidates, deadline = train_all(trainer, proposals, deadline)
        names.append([proposal.name for proposal in proposals])
        if len(names) == 1:
            without = {"no_time": True, "classifier": None, "metrics": None}
            candidates = [dataclasses.replace(candidate, **without) for candidate in candidates]
        return candidates, deadline

    names: list[list[str]] = []
    train_all = tuning._train_all
    monkeypatch.setattr(tuning, "_train_all", without_time_at_first)
    monkeypatch.setattr("transferapp.recipes.fit.measure.choose_backbone", lambda backbones, *_: backbones[-1])
    settings = {**TUNED, "backbone": "auto", "epochs": 1}
    result = recipes.fit(config(tmp_path / "cheap", rule_only=True, **settings))
    assert names == [["last stage"], ["last stage"]]
    manifest = result.manifest
    assert manifest["backbone"]["name"] == manifest["plan"]["backbone"] == "efficientnet_lite0"
    assert [c["chosen"] for c in manifest["backbones"]] == [True, False]
    assert [c["passed_over"] for c in manifest["backbones"]] == [False, True]
    why = "A linear classifier does better on efficientnet_lite2"
    assert why in (result.path / "report.html").read_text(encoding="utf-8")
    assert manifest["candidates"][-1]["name"] == "efficientnet_lite0: last stage"
    assert manifest["candidates"][-1]["chosen"]
    evaluation = evaluate(result.path, str(images()), views=1)
    assert evaluation.metrics.accuracy == manifest["metrics"]["test"]["accuracy"]


def interrupt(*_arguments: Any, **_options: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_fit_that_is_killed_while_it_tunes_leaves_the_bundle_of_the_solved_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "fine_tune", interrupt)
    target, progress = tmp_path / "bundle", Recorder()
    with pytest.raises(KeyboardInterrupt):
        recipes.fit(config(target, **TUNED), progress)
    assert any(f"{target} can be used already" in note for note in progress.notes)
    manifest = read_bundle(target).manifest
    assert (manifest["head"]["kind"], manifest["candidates"]) == ("linear", [])
    evaluation = evaluate(target, str(images()), views=1)
    assert evaluation.metrics.accuracy == manifest["metrics"]["test"]["accuracy"]
    assert (target / "report.html").is_file()


@pytest.mark.slow
def test_a_bundle_is_there_before_keras_is_needed_and_predicts_what_the_complete_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, progress = tmp_path / "bundle", Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "_remembered", lambda *_: None)  # as in the first fit with this backbone
        patch.setattr(recipes, "check", interrupt)
        with pytest.raises(KeyboardInterrupt):
            recipes.fit(config(target, budget="0"), progress)
    assert any(f"{target} can be used already" in note for note in progress.notes)
    early = read_bundle(target).manifest
    assert "model.keras" not in early["files"]
    assert (target / "report.html").is_file()
    answers = evaluate(target, str(images()), views=1)
    recipes.fit(config(target, budget="0"))
    complete = read_bundle(target).manifest
    assert {"model.keras", *early["files"]} == set(complete["files"])
    assert complete["head"] == early["head"]
    assert complete["metrics"] == early["metrics"]
    again = evaluate(target, str(images()), views=1)
    assert again.metrics.accuracy == answers.metrics.accuracy
    assert again.metrics.loss == pytest.approx(answers.metrics.loss, abs=1e-3)


_FIRST_BUNDLE = """
import sys
from transferapp.config import make_config
from transferapp.recipes.fit import fit

def complete(*arguments, **options):
    print(*(name for name in ("keras", "tensorflow") if name in sys.modules))
    sys.exit(0)

fit.check = complete
fit.fit(make_config({"data": sys.argv[1], "out": sys.argv[2], "backbone": sys.argv[3], "budget": "0"}))
"""


@pytest.mark.slow
def test_the_first_bundle_imports_no_keras(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FIRST_BUNDLE, str(images()), str(tmp_path / "bundle"), BACKBONE]
    recipes.plan(config(tmp_path / "bundle"))  # converts the network, which needs Keras, once
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert (tmp_path / "bundle" / "bundle.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["a bundle is there", "the rule alone decides"])
def test_no_bundle_is_written_early_where_it_would_replace_one_or_was_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(recipes, "fine_tune", interrupt)
    target, before, settings = tmp_path / "bundle", {}, dict(TUNED)
    if reason == "a bundle is there":
        make_tiny_bundle(target)
        before = {file.name: sha256_file(file) for file in target.iterdir()}
    else:
        settings["rule_only"] = True
    with pytest.raises(KeyboardInterrupt):
        recipes.fit(config(target, **settings))
    assert {file.name: sha256_file(file) for file in target.iterdir()} == before if before else not target.exists()


@pytest.mark.slow
def test_a_resumed_fit_without_a_bundle_writes_one_before_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "fine_tune", interrupt)
    target = tmp_path / "bundle"
    run = RunFolder(target)
    run.begin(run_identity(config(target, **TUNED), recipes.plan(config(target, **TUNED))))
    run.checkpoints("block14").save(1, {}, {})
    with pytest.raises(KeyboardInterrupt):
        recipes.fit(config(target, **TUNED))
    plan = read_bundle(target).manifest["plan"]
    assert (plan["tuned"], plan["proposals"]) == ("none", []), "nothing is claimed that was not done"
    assert run.checkpoints("block14").latest() is not None


@pytest.mark.slow
def test_a_budget_of_0_fine_tunes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = recipes.fit(config(tmp_path / "bundle", **{**TUNED, "budget": "0"})).manifest
    assert (manifest["candidates"], manifest["plan"]["tuned"], manifest["plan"]["proposals"]) == ([], "none", [])


@pytest.mark.slow
def test_where_tuning_loses_the_solved_classifier_ships_as_if_nothing_had_been_tuned(tmp_path: Path) -> None:
    recipes.fit(config(tmp_path / "lost", learning_rate="10", **TUNED))
    recipes.fit(config(tmp_path / "plain", **{**TUNED, "tune": "none"}, train_views="0"))
    lost, plain = (read_bundle(tmp_path / name) for name in ("lost", "plain"))
    assert [c["chosen"] for c in lost.manifest["candidates"]] == [True, False, False]
    assert lost.manifest["candidates"][1]["history"], "the manifest lists what lost as well"
    assert plain.manifest["candidates"] == []
    assert lost.manifest["metrics"] == plain.manifest["metrics"]
    assert lost.file("model.bin").read_bytes() == plain.file("model.bin").read_bytes()


@pytest.mark.slow
def test_another_fit_than_the_unfinished_one_is_refused_unless_that_is_forgotten(tmp_path: Path) -> None:
    target = tmp_path / "tuned"
    measurement = recipes.plan(config(target, **TUNED))
    run = RunFolder(target)
    run.begin(run_identity(config(target, **TUNED), measurement))
    run.checkpoints("block14").save(1, {}, {})
    changed = {**TUNED, "epochs": 3, "seed": 1}
    with pytest.raises(DataError) as caught:
        recipes.fit(config(target, **changed))
    assert caught.value.code == "run_differs"
    for difference in ("epochs was 2 and is 3", "seed was 0 and is 1", "data was "):
        assert difference in str(caught.value)
    with pytest.raises(DataError, match="tune was 'last' and is 'none'"):  # not even one that would tune nothing
        recipes.fit(config(target, **{**TUNED, "tune": "none"}))
    assert run.checkpoints("block14").latest() is not None
    recipes.fit(config(target, **{**TUNED, "tune": "none"}), fresh=True)
    assert not run.path.exists()


@pytest.mark.slow
def test_without_validation_images_nothing_is_tuned_and_that_is_said(tmp_path: Path) -> None:
    progress = Recorder()
    settings = {**TUNED, "val_fraction": 0.0}
    recipes.fit(config(tmp_path / "blind", **settings), progress)
    manifest = read_bundle(tmp_path / "blind").manifest
    assert manifest["candidates"] == []
    plan = manifest["plan"]
    topics = [reason["topic"] for reason in plan["reasons"]]
    assert "tune" in topics
    assert "fine-tuning" not in topics
    assert (plan["tuned"], plan["method"], plan["epochs"]) == ("none", "linear classifier, full-batch L-BFGS", 0)
    assert "fine-tuned" not in manifest["views_reason"]
    with pytest.raises(
        DataError, match=r"no validation images, without which nothing can be fine-tuned.*--val-fraction"
    ):
        recipes.fit(config(tmp_path / "insisted", rule_only=True, **settings))


def test_the_identity_of_a_run_is_every_setting_but_where_things_lie() -> None:
    here, there = config(Path("a"), **TUNED), config(Path("b"), **{**TUNED, "data": "elsewhere", "data_dir": "d"})
    measurement: Any = SimpleNamespace(
        dataset=SimpleNamespace(fingerprint=lambda: "a1b2"),
        chosen=SimpleNamespace(trunk=SimpleNamespace(key="k"), cut=SimpleNamespace(name="top")),
    )
    identity = run_identity(here, measurement)
    assert identity == run_identity(there, measurement)
    assert {name.replace("-", "_") for name in identity} >= here.to_json().keys() - {"data", "out", "data_dir"}
    assert (identity["data"], identity["chosen backbone"], identity["chosen cut"]) == ("a1b2", "k", "top")


def test_how_the_machine_computes_is_a_part_of_the_identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def said(pointwise: str) -> str:
        monkeypatch.setattr(resume, "detect", lambda precision: Hardware(pointwise=pointwise))
        return resume._hardware(config(tmp_path))

    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert said("convolution") == "cpu, float32, 1 x 1 convolution, Keras on tensorflow"
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert said("bfloat16") == "cpu, float32, 1 x 1 bfloat16, Keras on jax"
