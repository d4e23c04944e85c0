"""Probe: a linear classifier on frozen features, solved to its optimum (multinomial logistic regression).

The lecture says that L-BFGS works very well in full batch, deterministic mode, and does not transfer to mini-batches. A linear
head on cached features is that case, and convex too. `transferapp.training.logistic` solves it with SciPy's L-BFGS.

Features are standardized to zero mean and unit variance first. The L2 strength is chosen by stratified cross-validation, along
a path from strong to weak on which each solution starts where the two before extrapolate to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from transferapp.errors import TrainingError
from transferapp.training.logistic import LogisticProblems, Solution, Workers, principal_axes, working

L2_PATH = tuple(float(x) for x in 10.0 ** np.arange(1.0, -4.5, -0.5))
"""Strengths to try, strongest first: penalty L2/2 · ||kernel||² added to the mean loss in nats."""

NUM_FOLDS = 5
_SEARCH_TOLERANCES = {"tolerance": 3e-7, "gradient_tolerance": 1e-5}
"""Tolerances of cross-validation: losses within 0.001 of those solved to the end (five sets, six stages, best strength)."""
_FINAL_TOLERANCES = {"tolerance": 1e-8, "gradient_tolerance": 1e-5}
_HOPELESS = 1.02
"""The path stops where the loss exceeds its best by this factor: held-out loss has one minimum; weak strengths cost most."""
_STD_FLOOR = 1e-6
_ROWS_AT_ONCE = 2048
_MAX_COLUMNS = 256
"""Outputs solved together at most: beyond, arithmetic limits a product, which gains nothing from being wider."""


@dataclass(frozen=True)
class LinearProbe:
    """A solved linear classifier: ``softmax(((x - mean) / std) @ kernel + bias)``.

    Attributes:
        mean, std: float32, shape (num_features,).
        kernel: float32, shape (num_features, num_classes).
        bias: float32, shape (num_classes,).
        l2: Strength of its penalty.
        iterations: L-BFGS steps taken.
    """

    mean: np.ndarray
    std: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    l2: float
    iterations: int

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return logits: float32, shape (n, num_classes), for features of shape (n, num_features)."""
        result: np.ndarray = (features - self.mean) / self.std @ self.kernel + self.bias
        return result


@dataclass(frozen=True)
class CrossValidation:
    """Outcome of cross-validation.

    Attributes:
        l2: The best strength, by mean held-out loss.
        losses: Mean held-out loss in nats at each strength tried, in the order of `path`, up to where it worsens. Weighted, if
            the classes are.
        logits: float32, shape (n, num_classes): held-out logits of each image, by the probe of the fold without it.
        correct: bool, shape (n,): whether the held-out prediction was right.
        loss: Mean held-out loss at `l2`.
        path: Strengths to try, strongest first.
    """

    l2: float
    losses: tuple[float, ...]
    logits: np.ndarray
    correct: np.ndarray
    loss: float
    path: tuple[float, ...] = L2_PATH

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return row-wise log-probabilities."""
    result: np.ndarray = logits - logsumexp(logits, axis=1, keepdims=True)
    return result


def stratified_folds(labels: np.ndarray, num_folds: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return the fold of each image: int64, shape (n,); every class is spread over the folds as evenly as possible.

    Args:
        labels: int, shape (n,).
        num_folds: At least 2.
        seed: Seed of the folds.
        groups: int, shape (n,): images of one number, such as duplicates, are held out together, with the first of them.
            Ignored where all are of one group.
    """
    rng = np.random.default_rng(seed)
    folds = np.empty(len(labels), dtype=np.int64)
    offset = 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        folds[members] = (np.arange(len(members)) + offset) % num_folds
        offset += len(members)  # otherwise the remainders of small classes would all fall into the first fold
    if groups is None:
        return folds
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    together: np.ndarray = folds[first][group]
    return together if together.min() != together.max() else folds


