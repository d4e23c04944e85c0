"""Messages and exit codes of all exceptions."""

from __future__ import annotations

import pickle
import re

import pytest

from tests.helpers.corpus import CORPUS, OK
from transferapp import errors
from transferapp.errors import (
    BundleError,
    DataError,
    ImageError,
    ResourceError,
    TrainingError,
    TransferAppError,
    UsageError,
    WeightsError,
)


def family(root: type[TransferAppError] = TransferAppError) -> set[type[TransferAppError]]:
    """The error classes of the module itself."""
    below = {child for child in root.__subclasses__() if child.__module__ == errors.__name__}
    return {root}.union(*(family(child) for child in below))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "The folder is empty."),
        ({"expected": "images"}, "The folder is empty. Expected images."),
        ({"got": "3 texts"}, "The folder is empty. Got 3 texts."),
        ({"expected": "images", "got": "3 texts"}, "The folder is empty. Expected images, got 3 texts."),
        ({"hint": "Name another"}, "The folder is empty. Name another."),
        (
            {"expected": "images", "got": "3 texts", "hint": "Name another"},
            "The folder is empty. Expected images, got 3 texts. Name another.",
        ),
    ],
)
def test_a_message_states_what_happened_what_was_expected_what_was_found_and_a_hint(
    parts: dict[str, str], message: str
) -> None:
    assert str(DataError("The folder is empty", **parts)) == message
    with_stops = {name: text + "." for name, text in parts.items()}
    assert str(DataError("The folder is empty.", **with_stops)) == message  # full stops are set once


def test_the_parts_can_be_read_one_by_one() -> None:
    error = UsageError("What", expected="this", got="that", hint="Do so")
    assert (error.what, error.expected, error.got, error.hint) == ("What", "this", "that", "Do so")
    assert error.args == ("What",)


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = {name: int(code) for name, code in re.findall(r"(\w+Error) +exit (\d)", errors.__doc__ or "")}
    assert drawn == {kind.__name__: kind.exit_code for kind in family()}


@pytest.mark.parametrize(
    ("kind", "exit_code", "parent"),
    [
        (TransferAppError, 1, Exception),
        (UsageError, 2, TransferAppError),
        (DataError, 3, TransferAppError),
        (ImageError, 3, DataError),
        (BundleError, 4, TransferAppError),
        (ResourceError, 5, TransferAppError),
        (WeightsError, 5, ResourceError),
        (TrainingError, 6, TransferAppError),
    ],
)
def test_each_family_has_its_exit_code(kind: type[TransferAppError], exit_code: int, parent: type[Exception]) -> None:
    assert kind("x").exit_code == exit_code
    assert kind.__bases__ == (parent,)


def test_a_code_is_the_classes_own_unless_given_and_all_are_snake_case() -> None:
    assert ImageError("x").code == "undecodable"
    assert ImageError("x", code="truncated").code == "truncated"
    codes = {kind("x").code for kind in family()}
    assert len(codes) == len(family())
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", code) for code in codes)


def test_every_code_that_a_image_can_be_refused_with_is_documented() -> None:
    codes = {outcome for case in CORPUS for outcome in case.outcomes} - {OK} | {"too_many_bytes", "unreadable"}
    assert set(re.findall("(?<!`)`([a-z_]+)`", ImageError.__doc__ or "")) == codes


def test_an_error_survives_the_way_between_processes() -> None:
    error = ImageError("The image is cut short", expected="all", got="half", hint="Copy it", code="truncated")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.code) == (ImageError, str(error), "truncated")
