"""Printed figures of `evaluate` and `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cli.conftest import Show
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


def test_a_prediction(in_pipe: Show) -> None:
    scores = [("shih tzu", 0.99996), ("犬", 0.5), ("z", 0.00004), ("a\x1bb", 0.0)]
    lines = in_pipe(tables.show_prediction, Path("my\ndog.png"), ("first_frame", "exif_rotated"), scores)
    assert lines == [
        r"my\ndog.png  (first_frame, exif_rotated)",
        "  shih tzu  >99.9%  " + 30 * "█",
        "  犬         50.0%  " + 15 * "█",
        "  z          <0.1%",
        r"  a\x1bb      0.0%",
    ]
