"""What a bundle says of a bake-off: in JSON that any reader takes, and in a table of every epoch."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from transferapp.recipes.fit.bench import Contender
from transferapp.recipes.fit.manifest import contender_json, history_table

from transferapp.recipes.fit.fine_tune import BakeOff
from transferapp.training.curves import Finding
from transferapp.training.settings import Epoch

BROKEN = (
    Epoch(1, 1e-3, 0.75, 0.5, 0.625, 0.75, 0.5, 0.875, 2.0),
    Epoch(2, 5e-4, math.nan, 0.25, math.inf, 0.5, None, None, 1.5),
)
CONTENDER = Contender(
    "last stage",
    "block14",
    accuracy=0.875,
    loss=0.5,
    seconds=12.5,
    planned_epochs=8,
    epochs=2,
    history=BROKEN,
    findings=(Finding("rate_too_high", "It blew up.", {"epoch": 2.0}, "Divide by ten."),),
)


def test_a_run_that_blew_up_can_be_written_as_json() -> None:
    document = json.loads(json.dumps(contender_json(CONTENDER), allow_nan=False))
    first, second = document["history"]
    assert first == {**vars(BROKEN[0])}
    assert (second["loss"], second["val_loss"], second["averaged_val_loss"]) == (None, None, None)
    assert (second["epoch"], second["accuracy"], second["seconds"]) == (2, 0.25, 1.5)
    assert document["findings"] == [
        {"code": "rate_too_high", "sentence": "It blew up.", "evidence": {"epoch": 2.0}, "advice": "Divide by ten."}
    ]
    assert document["name"] == "last stage"
    assert document["chosen"] is False


def test_the_history_has_a_line_for_every_epoch_of_every_contender() -> None:
    probe = Contender("solved classifier", "top", 0.8, 0.4, chosen=True)
    unread: Any = None  # where something was tuned
    outcome = BakeOff((probe, CONTENDER, Contender("whole network", "input")), probe, unread)
    rows = list(csv.DictReader(io.StringIO(history_table(unread, outcome))))
    assert [(row["contender"], row["epoch"]) for row in rows] == [("last stage", "1"), ("last stage", "2")]
    assert list(rows[0]) == ["contender", *vars(BROKEN[0])]
    assert float(rows[0]["averaged_val_accuracy"]) == 0.875
    assert rows[1]["averaged_val_accuracy"] == ""
    assert math.isnan(float(rows[1]["loss"]))
