"""Where trials are kept: Optuna draws them, and its journal, a file, holds them while processes take one after the other.

All trials of a phase are laid down in the journal before the first runs. So a search that was killed goes on with those that
are left, several processes share them out, and which trials there are depends on the seed alone.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from transferapp.errors import DataError
from transferapp.recipes.search.problem import HeadSettings, HeadTrainer, Outcome, Problem, run_trial
from transferapp.recipes.search.space import Dimension, as_value, grid, written
from transferapp.system.storage import disk_errors
from transferapp.training.head_spec import HeadSpec
from transferapp.training.settings import rank

if TYPE_CHECKING:
    import optuna

_FIRST = b'{"op_code"'
"""What every journal of Optuna's begins with."""

_INDEX, _OUTCOME, _IDENTITY = "index", "outcome", "identity"


@dataclass(frozen=True)
class Trial:
    """A trial that is over.

    Attributes:
        index: Its number in the whole search, from 0.
        phase: `coarse` or `fine`.
        params: What was varied, by setting.
        outcome: How good it was.
    """

    index: int
    phase: str
    params: Mapping[str, Any]
    outcome: Outcome

    @property
    def merit(self) -> tuple[bool, float, float, int]:
        """What to rank by: whether it trained to its end, accuracy, loss, and who came first."""
        return (not self.outcome.exploded, *rank(self.outcome.accuracy, self.outcome.loss), -self.index)


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Best first."""
    return sorted(trials, key=lambda trial: trial.merit, reverse=True)


def promising(trials: Sequence[Trial], num_validation: int) -> list[Trial]:
    """Best first, where accuracies within one standard error of the best count as equal, and the loss decides among them.

    A range that narrows by accuracy alone follows the luck of an image or two.
    """
    best = ranked(trials)[0].outcome.accuracy
    error = math.sqrt(best * (1 - best) / num_validation)

    def order(trial: Trial) -> tuple[bool, float, float, int]:
        exploded, accuracy, loss, index = trial.merit
        return (exploded, min(accuracy, best - error), loss, index) if accuracy >= best - error else trial.merit

    return sorted(trials, key=order, reverse=True)


@dataclass(frozen=True)
class Phase:
    """A part of a search.

    Attributes:
        name: `coarse` or `fine`.
        space: What its trials are drawn from.
        trials: How many; of a grid, at most.
        first: The number of its first trial in the whole search.
        epochs: Passes of each.
        base: What is not varied.
        seed: Of the draws.
        grid: Whether they are the points of a grid.
    """

    name: str
    space: tuple[Dimension, ...]
    trials: int
    first: int
    epochs: int
    base: HeadSettings
    seed: int
    grid: bool = False

    def draws(self) -> list[dict[str, Any]]:
        """The settings of each trial, in Optuna's terms: numbers, texts, flags."""
        if self.grid:
            return [_encoded(self.space, point) for point in grid(self.space, self.trials)]
        optuna = import_optuna()
        sampler = optuna.samplers.RandomSampler(seed=self.seed)
        study = optuna.create_study(sampler=sampler)
        distributions = _distributions(self.space)
        return [dict(study.ask(distributions).params) for _ in range(self.trials)]


