"""Multinomial logistic regressions on the same rows, solved side by side by full-batch L-BFGS.

Cross-validation solves one problem a fold, and the folds differ only in which rows count. So all of them go through one
matrix product: the rows are read once for five folds and not five times, which is what their cost is made of. Two things
keep the number of passes low, without moving the optimum: rows come in their principal axes, where columns do not correlate,
and the solver sees variables scaled by the curvature along each (diagonal preconditioning).

Work is cut into blocks of rows, whatever the machine: results do not depend on how many threads there are.
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
        """As far again as this one is from `previous`: where the next solution of an even path is expected."""
        return Solution(2 * self.kernel - previous.kernel, 2 * self.bias - previous.bias)


class Workers:
    """Threads that each take a block of rows. Use inside `working()`."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def map(self, work: Callable[[slice], T], num_rows: int) -> list[T]:
        """`work` of every block, in the order of the rows."""
        blocks = [slice(start, min(start + _BLOCK_ROWS, num_rows)) for start in range(0, num_rows, _BLOCK_ROWS)]
        return [work(blocks[0])] if len(blocks) == 1 else list(self._pool.map(work, blocks))


@contextmanager
def working() -> Iterator[Workers]:
    """Threads for the solver; BLAS runs with one of its own meanwhile, for threads that spin for each other cost far more."""
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cpu_cores()) as pool:
        yield Workers(pool)


def principal_axes(rows: np.ndarray, workers: Workers) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the rows along their principal axes, and those axes.

    Rotating the features does not change an L2-regularized solution, and axes along which the rows do not differ carry no
    weight in it. So with fewer rows than features the problem becomes as narrow as it has rows.

    Args:
        rows: float32, shape (n, num_features), centerd.
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

    Each is: minimize sum over rows of weight · cross-entropy, plus l2/2 · ||kernel||²; the bias is not penalized.

    Args:
        rows: float32, shape (n, num_features), along principal axes.
        labels: int, shape (n,), in [0, num_classes).
        weights: float, shape (n, num_problems); each column sums to 1. A weight of 0 leaves a row out.
        num_classes: Width of the output.
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
        # Mean p(1 - p) of each class in each problem: what cross-entropy's curvature is made of. At zero weights: uniform.
        self._curvature = np.full(self._shape[1:], (1 - 1 / num_classes) / num_classes)

    def origin(self) -> Solution:
        """All weights zero: where a search starts that knows nothing."""
        return Solution(np.zeros(self._shape), np.zeros(self._shape[1:]))

    def solve(self, l2: float, start: Solution, *, tolerance: float, gradient_tolerance: float) -> Solution:
        """Solve all problems.

        Args:
            l2: Strength of the penalty, positive.
            start: Where to start.
            tolerance: Stop when a step lowers the mean of the problems' objectives by less than this share (of 1, where they
                are below 1).
            gradient_tolerance: Or when no component of the scaled gradient exceeds this.
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
        """What the problems' solutions make of the rows.

        The next call of `solve` scales its variables by the curvature found here.

        Args:
            solution: From `solve`.
            asked: int, shape (n,): which problem's solution is asked about each row.

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
        """Sum of the problems' weighted cross-entropies, and its derivatives."""
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
    """Turn logits into probabilities in place, along the last axis; returns the logarithms of their sums of exponentials."""
    highest = logits.max(axis=-1, keepdims=True)
    logits -= highest
    np.exp(logits, out=logits)
    total = logits.sum(axis=-1, keepdims=True)
    logits /= total
    result: np.ndarray = (highest + np.log(total))[..., 0]
    return result
