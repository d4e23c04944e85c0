"""What a person reads at the end of a command: the decision card, the outcome, the figures."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transferapp.cli import card
from transferapp.policy.reasons import Reason

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def reason(topic: str, text: str) -> dict[str, Any]:
    return Reason(topic, text).to_json()


PLAN: dict[str, Any] = {
    "quadrant": "small + different",
    "size": "small",
    "similarity": "different",
    "divergence": 0.85,
    "num_images": 266,
    "num_classes": 7,
    "backbone": "efficientnet_lite0",
    "cut": "block7",
    "tuned": "none",
    "method": "linear probe, full-batch L-BFGS",
    "head_learning_rate": None,
    "backbone_learning_rate": 0.0,
    "epochs": 0,
    "reasons": [
        reason("size", "The training set is small: 266 images, 18 in the median class (large from 1,000)."),
        reason("similarity", "D is 0.85, not below 0.55: ImageNet's classes say little about these labels."),
        reason("similarity", "A classifier on block7 differs from one on the last stage by +6.8 ± 2.6 points."),
        reason(
            "rule", "small + different: train a linear classifier on an earlier stage, whose features are more general."
        ),
        reason("cut", "The classifier reads block7: accuracy 0.876, +6.8 ± 2.6 points against the last stage."),
        reason("rate", "There is none to choose: L-BFGS solves a linear classifier to its optimum."),
    ],
    "would_change": [
        reason(
            "size",
            "734 more training images and 30 in the median class would make the set large, and part of the "
            "backbone would be fine-tuned.",
        ),
        reason("similarity", "D below 0.55 would make the set similar (it is 0.85)."),
    ],
}


def candidate(name: str, *, cut: str = "block7", chosen: bool = False, stages: int = 6) -> dict[str, Any]:
    names = [*(f"block{i}" for i in range(2, stages)), "block7", "top"]
    return {
        "backbone": name,
        "cut": cut,
        "accuracy": 0.876,
        "milliseconds": 55.2,
        "chosen": chosen,
        "stages": [{"stage": stage, "accuracy": 0.70 + 0.02 * i} for i, stage in enumerate(names)],
    }


CANDIDATES = [candidate("efficientnet_lite0", chosen=True), candidate("efficientnet_lite2", cut="top")]

Show = Callable[..., list[str]]


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """Show something on a terminal of a width; its lines, without the colors."""

    def show(width: int, function: Callable[..., None], *arguments: Any) -> list[str]:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", str(width))
        function(*arguments)
        colored = capsys.readouterr().out
        assert ANSI.search(colored)
        return ANSI.sub("", colored).splitlines()

    return show


@pytest.fixture
def in_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """Show something that is piped away; its lines."""

    def show(function: Callable[..., None], *arguments: Any) -> list[str]:
        for name in ("FORCE_COLOR", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        function(*arguments)
        return capsys.readouterr().out.splitlines()

    return show


def line_with(text: str, lines: list[str]) -> int:
    (index,) = [index for index, line in enumerate(lines) if text in line]
    return index


@pytest.mark.parametrize(("width", "used"), [(60, 60), (80, 80), (100, 100), (140, 110)])
def test_the_card_is_a_frame_as_wide_as_the_window_up_to_a_comfortable_line(
    on_terminal: Show, width: int, used: int
) -> None:
    lines = on_terminal(width, card.show_card, PLAN, CANDIDATES, [])
    assert {len(line) for line in lines} == {used}
    assert lines[0].startswith("╭─")
    assert "decision card" in lines[0]
    assert lines[-1].endswith("─╯")
    assert all(line[0] == line[-1] == "│" for line in lines[1:-1])


@pytest.mark.parametrize("width", [80, 140])
def test_the_card_says_all_that_was_found_and_decided(on_terminal: Show, width: int) -> None:
    words = " ".join(" ".join(on_terminal(width, card.show_card, PLAN, CANDIDATES, [])).replace("│", " ").split())
    for reason in PLAN["reasons"]:
        assert reason["text"] in words
    for note in PLAN["would_change"]:
        assert note["text"] in words
    assert "266 training images, 7 classes → small + different" in words
    assert "▶ linear classifier on" in words
    assert words.count("▶") == (2 if width == 140 else 3)
    assert "method linear probe, full-batch L-BFGS, on efficientnet_lite0" in words
    assert "backbone efficientnet_lite0. It does as well as efficientnet_lite2, at the same cost." in words
    assert "D how badly ImageNet's classes predict these labels" in words


@pytest.mark.parametrize("beginning", ["The training set", "small + different: train", "734 more"])
def test_what_wraps_goes_on_below_its_own_beginning(on_terminal: Show, beginning: str) -> None:
    lines = on_terminal(80, card.show_card, PLAN, CANDIDATES, [])
    first = line_with(beginning, lines)
    column = lines[first].index(beginning)
    assert lines[first + 1][:column].strip("│ ") == ""
    assert lines[first + 1][column] != " "


def test_labels_stand_right_aligned_beside_their_sentences_and_are_said_once(on_terminal: Show) -> None:
    lines = on_terminal(110, card.show_card, PLAN, CANDIDATES, [])
    labels = ("size", "similarity", "", "rule", "cut", "rate")
    columns = set()
    for label, reason in zip(labels, PLAN["reasons"], strict=True):
        sentence = reason["text"][:50]
        line = lines[line_with(sentence, lines)]
        columns.add(line.index(sentence))
        before = line[: line.index(sentence)].strip("│")
        assert before.strip() == label
        assert before.endswith(f"{label}  ")
    assert len(columns) == 1


def test_stages_stand_beside_the_backbone_where_there_is_room_and_below_it_where_not(on_terminal: Show) -> None:
    profile = "0.70  0.72  0.74  0.76  0.78* 0.80"
    wide = on_terminal(110, card.show_card, PLAN, CANDIDATES, [])
    assert re.search(r"▶ efficientnet_lite0  block7 +0\.876 +55 ms +" + re.escape(profile), "\n".join(wide))
    narrow = on_terminal(80, card.show_card, PLAN, CANDIDATES, [])
    assert any(re.search(r"▶ efficientnet_lite0  block7 +0\.876 +55 ms +│$", line) for line in narrow)
    assert any(re.search(r"▶ efficientnet_lite0  " + re.escape(profile), line) for line in narrow)
    assert any(re.search(r"  efficientnet_lite2  0\.70  0\.72  0\.74  0\.76  0\.78  0\.80\*", line) for line in narrow)


def test_many_stages_and_long_names_still_fit(on_terminal: Show) -> None:
    tried = [candidate("a" * 60, chosen=True, stages=30), candidate("b")]
    assert {len(line) for line in on_terminal(80, card.show_card, PLAN, tried, [])} == {80}


def test_the_only_backbone_needs_no_reason(on_terminal: Show) -> None:
    words = " ".join(on_terminal(100, card.show_card, PLAN, CANDIDATES[:1], []))
    assert "as well as" not in words
    assert "No other backbone" not in words


def test_a_large_set_gets_its_rates(in_pipe: Show) -> None:
    rate = reason("rate", "The head's rate is 0.001 and the backbone's 0.0001.")
    plan = {**PLAN, "size": "large", "quadrant": "large + different", "tuned": "all", "reasons": [rate]}
    text = "\n".join(in_pipe(card.show_card, plan, CANDIDATES, []))
    assert "rate  The head's rate is 0.001 and the backbone's 0.0001." in text
    assert "▶ fine-tune the" in text
    assert "What was compared" not in text, "nothing was"


def test_a_pipe_gets_the_same_card_without_frame_colors_and_blanks(in_pipe: Show) -> None:
    lines = in_pipe(card.show_card, PLAN, CANDIDATES, [])
    text = "\n".join(lines)
    assert lines[0] == "DECISION CARD"
    assert not set(text) & set("\x1b│─╭╮╰╯")
    assert all(line == line.rstrip() for line in lines)
    assert max(map(len, lines)) <= 100
    assert "      size  The training set is small: 266 images" in text
    assert "▶ efficientnet_lite0  block7" in text


def test_files_left_out_are_named_ten_of_them(in_pipe: Show) -> None:
    ignored = [{"name": f"cats/{i}.jpg", "code": "truncated", "reason": "ends early"} for i in range(12)]
    lines = in_pipe(card.show_card, PLAN, CANDIDATES, ignored)
    start = line_with("12 files were left out:", lines)
    assert lines[start + 1].strip() == "cats/0.jpg: ends early"
    assert lines[-1].strip() == "... and 2 more"
    assert "1 file was left out:" in in_pipe(card.show_card, PLAN, CANDIDATES, ignored[:1])


def test_names_from_outside_neither_color_nor_break_a_line(on_terminal: Show, in_pipe: Show) -> None:
    bad = "[red]\x1b[2J\nx"
    ignored = [{"name": bad, "code": "truncated", "reason": bad}]
    plan = {**PLAN, "backbone": bad, "cut": bad, "reasons": [reason("cut", bad)], "would_change": [reason("size", bad)]}
    tried = [candidate(bad, cut=bad, chosen=True)]
    for lines in (
        on_terminal(100, card.show_card, plan, tried, ignored),
        in_pipe(card.show_card, plan, tried, ignored),
    ):
        text = "\n".join(lines)
        assert "\x1b" not in text
        assert text.count(r"[red]\x1b[2J\nx") >= 6


def figures(accuracy: float = 0.9, num_images: int = 150) -> dict[str, Any]:
    macro = {"macro_recall": 0.92, "macro_f1": 0.91}
    return {"accuracy": accuracy, "accuracy_interval": [0.84, 0.94], "num_images": num_images, **macro}


def manifest(**metrics: Any) -> dict[str, Any]:
    return {
        "metrics": {"validation": None, "test": None, **metrics},
        "test_views": {"views": 10, "tried": [], "num_images": 0, "reasons": ["there are no validation images"]},
        "precision": {"served": "bf16"},
        "parity": {"bf16": {"precision": "bf16", "max_difference": 0.0021, "num_images": 32}},
    }


def test_the_outcome(in_pipe: Show) -> None:
    path = Path("models/my dogs")
    lines = in_pipe(card.show_outcome, manifest(test=figures(), validation=figures(0.8, 10)), path, 71.2)
    text = " ".join(" ".join(lines).split())
    assert "validation accuracy 0.800: 8 of 10 unseen images right" in text
    assert (
        "test accuracy 0.900: 135 of 150 unseen images right by their center view, 95 % interval 0.84 to 0.94" in text
    )
    assert "served in bf16; no probability differs from the Keras model's by more than 0.002 (32 images" in text
    assert "bundle models/my dogs, after 1 min 11 s" in text
    assert lines[-2:] == ["  transferapp predict 'models/my dogs' IMAGE...", "  transferapp serve 'models/my dogs'"]


def leaks(**changes: Any) -> dict[str, Any]:
    overlap = {"split": "test", "others": ["train", "val"], "num_images": 150, "exact": 4, "near": 5, "group": 0}
    return {"overlap": overlap, "num_similar": 1, "similar": [], "honest": figures(0.8, 140), **changes}


def test_the_honest_figure_stands_beside_the_naive_one(in_pipe: Show) -> None:
    document = {**manifest(test=figures()), "leaks": leaks()}
    text = " ".join(" ".join(in_pipe(card.show_outcome, document, Path("m"), 1.0)).split())
    assert "test accuracy 0.900: 135 of 150 test images right" in text
    assert "mean recall 0.920, mean F1 0.910: every class counts the same" in text
    assert "honest 9 of 150 test images are among the training and validation images too: 4 byte for byte, 5" in text
    assert "1 test image more looks like one that was learned from" in text
    assert "without these: accuracy 0.800, 112 of 140 images right, 95 % interval 0.84 to 0.94" in text
    document["leaks"] = leaks(honest=None)
    assert "no test image is left" in " ".join(in_pipe(card.show_outcome, document, Path("m"), 1.0))
    nothing = {**leaks(num_similar=0)["overlap"], "exact": 0, "near": 0}
    document["leaks"] = leaks(overlap=nothing, num_similar=0, honest=None)
    assert "honest" not in " ".join(in_pipe(card.show_outcome, document, Path("m"), 1.0))


def test_the_outcome_says_what_views_gain_and_cost(in_pipe: Show) -> None:
    tried = [
        {"views": 1, "accuracy": 0.9, "loss": 0.3, "gain": None, "standard_error": None, "milliseconds": 9.5},
        {"views": 10, "accuracy": 0.925, "loss": 0.2, "gain": 0.025, "standard_error": 0.017, "milliseconds": 95.4},
    ]
    views = {"views": 10, "tried": tried, "num_images": 80, "reasons": ["ten crops, as usual"]}
    lines = in_pipe(card.show_outcome, {**manifest(), "test_views": views}, Path("m"), 3.0)
    assert "Views that are averaged in a prediction: 10 by default" in lines
    assert any(re.fullmatch(r"▶ 10 +0\.925 +\+2\.5 ± 1\.7 +95 ms", line) for line in lines)
    assert "ten crops, as usual" in lines


def test_the_outcome_without_held_back_images(in_pipe: Show) -> None:
    text = "\n".join(in_pipe(card.show_outcome, manifest(), Path("m"), 3.0))
    assert "accuracy" not in text
    assert "there are no validation images" in text
    assert "bundle  m, after 3.0 s" in text


def evaluation(classes: int = 3, **changes: Any) -> dict[str, Any]:
    per_class = {
        f"class {i}": {"num_images": 10, "precision": 0.9, "recall": 1 - i / 100, "f1": 0.8} for i in range(classes)
    }
    return {
        **figures(),
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


def test_an_evaluation_shows_the_hardest_class_first(in_pipe: Show) -> None:
    lines = in_pipe(card.show_evaluation, evaluation())
    assert lines[0].split() == ["accuracy", "0.900,", "95", "%", "interval", "0.84", "to", "0.94"]
    assert [line.split("  ")[0] for line in lines[-3:]] == ["class 2", "class 1", "class 0"]
    assert "note" not in "\n".join(lines)
    assert all(line == line.rstrip() for line in lines)


def test_an_evaluation_owns_up_to_what_it_counts(in_pipe: Show) -> None:
    left_out = "\n".join(in_pipe(card.show_evaluation, evaluation(num_seen=1200)))
    assert "1,200 images that the bundle was trained on were left out" in left_out
    counted = "\n".join(in_pipe(card.show_evaluation, evaluation(num_seen=5, seen_included=True, num_ignored=2)))
    assert "5 images that the bundle was trained on are counted in" in counted
    assert "2 files could not be read and were left out" in counted


def test_of_many_classes_the_hard_ones_are_shown(in_pipe: Show) -> None:
    unseen = {"absent": {"num_images": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}}
    many = evaluation(80)
    many["per_class"] |= unseen
    lines = in_pipe(card.show_evaluation, many)
    assert lines[-1] == "... and 50 classes that are easier; --json has them all"
    assert any(line.startswith("class 79 ") for line in lines)
    assert not any(line.startswith(("class 49 ", "absent")) for line in lines)


def test_a_prediction(in_pipe: Show) -> None:
    scores = [("shih tzu", 0.99996), ("犬", 0.5), ("z", 0.00004), ("a\x1bb", 0.0)]
    lines = in_pipe(card.show_prediction, Path("my\ndog.png"), ("first_frame", "exif_rotated"), scores)
    assert lines == [
        r"my\ndog.png  (first_frame, exif_rotated)",
        "  shih tzu  >99.9%  " + 30 * "█",
        "  犬         50.0%  " + 15 * "█",
        "  z          <0.1%",
        r"  a\x1bb      0.0%",
    ]
