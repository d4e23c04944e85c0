"""Probe: a linear classifier on frozen features, solved to its optimum (multinomial logistic regression).

The lecture says that L-BFGS works very well in full batch, deterministic mode, and does not transfer to mini-batches. A linear
head on cached features is that case, and convex too. `LogisticProblems` solves it with SciPy's L-BFGS.

Features are standardized to zero mean and unit variance first. The L2 strength is chosen by stratified cross-validation, along
a path from strong to weak on which each solution starts where the two before extrapolate to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from transferapp.errors import TrainingError
from transferapp.system.threads import cpu_cores, one_blas_thread

L2_PATH = tuple(float(x) for x in 10.0 ** np.arange(1.0, -4.5, -0.5))
"""Strengths to try, strongest first: penalty L2/2 · ||kernel||² added to the mean loss in nats."""

NUM_FOLDS = 5
_SEARCH_TOLERANCES = {"tolerance": 1e-6, "gradient_tolerance": 1e-5}
"""Tolerances of cross-validation: losses within 0.001 of those solved to the end (five sets, six stages, best strength)."""
_FINAL_TOLERANCES = {"tolerance": 1e-8, "gradient_tolerance": 1e-5}
_PART_TOLERANCES = {"tolerance": 1e-5, "gradient_tolerance": 1e-5}
"""Tolerances of probes on parts of the images: a third of a percent of the predictions differ from those solved to the end."""
_ROUGH_TOLERANCES = (1e-3, 1e-5)
_HOPELESS = 1.02
"""The path stops where the loss exceeds its best by this factor: held-out loss has one minimum; weak strengths cost most."""
PRIOR_ROWS = 10
"""Rows of the median variance that the variance of each column is averaged with. In few images a channel that seldom responds
hardly varies; divided by that, its response to another image would outweigh all others
(docs/decisions/0025-temperature.md)."""

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


def log_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the negative log-likelihood of each image's label in nats: shape (n,)."""
    losses: np.ndarray = -log_softmax(logits)[np.arange(len(labels)), labels]
    return losses


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
        solution = problem.solve_anew(l2, **_FINAL_TOLERANCES)
    return LinearProbe(
        mean,
        std,
        kernel=(axes.T @ solution.kernel[:, 0]).astype(np.float32),
        bias=solution.bias[0].astype(np.float32),
        l2=l2,
        iterations=solution.iterations,
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


def score_parts(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    parts: Sequence[tuple[np.ndarray, float]],
    asked: np.ndarray,
) -> list[np.ndarray]:
    """Solve probes on parts of the images, and score images that they have not seen.

    As in cross-validation, mean, deviation and axes are computed once over all images.

    Args:
        features: float32, shape (n, num_features).
        labels: int, shape (n,).
        num_classes: Size of the output.
        parts: For each size of the parts, the weights of the images in each probe, float, shape (n, num_probes), 0 for an image
            that it does not see; and the L2 strength. Each probe starts where the one of the size before ended.
        asked: int, shape (k, n): the k probes that score each image; -1 for none.

    Returns:
        For each size, the logits: float32, shape (k, n, num_classes); 0 where no probe was asked.
    """
    mean, std = moments(features)
    scores = [np.zeros((*asked.shape, num_classes), np.float32) for _ in parts]
    with working() as workers:
        rows, _ = principal_axes(_standardized(features, mean, std), workers)
        for group in _together(parts[0][0].shape[1], num_classes):
            solution = None
            for (weights, l2), logits in zip(parts, scores, strict=True):
                own = weights[:, group.start : group.stop]
                seen = own.any(axis=1)
                problem = LogisticProblems(
                    rows[seen], labels[seen], (own / own.sum(axis=0))[seen], num_classes, workers
                )
                if solution is None:
                    solution = problem.solve_anew(l2, **_PART_TOLERANCES)
                else:
                    problem.rescale(solution)
                    solution = problem.solve(l2, solution, **_PART_TOLERANCES)
                for index, number in enumerate(group):
                    turns, images = np.nonzero(asked == number)
                    logits[turns, images] = rows[images] @ solution.kernel[:, index] + solution.bias[index]
    return scores


def _together(num_problems: int, num_classes: int) -> list[range]:
    """Group problems into those that are solved together."""
    size = max(1, _MAX_COLUMNS // num_classes)
    return [range(first, min(first + size, num_problems)) for first in range(0, num_problems, size)]


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
        self._groups = _together(int(folds.max()) + 1, num_classes)
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

    Variances are shrunk toward the median variance by `PRIOR_ROWS`. A constant column has deviation 1.

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
    dead = std < _STD_FLOOR  # dividing a dead channel by its deviation would amplify noise
    if not dead.all():
        usual = float(np.median(np.square(std[~dead])))
        std = np.sqrt((len(features) * np.square(std) + PRIOR_ROWS * usual) / (len(features) + PRIOR_ROWS))
    std[dead] = 1.0
    return mean.astype(np.float32), std.astype(np.float32)


def _standardized(features: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    result: np.ndarray = features - mean
    result /= std
    return result


def _mean_loss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    return float((weights * log_losses(logits, labels)).mean() / weights.mean())


_BLOCK_ROWS = 2048
_MIN_CURVATURE = 1e-6
_MAX_ITERATIONS = 1000
_CORRECTIONS = 10
T = TypeVar("T")


@dataclass(frozen=True)
class Solution:
    """Optimal kernels and biases of some problems.

    Attributes:
        kernel: float64, shape (num_features, num_problems, num_classes).
        bias: float64, shape (num_problems, num_classes).
        iterations: L-BFGS steps taken.
    """

    kernel: np.ndarray
    bias: np.ndarray
    iterations: int = 0

    def beyond(self, previous: Solution) -> Solution:
        """Extrapolate from `previous` to the next solution of an evenly spaced path."""
        return Solution(2 * self.kernel - previous.kernel, 2 * self.bias - previous.bias)


class Workers:
    """Threads that each process a block of rows; from `working`."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def map(self, work: Callable[[slice], T], num_rows: int) -> list[T]:
        """Return the results of `work` for every block, in the order of the rows."""
        blocks = [slice(start, min(start + _BLOCK_ROWS, num_rows)) for start in range(0, num_rows, _BLOCK_ROWS)]
        return [work(blocks[0])] if len(blocks) == 1 else list(self._pool.map(work, blocks))


@contextmanager
def working() -> Iterator[Workers]:
    """Start threads for the solver, and limit BLAS to one: its threads would compete with these for the cores."""
    with one_blas_thread(), ThreadPoolExecutor(cpu_cores()) as pool:
        yield Workers(pool)


def principal_axes(rows: np.ndarray, workers: Workers) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of the rows along their principal axes, and those axes.

    Rotating the features does not change an L2-regularized solution, and axes along which the rows do not vary have no weight
    in it. So with fewer rows than features the problem has only as many columns as rows.

    Args:
        rows: float32, shape (n, num_features), centered.
        workers: From `working`.

    Returns:
        Coordinates, float32, shape (n, k), and axes, float32, shape (k, num_features), orthonormal: rows ≈ coordinates @ axes.
    """
    n, num_features = rows.shape
    if n < num_features:
        wide = rows.astype(np.float64)
        values, vectors = np.linalg.eigh(wide @ wide.T)
        keep = values > values[-1] * 1e-10
        scale = np.sqrt(values[keep])
        axes = (vectors[:, keep] / scale).T @ wide
        return (vectors[:, keep] * scale).astype(np.float32), axes.astype(np.float32)
    gram = np.zeros((num_features, num_features))
    for part in workers.map(lambda block: rows[block].T @ rows[block], n):
        gram += part
    _, vectors = np.linalg.eigh(gram)
    axes = vectors.T.astype(np.float32)
    return np.concatenate(workers.map(lambda block: rows[block] @ axes.T, n)), axes


class LogisticProblems:
    """Problems over the same rows and labels, each with its own weight for every row.

    Each is to minimize the sum over rows of weight · cross-entropy, plus l2/2 · ||kernel||²; the bias is not penalized.

    Args:
        rows: float32, shape (n, num_features), along principal axes.
        labels: int, shape (n,), in [0, num_classes).
        weights: float, shape (n, num_problems); each column sums to 1. A weight of 0 excludes a row.
        num_classes: Size of the output.
        workers: From `working`.
    """

    def __init__(
        self, rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, num_classes: int, workers: Workers
    ) -> None:
        self._rows, self._labels, self._weights = rows, labels, weights.astype(rows.dtype)
        self._workers = workers
        self._shape = (rows.shape[1], weights.shape[1], num_classes)
        squares = workers.map(lambda block: np.square(rows[block], dtype=np.float64).sum(axis=0), len(rows))
        self._variance: np.ndarray = np.sum(squares, axis=0) / len(rows)
        # Mean p(1 - p) of each class in each problem, the factor of cross-entropy's curvature. At zero weights p is uniform.
        self._curvature = np.full(self._shape[1:], (1 - 1 / num_classes) / num_classes)

    def origin(self) -> Solution:
        """Return all weights zero, the start of a first search."""
        return Solution(np.zeros(self._shape), np.zeros(self._shape[1:]))

    def solve(self, l2: float, start: Solution, *, tolerance: float, gradient_tolerance: float) -> Solution:
        """Solve all problems.

        Args:
            l2: Strength of the penalty, positive.
            start: Initial weights.
            tolerance: Relative decrease of the mean objective (absolute, where it is below 1) below which to stop.
            gradient_tolerance: Largest component of the scaled gradient at which to stop.
        """
        curvature = np.maximum(self._curvature, _MIN_CURVATURE)
        scale = 1 / np.sqrt(self._variance[:, None, None] * curvature + l2)
        bias_scale = 1 / np.sqrt(curvature)
        num_weights, share = scale.size, 1 / self._shape[1]

        def unpack(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return flat[:num_weights].reshape(scale.shape) * scale, flat[num_weights:].reshape(
                bias_scale.shape
            ) * bias_scale

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            kernel, bias = unpack(flat)
            loss, kernel_slope, bias_slope = self._slope(kernel, bias)
            kernel_slope += l2 * kernel
            loss += l2 / 2 * float(np.vdot(kernel, kernel))
            slope = np.concatenate([(kernel_slope * scale).ravel(), (bias_slope * bias_scale).ravel()])
            return loss * share, slope * share

        found = minimize(
            objective,
            np.concatenate([(start.kernel / scale).ravel(), (start.bias / bias_scale).ravel()]),
            jac=True,
            method="L-BFGS-B",
            options={
                "maxiter": _MAX_ITERATIONS,
                "maxcor": _CORRECTIONS,
                "ftol": tolerance,
                "gtol": gradient_tolerance,
            },
        )
        return Solution(*unpack(found.x), int(found.nit))

    def solve_anew(self, l2: float, *, tolerance: float, gradient_tolerance: float) -> Solution:
        """Solve all problems from zero weights. Arguments as of `solve`.

        Rough solutions come first: each gives the curvature by which the search for the next is scaled, which halves the steps.
        """
        solution, iterations = self.origin(), 0
        for rough in (each for each in _ROUGH_TOLERANCES if each > tolerance):
            solution = self.solve(l2, solution, tolerance=rough, gradient_tolerance=gradient_tolerance)
            iterations += solution.iterations
            self.rescale(solution)
        solution = self.solve(l2, solution, tolerance=tolerance, gradient_tolerance=gradient_tolerance)
        return replace(solution, iterations=iterations + solution.iterations)

    def rescale(self, solution: Solution) -> None:
        """Let the next call of `solve` scale its variables by the curvature at a solution."""
        self.score(solution, np.zeros(len(self._labels), dtype=np.int64))

    def score(self, solution: Solution, asked: np.ndarray) -> np.ndarray:
        """Return the logits of the rows by the problems' solutions.

        The next call of `solve` scales its variables by the curvature computed here.

        Args:
            solution: From `solve`.
            asked: int, shape (n,): the problem whose solution scores each row.

        Returns:
            float32 logits, shape (n, num_classes).
        """
        kernel, bias = self._flattened(solution.kernel, solution.bias)

        def block_scores(block: slice) -> tuple[np.ndarray, np.ndarray]:
            logits = self._logits(block, kernel, bias)
            wanted = logits[np.arange(len(logits)), asked[block]]
            _softmax(logits)
            logits *= 1 - logits
            return wanted, np.einsum("np,npc->pc", self._weights[block], logits, dtype=np.float64)

        parts = self._workers.map(block_scores, len(self._rows))
        self._curvature = np.sum([curvature for _, curvature in parts], axis=0)
        return np.concatenate([wanted for wanted, _ in parts])

    def _slope(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the sum of the problems' weighted cross-entropies, and its derivatives."""
        flat_kernel, flat_bias = self._flattened(kernel, bias)

        def block_slope(block: slice) -> tuple[float, np.ndarray, np.ndarray]:
            weights, labels = self._weights[block], self._labels[block]
            own = np.arange(len(labels))
            logits = self._logits(block, flat_kernel, flat_bias)
            own_logits = logits[own, :, labels]
            loss = float(np.sum(weights * (_softmax(logits) - own_logits), dtype=np.float64))
            logits[own, :, labels] -= 1
            logits *= weights[:, :, None]
            return loss, self._rows[block].T @ logits.reshape(len(labels), -1), logits.sum(axis=0, dtype=np.float64)

        loss, kernel_slope, bias_slope = 0.0, np.zeros(self._shape), np.zeros(self._shape[1:])
        for block_loss, block_kernel, block_bias in self._workers.map(block_slope, len(self._rows)):
            loss += block_loss
            kernel_slope += block_kernel.reshape(self._shape)
            bias_slope += block_bias
        return loss, kernel_slope, bias_slope

    def _flattened(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dtype = self._rows.dtype
        return kernel.reshape(len(kernel), bias.size).astype(dtype), bias.ravel().astype(dtype)

    def _logits(self, block: slice, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._rows[block] @ kernel
        logits += bias
        return logits.reshape(-1, *self._shape[1:])


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits into probabilities in place, along the last axis, and return their log-sum-exp."""
    highest = logits.max(axis=-1, keepdims=True)
    logits -= highest
    np.exp(logits, out=logits)
    total = logits.sum(axis=-1, keepdims=True)
    logits /= total
    result: np.ndarray = (highest + np.log(total))[..., 0]
    return result
