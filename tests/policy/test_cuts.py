"""Cuts of each quadrant, worked out by hand on backbones of any length."""

from __future__ import annotations

import pytest

from transferapp.errors import UsageError
from transferapp.policy.cuts import INPUT, propose

LITE = ("block2", "block4", "block7", "block10", "block14", "top")


def cuts(size: str, similarity: str, stages: tuple[str, ...] = LITE, tune: str = "auto") -> list[tuple[str, str]]:
    return [(p.name, p.cut) for p in propose(size, similarity, stages, tune)]


def test_small_and_similar_tunes_nothing() -> None:
    assert cuts("small", "similar") == []


def test_small_and_different_tries_one_cut_where_there_is_time() -> None:
    assert cuts("small", "different") == [("all but the first stages", "block4")]


@pytest.mark.parametrize("similarity", ["similar", "different"])
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("tune", ["auto", "last", "all"])
def test_without_time_nothing_is_tuned(size: str, similarity: str, tune: str) -> None:
    assert propose(size, similarity, LITE, tune, budget=0.0) == ()


def test_large_and_similar_tunes_the_last_stages() -> None:
    assert cuts("large", "similar") == [
        ("last two stages", "block10"),
        ("all but the first stages", "block4"),
    ]


def test_large_and_different_tunes_everything() -> None:
    assert cuts("large", "different") == [("all but the first stages", "block4"), ("whole network", INPUT)]


@pytest.mark.parametrize(
    ("tune", "cut"), [("last", "block14"), ("last-two", "block10"), ("most", "block4"), ("all", INPUT)]
)
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_person_may_insist(size: str, tune: str, cut: str) -> None:
    ((_, found),) = cuts(size, "similar", tune=tune)
    assert found == cut


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_person_may_want_nothing_tuned(size: str) -> None:
    assert cuts(size, "different", tune="none") == []


@pytest.mark.parametrize(
    ("stages", "similar", "different"),
    [
        (("a",), [INPUT], [INPUT]),  # nothing of a single stage can be frozen
        (("a", "b"), ["a"], ["a", INPUT]),  # the last two are everything
        (("a", "b", "c"), ["a"], ["a", INPUT]),  # the last two are all but the first
        (("a", "b", "c", "d"), ["b", "a"], ["a", INPUT]),
        (tuple("abcdefghi"), ["g", "c"], ["c", INPUT]),  # three of nine stay frozen
    ],
)
def test_short_backbones_are_not_cut_twice_at_one_place(
    stages: tuple[str, ...], similar: list[str], different: list[str]
) -> None:
    for similarity, expected in (("similar", similar), ("different", different)):
        found = cuts("large", similarity, stages)
        assert [cut for _, cut in found] == expected


@pytest.mark.parametrize(("tune", "stages"), [("last", ("a",)), ("last-two", ("a", "b")), ("most", ("a",))])
def test_what_does_not_fit_a_backbone_is_refused(tune: str, stages: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=rf"--tune {tune} does not fit this backbone.*--tune all"):
        propose("large", "similar", stages, tune)
