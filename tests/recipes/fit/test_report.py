"""Candidates in the manifest, as JSON that any reader takes, and in the table of epochs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from transferapp.evaluation.metrics import measure
from transferapp.recipes.fit.candidate import SOLVED, Candidate
from transferapp.recipes.fit.report import Fitted, candidate_reason, candidates_json, history_table
from transferapp.training.curves import Finding
from transferapp.training.settings import Epoch

BROKEN = (
    Epoch(1, 1e-3, 0.75, 0.5, 0.625, 0.75, 0.5, 0.875, 2.0),
    Epoch(2, 5e-4, math.nan, 0.25, math.inf, 0.5, None, None, 1.5),
)
METRICS = measure(np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.6, 0.4]]), np.array([0, 1, 1, 1]), ("a", "b"))
"""Three of four right."""

CLASSIFIER: Any = SimpleNamespace(linear=None)
"""Weights that nothing here looks at."""

SOLVED_ONE = Candidate(SOLVED, "small", "top", head_only=True, classifier=CLASSIFIER, metrics=METRICS)
TUNED = Candidate(
    "last stage",
    "small",
    "block14",
    classifier=CLASSIFIER,
    metrics=dataclasses.replace(METRICS, accuracy=0.875, loss=0.5),
    seconds=12.5,
    planned_epochs=8,
    epochs=2,
    notes=("epoch 2", "batches of 8, because memory ran out"),
    history=BROKEN,
    findings=(Finding("rate_too_high", "It blew up.", {"epoch": 2.0}, "Divide by ten."),),
)
LEFT_OUT = Candidate("whole network", "small", "input", notes=("left out: there was no time",), no_time=True)


def test_a_run_that_blew_up_can_be_written_as_json() -> None:
    _, document = json.loads(json.dumps(candidates_json((SOLVED_ONE, TUNED), SOLVED_ONE), allow_nan=False))
    first, second = document["history"]
    assert first == {**vars(BROKEN[0])}
    assert (second["loss"], second["val_loss"], second["averaged_val_loss"]) == (None, None, None)
    assert (second["epoch"], second["accuracy"], second["seconds"]) == (2, 0.25, 1.5)
    assert document["findings"] == [
        {"code": "rate_too_high", "sentence": "It blew up.", "evidence": {"epoch": 2.0}, "advice": "Divide by ten."}
    ]
    assert document["name"] == "last stage"
    assert document["chosen"] is False
    assert (document["accuracy"], document["loss"], document["seconds"]) == (0.875, 0.5, 12.5)


def test_a_loss_that_is_no_number_becomes_null() -> None:
    broken = dataclasses.replace(TUNED, metrics=dataclasses.replace(METRICS, loss=math.nan))
    assert candidates_json((SOLVED_ONE, broken), SOLVED_ONE)[1]["loss"] is None


def test_where_nothing_was_trained_beside_the_solved_classifier_there_is_no_comparison() -> None:
    assert candidates_json((SOLVED_ONE,), SOLVED_ONE) == []


def test_candidates_name_their_backbone_where_there_are_several() -> None:
    cheap = dataclasses.replace(TUNED, backbone="cheap")
    documents = candidates_json((SOLVED_ONE, LEFT_OUT, cheap), cheap)
    names = ["small: linear classifier", "small: whole network", "cheap: last stage"]
    assert [each["name"] for each in documents] == names
    assert [each["chosen"] for each in documents] == [False, False, True]


@pytest.mark.parametrize(
    ("candidate", "others", "winner", "reason"),
    [
        (SOLVED_ONE, (TUNED,), TUNED, ""),
        (SOLVED_ONE, (TUNED,), SOLVED_ONE, "nothing that was trained is clearly better on the validation images"),
        (SOLVED_ONE, (LEFT_OUT,), SOLVED_ONE, "nothing else could be trained in the time there was"),
        (
            SOLVED_ONE,
            (LEFT_OUT, dataclasses.replace(LEFT_OUT, no_time=False)),
            SOLVED_ONE,
            "nothing else could be trained",
        ),
        (LEFT_OUT, (LEFT_OUT,), SOLVED_ONE, "left out: there was no time"),
        (
            TUNED,
            (TUNED,),
            TUNED,
            "+12.5 points against the linear classifier (epoch 2); batches of 8, because memory ran out",
        ),
    ],
)
def test_every_candidate_has_its_reason(
    candidate: Candidate, others: tuple[Candidate, ...], winner: Candidate, reason: str
) -> None:
    assert candidate_reason(candidate, (SOLVED_ONE, *others), winner) == reason


def test_the_history_has_a_line_for_every_epoch_of_every_candidate() -> None:
    unread: Any = None
    fitted = Fitted(unread, unread, (SOLVED_ONE, TUNED, LEFT_OUT), SOLVED_ONE, unread)
    rows = list(csv.DictReader(io.StringIO(history_table(fitted))))
    assert [(row["candidate"], row["epoch"]) for row in rows] == [("last stage", "1"), ("last stage", "2")]
    assert list(rows[0]) == ["candidate", *vars(BROKEN[0])]
    assert float(rows[0]["averaged_val_accuracy"]) == 0.875
    assert rows[1]["averaged_val_accuracy"] == ""
    assert math.isnan(float(rows[1]["loss"]))
