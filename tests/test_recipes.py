"""Fit and plan as functions: what they refuse before any work, what they tell, what they leave."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.fitted import BACKBONE, fitted, pictures, workplace
from tests.tiny_bundle import make_tiny_bundle
from transferapp import recipes
from transferapp.config import FitConfig, make_config
from transferapp.errors import BundleError, DataError, ResourceError, UsageError
from transferapp.progress import Advance, Silent
from transferapp.storage import sha256_file


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
    return make_config({"data": str(pictures()), "out": str(out), "backbone": BACKBONE, **changes})


def test_two_fits_do_not_write_to_one_place(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with FileLock(tmp_path / ".bundle.lock"), pytest.raises(DataError, match="Another fit is writing to") as caught:
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
    with pytest.raises(DataError, match="There is no folder"):
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
    assert list(measurement.plan.reasons) == manifest["plan"]["reasons"]
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
    for step in ("reading 42 pictures", "probing", "random views", "test pictures", "network", "bundle"):
        assert step in steps


@pytest.mark.slow
def test_without_held_back_pictures_there_are_no_figures_but_a_bundle(tmp_path: Path) -> None:
    result = recipes.fit(config(tmp_path / "all", val_fraction=0.0, test_fraction=0.0, train_views="0"), Silent())
    assert result.manifest["metrics"] == {"validation": None, "test": None}
    assert "cross-validated" in (tmp_path / "all" / "report.html").read_text(encoding="utf-8")