def cross_validation_folds(labels: np.ndarray, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return the folds of `cross_validate`: fewer than `NUM_FOLDS` where even the largest class has fewer images."""
    return stratified_folds(labels, max(2, min(NUM_FOLDS, int(np.bincount(labels).max()))), seed, groups)


def fit_probe(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    l2: float,
    *,
    sample_weight: np.ndarray | None = None,
) -> LinearProbe:
    """Solve one probe to its optimum.

    Args:
        features: float32, shape (n, num_features).
        labels: int, shape (n,), in [0, num_classes).
        num_classes: Size of the output; a class may be absent from `labels`.
        l2: Strength of the penalty, positive.
        sample_weight: float, shape (n,), mean 1; None for equal weights.

    Raises:
        TrainingError: The features hold NaN or infinite numbers.
    """
    mean, std = moments(features)
    weights = np.ones(len(labels)) if sample_weight is None else sample_weight
    with working() as workers:
        rows, axes = principal_axes(_standardized(features, mean, std), workers)
        problem = LogisticProblems(rows, labels, (weights / weights.sum())[:, None], num_classes, workers)
        # A rough solution first: it gives the curvature by which the search for the exact one is scaled.
        rough = problem.solve(l2, problem.origin(), **_SEARCH_TOLERANCES)
        problem.score(rough, np.zeros(len(labels), dtype=np.int64))
        solution = problem.solve(l2, rough, **_FINAL_TOLERANCES)
    return LinearProbe(
        mean,
        std,
        kernel=(axes.T @ solution.kernel[:, 0]).astype(np.float32),
        bias=solution.bias[0].astype(np.float32),
        l2=l2,
        iterations=rough.iterations + solution.iterations,
    )


def cross_validate(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    extra: np.ndarray | None = None,
    seed: int = 0,
    path: Sequence[float] = L2_PATH,
    groups: np.ndarray | None = None,
    class_weights: np.ndarray | None = None,
) -> CrossValidation:
    """Choose the L2 strength and estimate the probe's accuracy.

    Images are held out whole: a fold's probe sees no view of an image that it is scored on. The first view is scored.

    Args:
        features: float32, shape (n, num_features): the view that is scored.
        labels: int, shape (n,).
        num_classes: Size of the output.
        extra: float32, shape (n, k, num_features): more views of each image, for training only.
        seed: Seed of the folds.
        path: Strengths, strongest first.
        groups: int, shape (n,): images of one number are held out together. None for each by itself.
        class_weights: float, shape (num_classes,): weight of each class's images, in training and in the loss that the
            strength is chosen by. None for equal weights.
    """
    folds = cross_validation_folds(labels, seed, groups)
    weights = np.ones(len(labels)) if class_weights is None else class_weights[labels]
    stacked = features[:, None] if extra is None else np.concatenate([features[:, None], extra], axis=1)
    num_views = stacked.shape[1]
    flat = stacked.reshape(-1, stacked.shape[-1])
    # Mean, deviation and axes are computed once over all folds: they do not depend on the labels.
    mean, std = moments(flat)
    losses: list[float] = []
    with working() as workers:
        rows, _ = principal_axes(_standardized(flat, mean, std), workers)
        labels_of_rows, folds_of_rows, weights_of_rows = (np.repeat(x, num_views) for x in (labels, folds, weights))
        walk = _PathWalk(rows, labels_of_rows, folds_of_rows, weights_of_rows, num_classes, workers)
        for l2 in path:
            logits = walk.step(l2)[::num_views]
            losses.append(_mean_loss(logits, labels, weights))
            if losses[-1] <= min(losses):
                best_logits = logits
            elif losses[-1] > _HOPELESS * min(losses) or losses[-2] > min(losses):
                break
    best = int(np.argmin(losses))
    return CrossValidation(
        l2=float(path[best]),
        losses=tuple(losses),
        logits=best_logits,
        correct=best_logits.argmax(axis=1) == labels,
        loss=losses[best],
        path=tuple(path),
    )


class _PathWalk:
    """The probes of all folds, solved from one strength to the next."""

    def __init__(
        self,
        rows: np.ndarray,
        labels: np.ndarray,
        folds: np.ndarray,
        row_weights: np.ndarray,
        num_classes: int,
        workers: Workers,
    ) -> None:
        self._folds = folds
        self._num_classes = num_classes
        num_folds = int(folds.max()) + 1
        together = max(1, _MAX_COLUMNS // num_classes)
        self._groups = [range(first, min(first + together, num_folds)) for first in range(0, num_folds, together)]
        self._problems = []
        for group in self._groups:
            trained_on = (folds[:, None] != np.array(group)) * row_weights[:, None]
            weights = trained_on / trained_on.sum(axis=0)
            self._problems.append(LogisticProblems(rows, labels, weights, num_classes, workers))
        self._starts = [problem.origin() for problem in self._problems]
        self._last: list[Solution | None] = [None] * len(self._groups)

    def step(self, l2: float) -> np.ndarray:
        """Solve at one strength and return each row's logits by the probe of the fold that it was held out of."""
        logits = np.empty((len(self._folds), self._num_classes), dtype=np.float32)
        for index, (group, problem) in enumerate(zip(self._groups, self._problems, strict=True)):
            solution = problem.solve(l2, self._starts[index], **_SEARCH_TOLERANCES)
            last = self._last[index]
            self._starts[index] = solution if last is None else solution.beyond(last)
            self._last[index] = solution
            held_out = (self._folds >= group.start) & (self._folds < group.stop)
            asked = np.where(held_out, self._folds - group.start, 0)
            logits[held_out] = problem.score(solution, asked)[held_out]
        return logits


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each column, float32, shape (num_features,), to standardize by.

    A constant column has deviation 1.

    Raises:
        TrainingError: The features hold NaN or infinite numbers.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    squares = np.zeros(len(mean))
    for start in range(
        0, len(features), _ROWS_AT_ONCE
    ):  # double precision for all rows at once would take too much memory
        squares += np.square(features[start : start + _ROWS_AT_ONCE] - mean).sum(axis=0)
    std = np.sqrt(squares / len(features))
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise TrainingError(
            "The backbone's features contain NaN or infinite numbers",
            hint="Its weights are damaged: choose another backbone or weight file",
        )
    std[std < _STD_FLOOR] = 1.0  # dividing a dead channel by its deviation would amplify noise
    return mean.astype(np.float32), std.astype(np.float32)


def _standardized(features: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    result: np.ndarray = features - mean
    result /= std
    return result


def _mean_loss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    losses = -log_softmax(logits)[np.arange(len(labels)), labels]
    return float((weights * losses).mean() / weights.mean())
