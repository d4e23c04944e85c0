"""Trials in a journal: the same from the same seed, none lost and none run twice, whoever runs them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.helpers.search_problems import clusters
from transferapp.errors import DataError
from transferapp.recipes.search.problem import HeadSettings, Outcome
from transferapp.recipes.search.space import parse_space
from transferapp.recipes.search.study import Journal, Phase, Trainers, Trial, import_optuna, promising, ranked
from transferapp.recipes.search.workers import run_phase
from transferapp.training.head_spec import HeadSpec

SPACE = parse_space(["batch_size=8..64", "label_smoothing=0,0.1"])
PHASE = Phase("coarse", SPACE, trials=8, first=0, epochs=2, base=HeadSettings(HeadSpec()), seed=3)
PROBLEM = clusters()


def finish(path: Path, phase: Phase = PHASE, workers: int = 1) -> dict[int, Trial]:
    with Journal(path) as journal:
        journal.begin(phase, {"seed": 3})
        for _ in run_phase(journal, phase, PROBLEM, Trainers(PROBLEM), workers):
            pass
        return {trial.index: untimed(trial) for trial in journal.finished(phase)}


def untimed(trial: Trial) -> Trial:
    return dataclasses.replace(trial, outcome=dataclasses.replace(trial.outcome, seconds=0.0))


def trial(index: int, accuracy: float, loss: float, exploded: bool = False) -> Trial:
    return Trial(index, "fine", {}, Outcome(accuracy, loss, 1, exploded, 0.0))


def test_the_seed_alone_decides_which_trials_there_are_and_what_comes_of_them(tmp_path: Path) -> None:
    once, twice = finish(tmp_path / "a"), finish(tmp_path / "b")
    assert sorted(once) == list(range(8))
    assert once == twice
    assert once != finish(tmp_path / "c", dataclasses.replace(PHASE, seed=4))


def test_an_interrupted_search_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        assert not journal.begin(PHASE, {"seed": 3})
        running = run_phase(journal, PHASE, PROBLEM, Trainers(PROBLEM), 1)
        before = [next(running) for _ in range(3)]
        study = import_optuna().load_study(storage=journal.storage, study_name="coarse")
        study.ask()  # what a killed process was at
    with path.open("ab") as stream:
        stream.write(b'{"op_code": 4, "half a li')
    with Journal(path) as journal:
        assert journal.begin(PHASE, {"seed": 3})
        left = list(run_phase(journal, PHASE, PROBLEM, Trainers(PROBLEM), 1))
    assert len(left) == 8 - len(before)
    assert finish(path) == finish(tmp_path / "other")


def test_another_search_does_not_go_on_with_this_one(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        journal.begin(PHASE, {"seed": 3, "data": "a"})
        with pytest.raises(DataError, match=r"data was 'a' and is 'b'; seed was 3 and is 4.*--fresh") as caught:
            journal.begin(PHASE, {"seed": 4, "data": "b"})
        assert caught.value.code == "run_differs"
        journal.discard()
        assert not journal.begin(PHASE, {"seed": 4, "data": "b"})


def test_two_searches_do_not_write_to_one_journal(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "journal"),
        pytest.raises(DataError, match="Another search is writing"),
        Journal(tmp_path / "journal"),
    ):
        pass


@pytest.mark.parametrize("text", ["years of work\n", "years of work", "{}\n"])
def test_a_file_that_holds_no_trials_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "thesis").write_text(text)
    with pytest.raises(DataError, match="does not hold the trials of a search"), Journal(tmp_path / "thesis"):
        pass
    assert (tmp_path / "thesis").read_text() == text


@pytest.mark.slow
def test_processes_share_the_trials_out(tmp_path: Path) -> None:
    assert finish(tmp_path / "shared", workers=2) == finish(tmp_path / "alone")


def test_a_grid_is_laid_down_whole(tmp_path: Path) -> None:
    phase = dataclasses.replace(PHASE, space=parse_space([]), grid=True, trials=6)
    trials = finish(tmp_path / "grid", phase)
    assert len(trials) == 6
    assert len({(t.params["learning_rate"], t.params["l2"]) for t in trials.values()}) == 6


def test_accuracy_ranks_then_loss_and_what_exploded_comes_last() -> None:
    order = ranked([trial(0, 0.9, 9.0, exploded=True), trial(1, 0.8, 0.5), trial(2, 0.8, 0.4), trial(3, 0.85, 2.0)])
    assert [t.index for t in order] == [3, 2, 1, 0]


def test_a_range_narrows_by_loss_where_accuracies_tie_within_a_standard_error() -> None:
    close = [trial(0, 0.92, 4.0), trial(1, 0.91, 0.3), trial(2, 0.70, 0.1)]
    assert [t.index for t in promising(close, num_validation=90)] == [1, 0, 2]
    assert [t.index for t in promising(close, num_validation=100_000)] == [0, 1, 2]
