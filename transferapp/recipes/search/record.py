"""What is written down of a search: the lecture's line of each trial, the table of all, and what the manifest says."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transferapp.recipes.fit.candidate import Candidate
from transferapp.recipes.search.problem import HeadSettings
from transferapp.recipes.search.settings import SearchSettings
from transferapp.recipes.search.space import Edge, written
from transferapp.recipes.search.study import Phase, Trial, ranked

TOP_SHOWN = 10
"""Trials in the report's table."""


@dataclass(frozen=True)
class Searched:
    """All trials of a search.

    Attributes:
        trials: In their order.
        phases: What they were drawn from; one or two.
        notes: How the range was narrowed.
        best: The one that ships.
        settings: What that one was told.
        edges: Where it lies at the end of the range that it was drawn from.
    """

    trials: tuple[Trial, ...]
    phases: tuple[Phase, ...]
    notes: tuple[str, ...]
    best: Trial
    settings: HeadSettings
    edges: tuple[Edge, ...]


def line(trial: Trial, settings: HeadSettings, total: int) -> str:
    """A trial as the lecture prints it: `val_acc: 0.527000, lr: 5.349517e-04, reg: 4.09e-01, (0 / 100)`."""
    others = "".join(
        f"{name}: {written(value)}, " for name, value in trial.params.items() if name not in ("learning_rate", "l2")
    )
    return (
        f"val_acc: {trial.outcome.accuracy:.6f}, lr: {settings.learning_rate:.6e}, reg: {settings.head.l2:.2e}, "
        f"{others}({trial.index} / {total})"
    )


def head_json(found: Searched, searched: Candidate, train_views: int) -> dict[str, Any]:
    """What the manifest says of the head."""
    assert searched.classifier is not None
    settings = found.settings
    return {
        "kind": "searched",
        "description": settings.head.describe(),
        "form": settings.head.to_json(),
        "l2": settings.head.l2,
        "iterations": searched.steps,
        "temperature": searched.classifier.temperature,
        "train_views": train_views,
        "settings": {name: value for name, value in settings.to_json().items() if name != "head"},
    }


def search_json(
    found: Searched, settings: SearchSettings, optimum: dict[str, float], num_validation: int, num_test: int
) -> dict[str, Any]:
    """What the manifest says of the search."""
    best = found.best
    return {
        **settings.to_json(),
        "phases": [
            {
                "name": phase.name,
                "over": [dimension.written() for dimension in phase.space],
                "trials": sum(trial.phase == phase.name for trial in found.trials),
                "epochs": phase.epochs,
            }
            for phase in found.phases
        ],
        "narrowed": list(found.notes),
        "edges": [edge.sentence() for edge in found.edges],
        "best": trial_json(best),
        "top": [trial_json(trial) for trial in ranked(found.trials)[:TOP_SHOWN]],
        "points": [
            [trial.params["learning_rate"], trial.params["l2"], trial.outcome.accuracy, trial.phase]
            for trial in found.trials
        ],
        "optimum": optimum,
        "chosen_by": f"{num_validation} validation images, on which the best of all trials flatters itself",
        "final_figure": (
            f"{num_test} test images that the search never saw" if num_test else "none: there are no test images"
        ),
    }


def trial_json(trial: Trial) -> dict[str, Any]:
    """A trial as a plain dictionary."""
    loss = trial.outcome.loss
    return {
        "trial": trial.index,
        "phase": trial.phase,
        "params": {name: written(v) if isinstance(v, tuple) else v for name, v in trial.params.items()},
        "accuracy": trial.outcome.accuracy,
        "loss": loss if math.isfinite(loss) else None,
        "epochs": trial.outcome.epochs,
        "exploded": trial.outcome.exploded,
        "seconds": round(trial.outcome.seconds, 4),
    }


def trials_table(found: Searched) -> str:
    """Every trial, in CSV."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    names: Sequence[str] = [dimension.name for dimension in found.phases[0].space]
    writer.writerow(["trial", "phase", *names, "val_accuracy", "val_loss", "epochs", "exploded", "seconds", "best"])
    for trial in found.trials:
        outcome = trial.outcome
        values = [f"{v:.8g}" if isinstance(v, float) else written(v) for v in (trial.params[name] for name in names)]
        loss = f"{outcome.loss:.6f}" if math.isfinite(outcome.loss) else ""
        judged = [f"{outcome.accuracy:.6f}", loss, outcome.epochs, int(outcome.exploded), f"{outcome.seconds:.4f}"]
        writer.writerow([trial.index, trial.phase, *values, *judged, int(trial is found.best)])
    return table.getvalue()
