"""Printed figures of `evaluate` and `predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cli.conftest import Show
from transferapp.bundle.predictor import Prediction, Score
from transferapp.cli import card as tables


def evaluation(classes: int = 3, **changes: Any) -> dict[str, Any]:
    per_class = {
        f"class {i}": {"num_images": 10, "precision": 0.9, "recall": 1 - i / 100, "f1": 0.8} for i in range(classes)
    }
    return {
        "accuracy": 0.9,
        "accuracy_interval": [0.84, 0.94],
        "num_images": 150,
        "macro_recall": 0.92,
        "macro_f1": 0.91,
        "top5_accuracy": 1.0,
        "loss": 0.3,
        "views": 10,
        "split": "test",
        "num_seen": 0,
        "seen_included": False,
        "num_ignored": 0,
        "per_class": per_class,
        **changes,
    }


def test_an_evaluation_shows_the_class_with_the_lowest_recall_first(in_pipe: Show) -> None:
    lines = in_pipe(tables.show_evaluation, evaluation())
    assert lines[0].split() == ["accuracy", "0.900", "(95", "%", "interval", "0.84", "to", "0.94)"]
    assert [line.split("  ")[0] for line in lines[-3:]] == ["class 2", "class 1", "class 0"]
    assert "note" not in "\n".join(lines)
    assert all(line == line.rstrip() for line in lines)


def test_an_evaluation_notes_images_it_left_out_or_was_trained_on(in_pipe: Show) -> None:
    omitted = "\n".join(in_pipe(tables.show_evaluation, evaluation(num_seen=1200)))
    assert "1,200 images that the bundle was trained on were left out" in omitted
    included = "\n".join(in_pipe(tables.show_evaluation, evaluation(num_seen=5, seen_included=True, num_ignored=2)))
    assert "5 images that the bundle was trained on are included" in included
    assert "2 files " in included


def test_of_many_classes_thirty_are_shown(in_pipe: Show) -> None:
    many = evaluation(80)
    many["per_class"] |= {"absent": {"num_images": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}}
    lines = in_pipe(tables.show_evaluation, many)
    assert lines[-1].startswith("... and 50 classes")
    assert any(line.startswith("class 79 ") for line in lines)
    assert not any(line.startswith(("class 49 ", "absent")) for line in lines)


def prediction(scores: Sequence[tuple[str, float]], **changes: Any) -> Prediction:
    return Prediction(
        tuple(Score(*each) for each in scores), 10, "PNG", (8, 8), **{"notes": (), "seconds": {}, **changes}
    )


def test_a_prediction(in_pipe: Show) -> None:
    scores = [("shih tzu", 0.99996), ("犬", 0.5), ("z", 0.00004), ("a\x1bb", 0.0)]
    shown = prediction(scores, notes=("first_frame", "exif_rotated"), known=True, prediction_set=("shih tzu",))
    assert in_pipe(tables.show_prediction, Path("my\ndog.png"), shown, 0.9) == [
        r"my\ndog.png  (first_frame, exif_rotated)",
        "  shih tzu  >99.9%  " + 30 * "█",
        "  犬         50.0%  " + 15 * "█",
        "  z          <0.1%",
        r"  a\x1bb      0.0%",
    ]


def test_a_prediction_of_an_unknown_image_says_so_in_place_of_its_set(in_pipe: Show) -> None:
    shown = prediction([("cat", 0.6)], novelty=0.9876, known=False, prediction_set=("cat", "dog"))
    assert in_pipe(tables.show_prediction, Path("a.png"), shown, 0.9)[-1] == (
        "  It looks like none of these classes (novelty 0.988)"
    )


def test_a_prediction_set_of_several_classes_is_listed(in_pipe: Show) -> None:
    few = prediction([("cat", 0.6)], novelty=0.5, known=True, prediction_set=("cat", "d\x1bg"))
    assert in_pipe(tables.show_prediction, Path("a.png"), few, 0.9)[-1] == (
        r"  One of cat, d\x1bg (the set for 90.0% coverage)"
    )
    many = prediction([("0", 0.6)], prediction_set=tuple(map(str, range(12))))
    assert "9 and 2 more classes" in in_pipe(tables.show_prediction, Path("a.png"), many, 0.9)[-1]
