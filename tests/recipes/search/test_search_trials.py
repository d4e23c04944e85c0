"""Trials: heads trained by mini-batches, the same from the same seed, and the journal that keeps their outcomes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.search_problems import clusters
from transferapp.recipes.search.space import SCHEDULES, parse_space
from transferapp.recipes.search.trials import (
    HeadSettings,
    HeadTrainer,
    Journal,
    Outcome,
    Phase,
    Trial,
    judged,
    promising,
    ranked,
    run_phase,
)
from transferapp.training.head_spec import HeadSpec
from transferapp.training.heads import build_head
from transferapp.training.optimizers import OPTIMIZERS
from transferapp.training.probe import fit_probe

BUILT = tuple(name for name, spec in OPTIMIZERS.items() if spec.keras_class)
SPACE = parse_space(["batch_size=8..64", "label_smoothing=0,0.1"])
PHASE = Phase("coarse", SPACE, trials=8, first=0, base=HeadSettings(HeadSpec(), epochs=2), seed=3)
PROBLEM = clusters()


def loss_of(trainer: HeadTrainer, settings: HeadSettings) -> float:
    return judged(trainer.train(settings).logits, PROBLEM.val.labels)[1]


def finish(path: Path, phase: Phase = PHASE, stop_after: int | None = None) -> list[Trial]:
    running = run_phase(phase, PROBLEM, HeadTrainer(PROBLEM), Journal(path))
    trials = [trial for trial, _ in zip(running, range(stop_after or phase.trials), strict=False)]
    return [dataclasses.replace(t, outcome=dataclasses.replace(t.outcome, seconds=0.0)) for t in trials]


def trial(index: int, accuracy: float, loss: float, exploded: bool = False) -> Trial:
    return Trial(index, "fine", {}, Outcome(accuracy, loss, 1, exploded, 0.0))


def test_a_line_is_the_lectures() -> None:
    first = Trial(0, "coarse", {"learning_rate": 5.349517e-04, "l2": 0.409}, Outcome(0.527, 1.0, 5, False, 0.1))
    settings = HeadSettings(HeadSpec()).with_params(first.params)
    assert first.line(settings, 100) == "val_acc: 0.527000, lr: 5.349517e-04, reg: 4.09e-01, (0 / 100)"
    more = dataclasses.replace(first, index=7, params={**first.params, "hidden": (256, 64), "dropout": 0.25})
    assert more.line(settings, 100).endswith("reg: 4.09e-01, hidden: 256x64, dropout: 0.25, (7 / 100)")


def test_logits_that_are_not_finite_count_as_wrong() -> None:
    assert judged(np.array([[np.nan, 1.0]]), np.array([1])) == (0.0, math.inf)


def test_settings_are_replaced_by_name_in_the_head_or_beside_it() -> None:
    base = HeadSettings(HeadSpec(activation="tanh"))
    changed = base.with_params({"learning_rate": 0.5, "l2": 0.25, "hidden": (8,)})
    assert (changed.learning_rate, changed.epochs) == (0.5, base.epochs)
    assert (changed.head.l2, changed.head.hidden, changed.head.activation) == (0.25, (8,), "tanh")


def test_accuracy_ranks_then_loss_and_exploded_trials_come_last() -> None:
    order = ranked([trial(0, 0.9, 9.0, exploded=True), trial(1, 0.8, 0.5), trial(2, 0.8, 0.4), trial(3, 0.85, 2.0)])
    assert [t.index for t in order] == [3, 2, 1, 0]


def test_a_range_narrows_by_loss_where_accuracies_tie_within_a_standard_error() -> None:
    close = [trial(0, 0.92, 4.0), trial(1, 0.91, 0.3), trial(2, 0.70, 0.1)]
    assert [t.index for t in promising(close, num_validation=90)] == [1, 0, 2]
    assert [t.index for t in promising(close, num_validation=100_000)] == [0, 1, 2]


# ---------------------------------------------------------------------------------------------------------------- journal


def test_outcomes_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    outcomes = {4: Outcome(0.5, 0.7, 5, False, 0.1), 2: Outcome(0.0, math.inf, 1, True, 0.2)}
    for index, outcome in outcomes.items():
        Journal(tmp_path / "trials").add(index, outcome)
    assert Journal(tmp_path / "trials").outcomes == outcomes


@pytest.mark.parametrize("half", [b'{"trial": 5, "acc', b'{"trial": 5}\n{"trial": 6}\n', b"\x00\x00\n"])
def test_a_journal_is_cut_before_its_first_incomplete_line(tmp_path: Path, half: bytes) -> None:
    path = tmp_path / "trials"
    outcome = Outcome(0.5, 0.7, 5, False, 0.1)
    Journal(path).add(4, outcome)
    with path.open("ab") as stream:
        stream.write(half)
    Journal(path).add(5, outcome)
    assert Journal(path).outcomes == {4: outcome, 5: outcome}


# --------------------------------------------------------------------------------------------------------------- training


@pytest.mark.slow
def test_the_seed_alone_decides_the_draws_and_their_outcomes(tmp_path: Path) -> None:
    once, twice = finish(tmp_path / "a"), finish(tmp_path / "b")
    assert [t.index for t in once] == list(range(8))
    assert once == twice
    assert once != finish(tmp_path / "c", dataclasses.replace(PHASE, seed=4))


@pytest.mark.slow
def test_an_interrupted_phase_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    path = tmp_path / "trials"
    finish(path, stop_after=3)
    before = path.read_bytes()
    assert finish(path) == finish(tmp_path / "other")
    assert path.read_bytes().startswith(before), "no trial was run twice"


@pytest.mark.slow
def test_a_linear_head_comes_to_the_optimum_of_lbfgs() -> None:
    settings = HeadSettings(HeadSpec(l2=0.1), learning_rate=0.02, batch_size=80, epochs=400)
    trained = HeadTrainer(PROBLEM).train(settings)
    probe = fit_probe(PROBLEM.train.center, PROBLEM.train.labels, PROBLEM.num_classes, 0.1)
    np.testing.assert_allclose(trained.head.weights[0], probe.kernel, atol=2e-3)
    np.testing.assert_allclose(trained.logits, probe.logits(PROBLEM.val.center), atol=2e-2)


@pytest.mark.slow
def test_a_cost_that_explodes_ends_training_early() -> None:
    trained = HeadTrainer(PROBLEM).train(HeadSettings(HeadSpec(), "sgd", 1e4, epochs=10))
    assert trained.exploded
    assert trained.epochs < 10


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", BUILT)
def test_every_optimizer_trains_a_linear_head(optimizer: str) -> None:
    settings = HeadSettings(HeadSpec(l2=1e-3), optimizer, 1e-2, batch_size=32, epochs=20, weight_decay=0.01)
    assert loss_of(HeadTrainer(PROBLEM), settings) < 0.8 * math.log(PROBLEM.num_classes)


@pytest.mark.slow
def test_every_setting_changes_the_outcome() -> None:
    base = HeadSettings(HeadSpec(l2=1e-3), learning_rate=0.01, batch_size=16, epochs=2)
    changes: list[dict[str, Any]] = [
        {},
        {"weight_decay": 0.5},
        {"label_smoothing": 0.2},
        {"batch_size": 80},
        *({"schedule": name} for name in SCHEDULES if name != base.schedule),
    ]
    trainer = HeadTrainer(PROBLEM)
    losses = [loss_of(trainer, base.with_params(change)) for change in changes]
    assert len(set(losses)) == len(changes)


@pytest.mark.slow
def test_heads_of_one_form_share_a_compiled_step_and_nothing_else() -> None:
    trainer = HeadTrainer(PROBLEM)
    spec = HeadSpec(hidden=(16,), dropout=0.1, dropconnect=0.1, batch_norm=True)
    base = HeadSettings(spec, learning_rate=0.01, epochs=4)
    first = loss_of(trainer, base)
    changes = ({"l2": 1.0}, {"l1": 0.1}, {"dropout": 0.8}, {"dropconnect": 0.8})
    losses = [loss_of(trainer, base.with_params(change)) for change in changes]
    assert len({first, *losses}) == 5
    assert trainer._compiled.cache_info().misses == 1
    assert loss_of(trainer, base) == first, "no trace of the trials in between is left"


@pytest.mark.slow
def test_the_head_that_ships_computes_what_was_trained() -> None:
    import keras

    spec = HeadSpec(hidden=(16, 8), activation="maxout", dropout=0.2, dropconnect=0.2, batch_norm=True, l2=0.01)
    trained = HeadTrainer(PROBLEM).train(HeadSettings(spec, learning_rate=0.01, epochs=3))
    inputs = keras.Input((24,))
    outputs = build_head(spec, inputs, PROBLEM.num_classes, trained.head.mean, trained.head.std, for_prediction=True)
    ships = keras.Model(inputs, outputs)
    ships.set_weights(trained.head.weights)
    np.testing.assert_allclose(ships(PROBLEM.val.center), trained.logits, atol=1e-4)
