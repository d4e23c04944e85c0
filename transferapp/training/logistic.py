"""Multinomial logistic regressions on the same rows, solved together by full-batch L-BFGS.

Cross-validation solves one problem per fold, and the folds differ only in the weights of the rows. All of them share one matrix
product: reading the rows, which dominates the cost, happens once and not five times. Two things keep the number of passes low
without changing the optimum: rows are given along their principal axes, where columns do not correlate, and the solver's
variables are scaled by the curvature along each (diagonal preconditioning).

Work is divided into blocks of rows of a fixed size, so that results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from transferapp.system.threads import cpu_cores

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
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cpu_cores()) as pool:
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
