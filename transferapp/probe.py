"""A linear classifier on frozen features, solved to its optimum: multinomial logistic regression by full-batch L-BFGS.

The lecture says of L-BFGS: it works very well in full batch, deterministic mode, and does not transfer to mini-batches. A
linear head on cached features is exactly that case, and convex besides. SciPy does the solving.

Features are standardised to zero mean and unit variance first. The L2 strength is chosen by stratified cross-validation, along
a path from strong to weak that starts each solution from the last. Rotating the features does not change an L2-regularised
solution, so when there are fewer pictures than features the problem is solved in the span of the data.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from transferapp.errors import TrainingError

L2_PATH = tuple(float(x) for x in 10.0 ** np.arange(1.0, -4.5, -0.5))
"""Strengths tried, strongest first: penalty L2/2 · ||kernel||² beside the mean loss in nats."""

NUM_FOLDS = 5
_FINAL_TOLERANCE = 1e-6
_SEARCH_TOLERANCE = 1e-3
"""Tight enough that neither the chosen strength nor the accuracy moves (compared with 1e-4 on five sets), at half the time."""
_STD_FLOOR = 1e-6


@dataclass(frozen=True)
class LinearProbe:
    """A solved linear classifier: ``softmax(((x - mean) / std) @ kernel + bias)``.

    Attributes:
        mean, std: float32, shape (num_features,).
        kernel: float32, shape (num_features, num_classes).
        bias: float32, shape (num_classes,).
        l2: The strength it was solved with.
        iterations: L-BFGS steps taken.
    """

    mean: np.ndarray
    std: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    l2: float
    iterations: int

    def logits(self, features: np.ndarray) -> np.ndarray:
        """float32, shape (n, num_classes), for features of shape (n, num_features)."""
        result: np.ndarray = (features - self.mean) / self.std @ self.kernel + self.bias
        return result


@dataclass(frozen=True)
class CrossValidation:
    """What cross-validation found.

    Attributes:
        l2: The best strength, by mean held-out loss.
        losses: Mean held-out loss in nats at each strength tried, in the order of `L2_PATH`; the path stops once it worsens.
        logits: float32, shape (n, num_classes): what each picture was given by the probe that had not seen it.
        correct: bool, shape (n,): whether that was right.
        loss: Mean held-out loss at `l2`.
    """

    l2: float
    losses: tuple[float, ...]
    logits: np.ndarray
    correct: np.ndarray
    loss: float

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise log-probabilities."""
    result: np.ndarray = logits - logsumexp(logits, axis=1, keepdims=True)
    return result