def import_optuna() -> Any:
    """Optuna, told to be quiet: what it would say of each trial is said by the search itself."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Journal:
    """The file that holds a search's trials. Use as a context: one search at a time holds it.

    Args:
        path: The file; it need not be there yet.

    Raises:
        DataError: Another search is using it, or it is no such file.
        ResourceError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path.with_name(f".{path.name}.owner"), blocking=False)

    def __enter__(self) -> Journal:
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout as error:
                raise DataError(
                    f"Another search is writing to {self.path} right now", hint="Wait for it, or name another --storage"
                ) from error
            try:
                self._mend()
                self.storage = open_storage(self.path)
                self.storage.get_all_studies()
            except (OSError, DataError):
                self._lock.release()
                raise
            except Exception as error:  # whatever Optuna makes of a file that is none of its own
                self._lock.release()
                raise DataError(
                    f"{self.path} does not hold the trials of a search ({str(error).splitlines()[0][:200]})",
                    hint="Name another file with --storage",
                ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def discard(self) -> None:
        """Forget all trials."""
        self.path.unlink(missing_ok=True)
        self.storage = open_storage(self.path)

    def remove(self) -> None:
        """Leave no trace."""
        self.path.unlink(missing_ok=True)
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def begin(self, phase: Phase, identity: Mapping[str, Any]) -> bool:
        """Lay down a phase's trials, or take up one that is there; returns whether trials of it had been run.

        Args:
            phase: What to run.
            identity: All that the outcome depends on, as JSON values.

        Raises:
            DataError: There is such a phase of another search; the message names each difference.
        """
        optuna = import_optuna()
        asked = json.loads(json.dumps(dict(identity)))
        if phase.name in optuna.study.get_all_study_names(self.storage):
            study = self._study(phase.name)
            self._check(study.user_attrs.get(_IDENTITY) or {}, asked)
            self._take_up(study)
        else:
            study = optuna.create_study(storage=self.storage, study_name=phase.name, direction="maximize")
            study.set_user_attr(_IDENTITY, asked)
        laid = {trial.user_attrs[_INDEX] for trial in study.get_trials(deepcopy=False) if _counts(trial)}
        done = bool(self.finished(phase))
        distributions = _distributions(phase.space)
        if phase.grid:
            distributions = {name: _as_it_is(distribution) for name, distribution in distributions.items()}
        missing = []
        for index, params in enumerate(phase.draws(), start=phase.first):
            if index not in laid:
                trial = optuna.trial.create_trial(
                    state=optuna.trial.TrialState.WAITING,
                    params=params,
                    distributions=distributions,
                    user_attrs={_INDEX: index},
                )
                missing.append(trial)
        study.add_trials(missing)
        return done

    def _take_up(self, study: optuna.Study) -> None:
        """Trials that a killed process was at are to be run again."""
        optuna = import_optuna()
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def _check(self, before: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        differences = [
            f"{name} was {before.get(name)!r} and is {asked.get(name)!r}"
            for name in sorted({*before, *asked})
            if before.get(name) != asked.get(name)
        ]
        if differences:
            raise DataError(
                f"The unfinished search in {self.path} is not the one asked for: {'; '.join(differences)}",
                expected="the same data and settings, to go on with it",
                hint="Run the command as it was, or begin anew with --fresh",
                code="run_differs",
            )

    def finished(self, phase: Phase) -> list[Trial]:
        """The phase's trials that are over, in the order in which they ended."""
        optuna = import_optuna()
        complete = self._study(phase.name).get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        complete.sort(key=lambda trial: trial.datetime_complete or datetime.max)
        return [_trial_of(trial, phase) for trial in complete]

    def _study(self, name: str) -> optuna.Study:
        study: optuna.Study = import_optuna().load_study(storage=self.storage, study_name=name)
        return study

    def _mend(self) -> None:
        """Cut off half a line that a kill or a full disk has left, and a lock that nobody holds any more."""
        with contextlib.suppress(OSError):
            self.path.with_name(f"{self.path.name}.lock").unlink()
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        if content and not content.startswith(_FIRST[: len(content)]):
            raise DataError(
                f"{self.path} does not hold the trials of a search, so it is left alone",
                hint="Name another file with --storage",
            )
        if not content.endswith(b"\n"):
            with self.path.open("r+b") as stream:
                stream.truncate(content.rfind(b"\n") + 1)


def open_storage(path: Path) -> Any:
    """Optuna's storage in a file."""
    import_optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))


