"""How many random views: tried in turn, kept while the paired gain is beyond one standard error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from transferapp.backbones.feature_store import CENTER, random_view_name
from transferapp.config import FitConfig
from transferapp.data.dataset import Dataset, Record
from transferapp.recipes.fit import solve as random_views
from transferapp.recipes.fit.solve import VIEW_STEPS, ViewChoice, choose_views
from transferapp.system.progress import Silent
from transferapp.training.probe import CrossValidation, cross_validate, log_softmax

NUM_FEATURES = 12
Draw = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Store:
    """Random views made of the center view by a rule, the same each time for the same image and view."""

    def __init__(self, center: np.ndarray, draw: Draw) -> None:
        self._center, self._draw = center, draw
        self.asked: list[list[str]] = []

    def collect(self, records: Sequence[Record], names: Sequence[str], progress: Any = None) -> np.ndarray:
        self.asked.append(list(names))
        views = [
            self._center
            if name == CENTER
            else self._draw(self._center, np.random.default_rng([int(part) for part in name.split("-")[1:]]))
            for name in names
        ]
        return np.stack(views, axis=1).astype(np.float32)


@dataclass
class Example:
    """A measurement of images of three classes that are hard to tell apart from one view.

    Attributes:
        measurement: As far as the choice of views looks at it.
        store: The store of random views.
        center: Features of the center views, shape (n, NUM_FEATURES).
    """

    measurement: Any
    store: Store
    center: np.ndarray

    @property
    def train(self) -> Dataset:
        return self.measurement.dataset  # type: ignore[no-any-return]

    @property
    def validation(self) -> CrossValidation:
        """Cross-validation with the center views alone."""
        return self.measurement.weighting.validation  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _small_sets_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try views on the sixty images of the example."""
    monkeypatch.setattr(random_views, "TRIED_FROM", 60)


def example(
    draw: Draw, n: int = 60, *, tails: tuple[str, ...] = (), mixture: Mapping[str, float] | None = None
) -> Example:
    rng = np.random.default_rng(0)
    labels = np.sort(np.arange(n) % 3)
    means = rng.normal(size=(3, NUM_FEATURES))[labels]
    center = (means + 2 * rng.normal(size=(n, NUM_FEATURES))).astype(np.float32)
    records = tuple(Record(str(i), str(i), int(label), "train", f"{i:064}") for i, label in enumerate(labels))
    store = Store(center, draw)
    measurement = SimpleNamespace(
        dataset=Dataset("images", ("a", "b", "c"), records),
        plan=SimpleNamespace(tails=tails, mixture=mixture or {}),
        weighting=SimpleNamespace(validation=cross_validate(center, labels, 3, seed=7), weights=None),
        chosen=SimpleNamespace(spec=SimpleNamespace(name="numeric"), store=store, features=lambda rows: rows),
    )
    return Example(measurement, store, center)


def chosen(draw: Draw, train_views: str = "auto", **options: Any) -> tuple[ViewChoice, Example]:
    given = example(draw, **options)
    return choose_views(given.measurement, FitConfig(train_views=train_views, seed=7), Silent()), given


def copies(center: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A view that shows nothing new."""
    return center


def rubbish(center: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A view that misleads."""
    return center + 20 * rng.normal(size=center.shape)


def fresh(center: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A view as good as another image of the class: what augmentation dreams of."""
    means = np.random.default_rng(0).normal(size=(3, NUM_FEATURES))[np.sort(np.arange(len(center)) % 3)]
    return means + 2 * rng.normal(size=center.shape)


@pytest.mark.parametrize("draw", [copies, rubbish])
def test_views_that_bring_nothing_are_not_trained_on(draw: Draw) -> None:
    choice, given = chosen(draw)
    assert choice.views == 0
    assert choice.validation is given.validation
    assert [tried.views for tried in choice.tried] == [0, VIEW_STEPS[0]]
    assert "no gain beyond one standard error over the center view alone" in choice.reason


def test_views_that_bring_much_are_trained_on_as_long_as_they_do() -> None:
    choice, _ = chosen(fresh)
    assert choice.views >= VIEW_STEPS[0]
    assert [tried.views for tried in choice.tried] == [0, *VIEW_STEPS][: len(choice.tried)]
    for tried in choice.tried[1:]:
        assert tried.gain is not None
        assert tried.standard_error is not None
        assert (tried.gain > tried.standard_error) == (tried.views <= choice.views)
    losses = [tried.loss for tried in choice.tried if tried.views <= choice.views]
    assert losses == sorted(losses, reverse=True)
    assert choice.validation.loss == losses[-1]


@pytest.mark.parametrize(("changes", "views"), [((0.3, -0.28), 0), ((0.05, -0.03), VIEW_STEPS[0])])
def test_a_gain_counts_from_one_standard_error(
    changes: tuple[float, float], views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = example(copies)
    labels = given.train.labels

    def with_losses(losses: np.ndarray) -> CrossValidation:
        probabilities = np.repeat((1 - np.exp(-losses))[:, None] / 2, 3, axis=1)
        probabilities[np.arange(len(losses)), labels] = np.exp(-losses)
        return CrossValidation(0.1, (1.0,), np.log(probabilities), np.ones(len(losses), bool), float(losses.mean()))

    # A hundredth of a nat saved on average: less than the standard error of .037, or more than that of .005.
    given.measurement.weighting.validation = with_losses(np.full(60, 1.0))
    with_views = with_losses(1 - np.tile(changes, 30))
    monkeypatch.setattr("transferapp.recipes.fit.solve.cross_validate", lambda *args, **options: with_views)
    choice = choose_views(given.measurement, FitConfig(seed=7), Silent())
    assert choice.views == views
    assert choice.tried[1].gain == pytest.approx(0.01)
    assert choice.tried[1].standard_error == pytest.approx(np.std(changes) * np.sqrt(60 / 59 / 60))


def test_a_gain_that_lasts_to_the_most_that_is_tried_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferapp.recipes.fit.solve.VIEW_STEPS", (2,))
    choice, _ = chosen(fresh)
    assert choice.views == 2
    assert "still a gain at the most that is tried" in choice.reason


def test_gain_and_standard_error_are_paired_by_image() -> None:
    choice, given = chosen(fresh)
    train, names = given.train, [random_view_name(i, 7) for i in range(VIEW_STEPS[0])]
    extra = Store(given.center, fresh).collect(train.records, names)
    with_views = cross_validate(given.center, train.labels, 3, extra=extra, seed=7)

    def losses(validation: CrossValidation) -> np.ndarray:
        return -log_softmax(validation.logits)[np.arange(len(train)), train.labels]

    saved = losses(given.validation) - losses(with_views)
    tried = choice.tried[1]
    assert tried.gain == pytest.approx(saved.mean(), rel=1e-5)
    assert tried.standard_error == pytest.approx(saved.std(ddof=1) / np.sqrt(len(saved)), rel=1e-5)
    assert (tried.accuracy, tried.loss) == (with_views.accuracy, with_views.loss)


@pytest.mark.parametrize("number", [0, 1, 5])
def test_a_number_that_is_given_is_used_and_nothing_else_is_tried(number: int) -> None:
    choice, given = chosen(rubbish, str(number))
    assert choice.views == number
    assert [tried.views for tried in choice.tried] == [number]
    random = [names for names in given.store.asked if names != [CENTER]]
    assert random == ([[random_view_name(i, 7) for i in range(number)]] if number else [])
    assert choice.reason == "set by --train-views"


def test_the_choice_is_the_same_each_time() -> None:
    assert chosen(fresh)[0].tried == chosen(fresh)[0].tried


def test_on_few_images_and_for_a_mixture_none_are_tried() -> None:
    for options, said in (({"n": 59}, "not tried on 59 images"), ({"mixture": {"top": 1.0}}, "a mixture of stages")):
        choice, given = chosen(fresh, **options)
        assert (choice.views, choice.tried) == (0, ())
        assert said in choice.reason
        assert choice.validation is given.validation
        assert given.store.asked == []
        assert chosen(fresh, "2", **options)[0].views == 2, "unless a number is given"


def test_where_parts_of_the_backbone_will_be_tuned_none_are_tried() -> None:
    choice, given = chosen(fresh, tails=("last stage",))
    assert (choice.views, choice.tried) == (0, ())
    assert choice.validation is given.validation
    assert given.store.asked == []
    asked, given = chosen(fresh, "2", tails=("last stage",))
    assert asked.views == 2, "unless a number is given"