def stratified_folds(labels: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """The fold of each picture: int64, shape (n,); every class is spread over the folds as evenly as it can be."""
    rng = np.random.default_rng(seed)
    folds = np.empty(len(labels), dtype=np.int64)
    offset = 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        folds[members] = (np.arange(len(members)) + offset) % num_folds
        offset += len(members)  # so that the left-overs of small classes do not all fall into the first fold
    return folds


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
        num_classes: Width of the output; a class may be absent from `labels`.
        l2: Strength of the penalty, positive.
        sample_weight: float, shape (n,), mean 1; None for equal weights.

    Raises:
        TrainingError: The features hold NaN or infinite numbers.
    """
    mean, std = _moments(features)
    standardised = (features - mean) / std
    basis = None
    if standardised.shape[0] < standardised.shape[1]:
        standardised, basis = _span(standardised)
    start = np.zeros((standardised.shape[1] + 1, num_classes))
    solution, iterations = _solve(standardised, labels, l2, start, _FINAL_TOLERANCE, sample_weight)
    kernel = solution[:-1] if basis is None else basis.T @ solution[:-1]
    return LinearProbe(
        mean, std, kernel.astype(np.float32), solution[-1].astype(np.float32), l2=l2, iterations=iterations
    )


def cross_validate(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    extra: np.ndarray | None = None,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
    path: Sequence[float] = L2_PATH,
) -> CrossValidation:
    """Choose the L2 strength and estimate how well the probe does.

    Pictures are held out whole: a fold's probe sees no view of a picture that it is scored on. Scores are of the first view.

    Args:
        features: float32, shape (n, num_features): the view that is scored.
        labels: int, shape (n,).
        num_classes: Width of the output.
        extra: float32, shape (n, k, num_features): more views of each picture, for training only.
        num_folds: Folds; fewer where the smallest class has fewer pictures.
        seed: Seeds the folds.
        path: Strengths, strongest first.
    """
    num_folds = max(2, min(num_folds, int(np.bincount(labels).max())))
    folds = stratified_folds(labels, num_folds, seed)
    stacked = features[:, None] if extra is None else np.concatenate([features[:, None], extra], axis=1)
    num_views = stacked.shape[1]
    flat = stacked.reshape(-1, stacked.shape[-1])
    # Mean, deviation and span are taken once over all folds: they know nothing of the labels.
    mean, std = _moments(flat)
    flat = (flat - mean) / std
    if flat.shape[0] < flat.shape[1]:
        flat, _ = _span(flat)
    views = flat.reshape(len(labels), num_views, -1)
    walk = _PathWalk(views, labels, folds, num_classes)
    losses: list[float] = []
    best_logits = walk.logits
    for l2 in path:
        logits = walk.step(l2)
        losses.append(_mean_loss(logits, labels))
        if losses[-1] <= min(losses):
            best_logits = logits
        elif len(losses) >= 3 and losses[-1] > losses[-2] > losses[-3]:
            break
    best = int(np.argmin(losses))
    return CrossValidation(
        l2=float(path[best]),
        losses=tuple(losses),
        logits=best_logits.astype(np.float32),
        correct=best_logits.argmax(axis=1) == labels,
        loss=losses[best],
    )


class _PathWalk:
    """All folds' probes, carried from one strength to the next, each solved by a thread of its own."""

    def __init__(self, views: np.ndarray, labels: np.ndarray, folds: np.ndarray, num_classes: int) -> None:
        self._views, self._labels, self._folds = views, labels, folds
        self._num_classes = num_classes
        self._starts = {int(fold): np.zeros((views.shape[2] + 1, num_classes)) for fold in np.unique(folds)}
        self.logits = np.zeros((len(labels), num_classes))

    def step(self, l2: float) -> np.ndarray:
        logits = np.zeros_like(self.logits)

        def solve(fold: int) -> None:
            train, held_out = self._folds != fold, self._folds == fold
            x = self._views[train].reshape(-1, self._views.shape[2])
            y = np.repeat(self._labels[train], self._views.shape[1])
            solution, _ = _solve(x, y, l2, self._starts[fold], _SEARCH_TOLERANCE)
            self._starts[fold] = solution
            logits[held_out] = self._views[held_out, 0] @ solution[:-1] + solution[-1]

        # One BLAS thread a fold: folds already fill the cores, and BLAS threads that spin for each other cost 16 times more.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(min(len(self._starts), os.cpu_count() or 1)) as pool:
            list(pool.map(solve, self._starts))
        return logits


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = features.mean(axis=0, dtype=np.float64)
    std = features.std(axis=0, dtype=np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise TrainingError(
            "The backbone's features hold numbers that are not finite",
            hint="Its weights are damaged: choose another backbone or weight file",
        )
    std[std < _STD_FLOOR] = 1.0  # a dead channel carries nothing; dividing by its deviation would make noise of it
    return mean.astype(np.float32), std.astype(np.float32)


def _span(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the rows in an orthonormal basis of their span, and that basis (one vector a row)."""
    gram = features.astype(np.float64) @ features.T.astype(np.float64)
    values, vectors = np.linalg.eigh(gram)
    keep = values > values[-1] * 1e-10
    scale = np.sqrt(values[keep])
    basis = (vectors[:, keep] / scale).T @ features
    return (vectors[:, keep] * scale).astype(np.float32), basis


def _solve(
    x: np.ndarray,
    labels: np.ndarray,
    l2: float,
    start: np.ndarray,
    tolerance: float,
    sample_weight: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """Minimise mean cross-entropy + l2/2 · ||kernel||²; the last row of `start` and of the result is the bias."""
    n, num_classes = len(labels), start.shape[1]
    weight = np.full((n, 1), 1 / n) if sample_weight is None else sample_weight[:, None] / sample_weight.sum()
    rows = np.arange(n)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = flat[:-num_classes].reshape(-1, num_classes), flat[-num_classes:]
        logits = x @ kernel.astype(x.dtype) + bias
        logits -= logits.max(axis=1, keepdims=True)
        probabilities = np.exp(logits)
        total = probabilities.sum(axis=1, keepdims=True)
        loss = float(np.sum(weight[:, 0] * (np.log(total[:, 0]) - logits[rows, labels])))
        probabilities /= total
        probabilities[rows, labels] -= 1
        probabilities *= weight
        gradient = np.empty_like(flat)
        gradient[:-num_classes] = (x.T @ probabilities.astype(x.dtype)).ravel() + l2 * kernel.ravel()
        gradient[-num_classes:] = probabilities.sum(axis=0)
        return loss + l2 / 2 * float(flat[:-num_classes] @ flat[:-num_classes]), gradient

    found = minimize(
        objective,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 1000, "maxcor": 20, "gtol": tolerance, "ftol": 1e-10},
    )
    return found.x.reshape(start.shape), int(found.nit)


def _mean_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())
