"""The search space: its parser, draws, narrowing and edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from transferapp.errors import UsageError
from transferapp.recipes.search.space import Dimension, edges, narrow, parse_over, parse_space


def test_learning_rate_and_l2_are_searched_unless_named_otherwise() -> None:
    assert [d.written() for d in parse_space([])] == ["learning_rate=1e-06..0.1", "l2=1e-05..10"]
    named = parse_space(["l2=0.1", "dropout=0..0.6", "hidden=0,128,256x64"])
    assert [d.written() for d in named] == [
        "learning_rate=1e-06..0.1",
        "l2=0.1",
        "dropout=0..0.6",
        "hidden=0,128,256x64",
    ]
    assert named[3].choices == ((), (128,), (256, 64))


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("momentun=0..1", "Unknown setting 'momentun'"),
        ("l2", "NAME=LOW..HIGH or NAME=a,b,c"),
        ("l2=", "NAME=LOW..HIGH or NAME=a,b,c"),
        ("l2=0..1", "begins at 0, which has no logarithm"),
        ("l2=1..1", "The range of l2 is empty"),
        ("l2=2..1", "The range of l2 is empty"),
        ("dropout=0..2", "a number from 0 to 0.95, got '2'"),
        ("dropout=nan..0.5", "got 'nan'"),
        ("hidden=1.5..3", "a whole number"),
        ("hidden=128x0", "A hidden layer has no units"),
        ("activation=relu..tanh", "activation has no range"),
        ("activation=swish", "Unknown activation 'swish'"),
        ("optimizer=lbfgs", "Unknown optimizer 'lbfgs'"),
        ("batch_norm=1", "Expected yes or no"),
        ("l2=0.1,0.1", "names a value twice"),
    ],
)
def test_invalid_items_are_refused(over: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_over(over)
    assert said in str(caught.value)


def test_a_setting_is_named_once() -> None:
    with pytest.raises(UsageError, match="names l2 twice"):
        parse_space(["l2=1..2", "l2=3..4"])


def test_rates_are_halved_on_a_logarithmic_scale_and_shares_on_a_linear_one() -> None:
    assert Dimension("learning_rate", 1e-6, 1e-2).value_at(0.5) == pytest.approx(1e-4)
    assert Dimension("dropout", 0.0, 0.5).value_at(0.5) == pytest.approx(0.25)
    assert Dimension("batch_size", 16, 64).value_at(0.5) == 40


def test_an_edge_is_the_end_of_a_range_but_not_the_limit_of_a_setting() -> None:
    space = parse_space(["dropout=0..0.6"])
    (edge,) = edges(space, {"learning_rate": 0.09, "l2": 0.01, "dropout": 0.0})
    assert (edge.dimension.name, edge.upper) == ("learning_rate", True)
    assert edge.beyond.high == 10.0
    assert "lies at the high end of its range (0.1)" in edge.sentence()
    assert edges(space, {"learning_rate": 1e-3, "l2": 0.01, "dropout": 0.3}) == ()


def test_a_range_narrows_to_the_span_of_the_best_fifth() -> None:
    space = (Dimension("learning_rate", 1e-6, 1e-1),)
    best = [{"learning_rate": rate} for rate in (1e-3, 1e-4, 1e-2)]
    rest = [{"learning_rate": 10.0 ** (-6 + i / 3)} for i in range(12)]
    (closer,), (note,) = narrow(space, [*best, *rest])
    assert (closer.low, closer.high) == pytest.approx((1e-4, 1e-2))
    assert note == "learning_rate=0.0001..0.01: the span of the best 3 trials"


def test_a_range_keeps_a_fifth_of_its_width_around_the_best() -> None:
    (closer,), _ = narrow((Dimension("learning_rate", 1e-6, 1e-1),), [{"learning_rate": 1e-3}] * 3)
    assert math.log10(closer.high / closer.low) == pytest.approx(1.0)
    assert math.sqrt(closer.high * closer.low) == pytest.approx(1e-3)


def test_a_range_is_extended_beyond_the_end_that_the_best_lies_at() -> None:
    (closer,), (note,) = narrow((Dimension("learning_rate", 1e-6, 1e-2),), [{"learning_rate": 9.9e-3}] * 3)
    assert closer.high == pytest.approx(1e-1), "a quarter of four decades"
    assert "extended" in note
    (share,), _ = narrow((Dimension("dropout", 0.0, 0.95),), [{"dropout": 0.95}] * 3)
    assert share.high == 0.95, "the limit of the setting"


def test_of_choices_those_of_the_best_stay() -> None:
    space = parse_space(["activation=relu,tanh,elu"])
    at = {"learning_rate": 1e-3, "l2": 0.1}
    narrowed, notes = narrow(space, [{**at, "activation": name} for name in ("relu", "elu", "relu", "tanh")])
    assert narrowed[2].choices == ("relu", "elu")
    assert any(note.startswith("activation=relu,elu") for note in notes)


def test_draws_stay_in_their_ranges_and_are_even_on_their_scale() -> None:
    rng = np.random.default_rng(0)
    drawn = {
        d.name: [d.draw(rng) for _ in range(400)]
        for d in parse_space(["batch_size=4..8", "hidden=0..2", "activation=relu,tanh"])
    }
    rates = np.log10(np.array(drawn["learning_rate"], float))
    assert -6 <= rates.min() < -5.9
    assert -1.1 < rates.max() <= -1
    assert abs((rates < -3.5).mean() - 0.5) < 0.1, "as many below the middle of the logarithmic range as above"
    assert set(drawn["batch_size"]) == {4, 5, 6, 7, 8}
    assert set(drawn["hidden"]) == {(), (1,), (2,)}
    assert set(drawn["activation"]) == {"relu", "tanh"}
