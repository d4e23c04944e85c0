"""Train linear heads by mini-batches in NumPy: the same updates as Keras', without the cost of a framework's call a step.

A step is two products of a batch with a small matrix, which takes less time than any framework needs to be called. The
update rules are those of `transferapp.training.optimizers`; a test compares them with Keras step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from transferapp.recipes.search.problem import (
    CostWatch,
    HeadSettings,
    Problem,
    TrainedHead,
    batches,
    relative_rates,
    standardized,
    targets,
)
from transferapp.training.optimizers import EPSILON, OPTIMIZERS

Update = Callable[[np.ndarray, np.ndarray, float], None]
"""Changes weights in place, given their gradient and the rate."""


def make_update(optimizer: str) -> Update:
    """An update rule with a state of its own, begun anew.

    Args:
        optimizer: A key of `OPTIMIZERS`, other than `lbfgs`.
    """
    spec = OPTIMIZERS[optimizer]
    momentum, decay_rate = spec.momentum or 0.0, spec.decay_rate or 0.0
    state: dict[str, np.ndarray] = {}
    step = 0

    def plain(weights: np.ndarray, gradient: np.ndarray, rate: float) -> None:
        weights -= rate * gradient

    def velocity(weights: np.ndarray, gradient: np.ndarray, rate: float) -> None:
        v = state.setdefault("velocity", np.zeros_like(weights))
        v *= momentum
        v -= rate * gradient
        weights += momentum * v - rate * gradient if optimizer == "nesterov" else v

    def adagrad(weights: np.ndarray, gradient: np.ndarray, rate: float) -> None:
        total = state.setdefault("squares", np.zeros_like(weights))
        total += np.square(gradient)
        weights -= rate * gradient / np.sqrt(total + EPSILON**2)

    def rmsprop(weights: np.ndarray, gradient: np.ndarray, rate: float) -> None:
        mean = state.setdefault("squares", np.zeros_like(weights))
        mean += (1 - decay_rate) * (np.square(gradient) - mean)
        weights -= rate * gradient / np.sqrt(mean + EPSILON**2)

    def adam(weights: np.ndarray, gradient: np.ndarray, rate: float) -> None:
        nonlocal step
        step += 1
        first = state.setdefault("first", np.zeros_like(weights))
        second = state.setdefault("second", np.zeros_like(weights))
        first += (1 - momentum) * (gradient - first)
        second += (1 - decay_rate) * (np.square(gradient) - second)
        corrected = rate * math.sqrt(1 - decay_rate**step) / (1 - momentum**step)
        weights -= corrected * first / (np.sqrt(second) + EPSILON)

    rules = {
        "sgd": plain,
        "momentum": velocity,
        "nesterov": velocity,
        "adagrad": adagrad,
        "rmsprop": rmsprop,
        "adam": adam,
        "adamw": adam,
    }
    return rules[optimizer]


class LinearTrainer:
    """Trains linear heads without dropout; `HeadSpec.linear` and no `dropout` or `dropconnect`.

    Weights start at zero: the loss is convex in them, and the first cost is then ln(num_classes), as it should be.

    Args:
        problem: What to train on.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        rows, self._mean, self._std = standardized(problem.train)
        # A column of ones: the bias is then a row of the kernel, and a step is one update of one matrix.
        self._rows = np.concatenate([rows, np.ones((*rows.shape[:2], 1), np.float32)], axis=2)

    def train(self, settings: HeadSettings) -> TrainedHead:
        n, num_views, width = self._rows.shape
        weights = np.zeros((width, self._problem.num_classes), np.float32)
        kernel, l1, l2 = weights[:-1], np.float32(settings.head.l1), np.float32(settings.head.l2)
        goals = targets(self._problem.train.labels, self._problem.num_classes, settings.label_smoothing)
        steps_per_epoch = -(-n // settings.batch_size)
        rates = settings.learning_rate * relative_rates(settings.schedule, steps_per_epoch * settings.epochs)
        update, watch = make_update(settings.optimizer), CostWatch()
        step, costs = 0, [0.0]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for epoch in range(settings.epochs):
                costs = []
                for chosen, view in batches(n, num_views, settings.batch_size, epoch, self._problem.seed):
                    x, goal = self._rows[chosen, view], goals[chosen]
                    log_scores = _log_softmax(x @ weights)
                    cost = float(-np.vdot(goal, log_scores) / len(chosen))
                    slope = np.exp(log_scores)
                    slope -= goal
                    slope /= np.float32(len(chosen))
                    gradient = x.T @ slope
                    if l2:
                        cost += float(l2 / 2 * np.vdot(kernel, kernel))
                        gradient[:-1] += l2 * kernel
                    if l1:
                        cost += float(l1 * np.abs(kernel).sum())
                        gradient[:-1] += l1 * np.sign(kernel)
                    costs.append(cost)
                    if watch(cost):
                        break
                    rate = float(rates[step])
                    if settings.decay:
                        weights *= np.float32(1 - rate * settings.decay)
                    update(weights, gradient, rate)
                    step += 1
                if watch.exploded:
                    break
        return TrainedHead(
            [weights[:-1].copy(), weights[-1].copy()],
            self._mean,
            self._std,
            cost=float(np.mean(costs)),
            epochs=epoch + 1,
            exploded=watch.exploded,
            steps=step,
        )

    def logits(self, settings: HeadSettings, trained: TrainedHead, features: np.ndarray) -> np.ndarray:
        kernel, bias = trained.weights
        with np.errstate(over="ignore", invalid="ignore"):
            result: np.ndarray = ((features - trained.mean) / trained.std) @ kernel + bias
        return result


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits
