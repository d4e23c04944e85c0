"""Entries of a search in the manifest of its bundle, and the table of its trials."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from typing import Any

from transferapp.data.dataset import Dataset
from transferapp.policy.plan import Plan
from transferapp.policy.reasons import Reason
from transferapp.recipes.search.space import SearchSettings, written
from transferapp.recipes.search.trials import Searched, Trial, ranked

TOP_SHOWN = 10
"""Trials in the table of the report."""


def carried_out(plan: Plan, searched: Searched) -> Plan:
    """Return the plan with a searched head in place of the solved one."""
    settings, trials = searched.settings, len(searched.trials)
    hidden = written(settings.head.hidden)
    form = "linear classifier" if settings.head.linear else f"head with hidden layers of {hidden}"
    text = f"The learning rate is {settings.learning_rate:.3g}, found by {trials} trials on the validation images."
    rate = Reason("rate", text, {"learning_rate": settings.learning_rate, "trials": trials})
    return replace(
        plan,
        proposals=(),
        method=f"{form}, {settings.optimizer} by search",
        head_learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        reasons=(*(reason for reason in plan.reasons if reason.topic not in ("head", "rate", "tune")), rate),
    )


def search_json(
    searched: Searched, settings: SearchSettings, optimum: dict[str, float], dataset: Dataset
) -> dict[str, Any]:
    """Return the manifest's entry on the search."""
    num_validation, num_test = len(dataset.part("val")), len(dataset.part("test"))
    return {
        **settings.to_json(),
        "phases": [
            {
                "name": phase.name,
                "over": [dimension.written() for dimension in phase.space],
                "trials": phase.trials,
                "epochs": phase.base.epochs,
            }
            for phase in searched.phases
        ],
        "narrowed": list(searched.notes),
        "edges": [edge.sentence() for edge in searched.edges],
        "settings": searched.settings.to_json(),
        "best": trial_json(searched.best),
        "top": [trial_json(trial) for trial in ranked(searched.trials)[:TOP_SHOWN]],
        "points": [
            [trial.params["learning_rate"], trial.params["l2"], trial.outcome.accuracy, trial.phase]
            for trial in searched.trials
        ],
        "optimum": optimum,
        "chosen_by": f"{num_validation} validation images; the figure of the best of many trials is optimistic",
        "final_figure": (
            f"{num_test} test images that took no part in the search" if num_test else "none: there are no test images"
        ),
    }


def trial_json(trial: Trial) -> dict[str, Any]:
    """Return a trial as a plain dictionary."""
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


def trials_table(searched: Searched) -> str:
    """Return all trials as CSV."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    names = [dimension.name for dimension in searched.phases[0].space]
    writer.writerow(["trial", "phase", *names, "val_accuracy", "val_loss", "epochs", "exploded", "seconds", "best"])
    for trial in searched.trials:
        values = [f"{v:.8g}" if isinstance(v, float) else written(v) for v in (trial.params[name] for name in names)]
        entry = trial_json(trial)
        loss = "" if entry["loss"] is None else f"{entry['loss']:.6f}"
        outcome = [f"{entry['accuracy']:.6f}", loss, entry["epochs"], int(entry["exploded"]), entry["seconds"]]
        writer.writerow([trial.index, trial.phase, *values, *outcome, int(trial is searched.best)])
    return table.getvalue()
