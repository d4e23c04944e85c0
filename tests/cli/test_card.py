"""The decision card and the outcome of a fit: layout, numbers, and the whole text in golden/card.txt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Show
from tests.helpers.golden import check_golden
from tests.helpers.manifests import (
    backbone,
    candidate,
    crops,
    leaks,
    left_out,
    linear,
    long_manifest,
    make_manifest,
    metrics_of,
    mixed_manifest,
    plan,
    reason,
    tuned_manifest,
)
from transferapp.cli import card

FINDINGS: dict[str, Any] = {
    "num_images": 180,
    "counts": {"ant": 90, "bee": 60, "wasp": 30},
    "imbalance": 3.0,
    "exact_duplicates": 1,
    "near_duplicates": 2,
    "num_clusters": 3,
    "conflicts": 1,
    "num_similar": 0,
    "overlaps": [],
}


def full_manifest() -> dict[str, Any]:
    """A manifest with everything that the card and the outcome can show."""
    manifest = tuned_manifest(
        class_weights={"reason": reason("classes", "Class weights are not used.")},
        leaks=leaks(num_similar=1),
    )
    ignored = [{"name": "ant/x.jpg", "code": "empty_file", "reason": "The image is empty."}]
    manifest["data"] = {**manifest["data"], "findings": FINDINGS, "ignored": ignored}
    return manifest


def line_with(text: str, lines: list[str]) -> int:
    (index,) = [index for index, line in enumerate(lines) if text in line]
    return index


def test_the_whole_text(on_terminal: Show, in_pipe: Show) -> None:
    path, manifest = Path("models/insects"), full_manifest()
    parts = {
        "80 columns": on_terminal(80, card.show_card, make_manifest()),
        "120 columns": on_terminal(120, card.show_card, manifest),
        "pipe": in_pipe(card.show_card, manifest),
        "mixture of stages": in_pipe(card.show_card, mixed_manifest()),
        "long images": in_pipe(card.show_card, long_manifest()),
        "outcome of long images": in_pipe(card.show_outcome, long_manifest(), path, 71.2),
        "outcome": in_pipe(card.show_outcome, manifest, path, 71.2),
        "outcome without held-out images": in_pipe(
            card.show_outcome,
            make_manifest(metrics={"validation": None, "test": None}, test_views=crops(tried=[])),
            path,
            3.0,
        ),
    }
    text = "\n\n".join("\n".join([f"--- {name}", "", *lines]) for name, lines in parts.items())
    check_golden(Path(__file__).parent / "golden" / "card.txt", text)


@pytest.mark.parametrize(("width", "used"), [(60, 60), (80, 80), (100, 100), (140, 110)])
def test_the_card_is_a_frame_as_wide_as_the_window_up_to_a_comfortable_line(
    on_terminal: Show, width: int, used: int
) -> None:
    lines = on_terminal(width, card.show_card, make_manifest())
    assert {len(line) for line in lines} == {used}
    assert lines[0].startswith("╭─")
    assert lines[-1].endswith("─╯")
    assert all(line[0] == line[-1] == "│" for line in lines[1:-1])


@pytest.mark.parametrize("width", [80, 140])
def test_the_card_shows_every_reason_and_condition(on_terminal: Show, width: int) -> None:
    manifest = make_manifest()
    words = " ".join(" ".join(on_terminal(width, card.show_card, manifest)).replace("│", " ").split())
    for each in (*manifest["plan"]["reasons"], *manifest["plan"]["would_change"]):
        assert each["text"] in words
    assert manifest["plan"]["quadrant"] in words
    assert words.count("▶") == (2 if width == 140 else 3), "the quadrant, and the backbone in one or two tables"


def test_wrapped_text_continues_below_its_own_beginning(on_terminal: Show) -> None:
    manifest = make_manifest()
    lines = on_terminal(80, card.show_card, manifest)
    for each in (manifest["plan"]["reasons"][0], manifest["plan"]["would_change"][0]):
        beginning = each["text"][:30]
        first = line_with(beginning, lines)
        column = lines[first].index(beginning)
        assert lines[first + 1][:column].strip("│ ") == ""
        assert lines[first + 1][column] != " "


def test_labels_are_right_aligned_and_printed_once(on_terminal: Show) -> None:
    manifest = make_manifest()
    lines = on_terminal(110, card.show_card, manifest)
    columns, last = set(), ""
    for each in manifest["plan"]["reasons"]:
        beginning = each["text"][:40]
        line = lines[line_with(beginning, lines)]
        column = line.index(beginning)
        columns.add(column)
        assert line[:column].strip("│ ") == ("" if each["topic"] == last else each["topic"])
        last = each["topic"]
    assert len(columns) == 1


def test_stages_stand_beside_the_backbone_where_there_is_room_and_below_it_where_not(on_terminal: Show) -> None:
    profile = re.escape("0.38  0.81  0.93*")
    wide = on_terminal(110, card.show_card, make_manifest())
    assert re.search(rf"▶ efficientnet_lite0  top +0\.933 +30 ms +{profile}", "\n".join(wide))
    narrow = on_terminal(80, card.show_card, make_manifest())
    assert any(re.search(r"▶ efficientnet_lite0  top +0\.933 +30 ms +│$", line) for line in narrow)
    assert any(re.search(rf"▶ efficientnet_lite0  {profile}", line) for line in narrow)


def test_many_stages_and_long_names_still_fit(on_terminal: Show) -> None:
    long = backbone("a" * 60, chosen=True)
    long["stages"] *= 10
    assert {len(line) for line in on_terminal(80, card.show_card, make_manifest(backbones=[long]))} == {80}


def test_a_pipe_gets_the_same_card_without_frame_colors_and_blanks(in_pipe: Show) -> None:
    lines = in_pipe(card.show_card, make_manifest())
    text = "\n".join(lines)
    assert lines[0] == "DECISION CARD"
    assert not set(text) & set("\x1b│─╭╮╰╯")
    assert all(line == line.rstrip() for line in lines)
    assert max(map(len, lines)) <= 100


def test_ten_of_the_files_left_out_are_named(in_pipe: Show) -> None:
    manifest = make_manifest()
    manifest["data"]["ignored"] = [
        {"name": f"cats/{i}.jpg", "code": "truncated", "reason": "ends early"} for i in range(12)
    ]
    lines = in_pipe(card.show_card, manifest)
    assert sum("ends early" in line for line in lines) == 10
    assert lines[-1].strip() == "... and 2 more"


def test_each_candidate_has_a_row_and_the_one_that_ships_a_mark(in_pipe: Show) -> None:
    lines = [line.split() for line in in_pipe(card.show_card, tuned_manifest())]
    assert ["linear", "classifier", "top", "0.800", "0.400"] in lines
    assert ["▶", "last", "two", "stages", "block10", "0.800", "0.400", "3", "of", "8", "61", "s"] in lines
    assert ["whole", "network", "input", "-", "-", "0", "of", "2"] in lines
    without = make_manifest(candidates=[linear(loss=None), left_out()])
    assert ["linear", "classifier", "top", "0.800", "-"] in [line.split() for line in in_pipe(card.show_card, without)]


def test_names_from_outside_neither_color_nor_break_a_line(on_terminal: Show, in_pipe: Show) -> None:
    bad = "[red]\x1b[2J\nx"
    manifest = make_manifest(
        plan={**plan(), "backbone": bad, "cut": bad, "reasons": [reason("cut", bad)]},
        backbones=[{**backbone(bad, chosen=True), "cut": bad}],
        candidates=[linear(), candidate(bad, cut=bad, reason=bad, chosen=True)],
    )
    manifest["data"]["ignored"] = [{"name": bad, "code": "truncated", "reason": bad}]
    for lines in (on_terminal(140, card.show_card, manifest), in_pipe(card.show_card, manifest)):
        text = "\n".join(lines)
        assert "\x1b" not in text
        assert text.count(r"[red]\x1b[2J\nx") >= 7


def test_the_outcome_counts_images_and_quotes_the_path(in_pipe: Show) -> None:
    lines = in_pipe(card.show_outcome, make_manifest(), Path("models/my dogs"), 71.2)
    text = " ".join(" ".join(lines).split())
    assert re.search(r"validation accuracy 0\.852 .* 23 of 27 ", text)
    assert re.search(r"test accuracy 0\.800 \(95 % interval 0\.66 to 0\.89\): 36 of 45 held-out ", text)
    assert any(re.fullmatch(r"▶ 10 +0\.925 +\+2\.5 ± 1\.7 +30 ms", line) for line in lines)
    assert lines[-2:] == ["  transferapp predict 'models/my dogs' IMAGE...", "  transferapp serve 'models/my dogs'"]


@pytest.mark.parametrize(
    ("served", "before", "expected"),
    [
        ("bf16", False, "in bf16; probabilities differ from the Keras model's by at most 0.002 (32 images compared)"),
        ("bf16", True, "in bf16; probabilities differ from those in f32 by at most 0.002 (32 images compared)"),
        ("f32", True, "the Keras model's by at most 1e-07 (32 images compared in an earlier fit with this backbone)"),
    ],
)
def test_what_probabilities_were_compared_with(in_pipe: Show, served: str, before: bool, expected: str) -> None:
    manifest = make_manifest(precision={"served": served}, parity_before=before)
    assert expected in " ".join(" ".join(in_pipe(card.show_outcome, manifest, Path("m"), 1.0)).split())


def test_validation_images_that_selected_the_model_are_not_called_held_out(in_pipe: Show) -> None:
    def outcome(manifest: dict[str, Any]) -> str:
        return " ".join(" ".join(in_pipe(card.show_outcome, manifest, Path("m"), 1.0)).split())

    assert "selected the model" in outcome(tuned_manifest())
    assert "selected the model" not in outcome(make_manifest())
    overlap = outcome(make_manifest(leaks=leaks()))
    assert "held-out test" not in overlap
    assert "overlap 2 of 5 test images" in overlap
    assert "overlap" not in outcome(make_manifest())


def test_one_image_is_not_images(in_pipe: Show) -> None:
    metrics = {"validation": None, "test": metrics_of([0], [0], ["ant", "bee", "wasp"]).to_json()}
    assert "1 of 1 held-out" in " ".join(in_pipe(card.show_outcome, make_manifest(metrics=metrics), Path("m"), 1.0))