def run_waiting(storage: Any, phase: Phase, problem: Problem, trainers: Trainers) -> Iterator[Trial]:
    """Run the phase's waiting trials, one after the other, until none is left; several processes may do so at once."""
    optuna = import_optuna()
    study = optuna.load_study(storage=storage, study_name=phase.name)
    while study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
        taken = study.ask()
        if _INDEX not in taken.user_attrs:  # another process was quicker, and this one is nobody's
            study.tell(taken, state=optuna.trial.TrialState.FAIL)
            return
        settings = phase.base.with_params(_decoded(phase.space, taken.params), phase.epochs)
        outcome = run_trial(problem, trainers.of(settings), settings)
        shown = {**vars(outcome), "loss": outcome.loss if math.isfinite(outcome.loss) else None}
        taken.set_user_attr(_OUTCOME, shown)
        study.tell(taken, outcome.accuracy)
        yield Trial(taken.user_attrs[_INDEX], phase.name, _decoded(phase.space, taken.params), outcome)


def in_numpy(head: HeadSpec) -> bool:
    """Whether `LinearTrainer` trains a head: it is linear, and nothing is left out of it at random."""
    return head.linear and not (head.dropout or head.dropconnect)


class Trainers:
    """A trainer for every form of head, made when it is first asked for.

    Args:
        problem: What they train on.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._linear: HeadTrainer | None = None
        self._networks: HeadTrainer | None = None

    def of(self, settings: HeadSettings) -> HeadTrainer:
        """NumPy's for a linear head without dropout, Keras' for all others."""
        if in_numpy(settings.head):
            if self._linear is None:
                from transferapp.recipes.search.linear import LinearTrainer

                self._linear = LinearTrainer(self._problem)
            return self._linear
        if self._networks is None:
            from transferapp.recipes.search.networks import NetworkTrainer

            self._networks = NetworkTrainer(self._problem)
        return self._networks


def _counts(trial: optuna.trial.FrozenTrial) -> bool:
    return trial.state.name in ("WAITING", "COMPLETE") and _INDEX in trial.user_attrs


def _trial_of(trial: optuna.trial.FrozenTrial, phase: Phase) -> Trial:
    shown = trial.user_attrs[_OUTCOME]
    outcome = Outcome(**{**shown, "loss": math.inf if shown["loss"] is None else shown["loss"]})
    return Trial(trial.user_attrs[_INDEX], phase.name, _decoded(phase.space, trial.params), outcome)


def _distributions(space: Sequence[Dimension]) -> dict[str, Any]:
    optuna = import_optuna()
    found: dict[str, Any] = {}
    for dimension in space:
        if dimension.choices:
            found[dimension.name] = optuna.distributions.CategoricalDistribution(
                [_encoded_choice(choice) for choice in dimension.choices]
            )
        elif dimension.integer:
            found[dimension.name] = optuna.distributions.IntDistribution(int(dimension.low), int(dimension.high))
        else:
            found[dimension.name] = optuna.distributions.FloatDistribution(
                dimension.low, dimension.high, log=dimension.setting.log
            )
    return found


def _as_it_is(distribution: Any) -> Any:
    """The end of a logarithmic range, computed, may lie beside it by rounding: a grid's points need no such ends."""
    optuna = import_optuna()
    if not isinstance(distribution, optuna.distributions.FloatDistribution):
        return distribution
    return optuna.distributions.FloatDistribution(
        distribution.low * (1 - 1e-9), distribution.high * (1 + 1e-9), log=distribution.log
    )


def _encoded(space: Sequence[Dimension], params: Mapping[str, Any]) -> dict[str, Any]:
    return {d.name: _encoded_choice(params[d.name]) if d.choices else _number(d, params[d.name]) for d in space}


def _number(dimension: Dimension, value: Any) -> float | int:
    if isinstance(value, tuple):
        return sum(value)
    return int(value) if dimension.integer else float(value)


def _encoded_choice(choice: Any) -> Any:
    return written(choice) if isinstance(choice, tuple) else choice


def _decoded(space: Sequence[Dimension], params: Mapping[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = {}
    for dimension in space:
        value = params[dimension.name]
        if not dimension.choices:
            decoded[dimension.name] = as_value(dimension, value)
        else:
            named = {_encoded_choice(choice): choice for choice in dimension.choices}
            decoded[dimension.name] = named[value]
    return decoded
