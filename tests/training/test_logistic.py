"""The solver: principal axes, several problems at once, and optima that a generic minimizer confirms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from transferapp.training import probe as logistic
from transferapp.training.probe import LogisticProblems, Solution, principal_axes, working

FINE = {"tolerance": 1e-12, "gradient_tolerance": 1e-8}


def example(n: int = 60, d: int = 5, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    x = rng.normal(size=(classes, d))[labels] + rng.normal(size=(n, d))
    return (x - x.mean(axis=0)).astype(np.float32), labels


def loss(
    x: np.ndarray, labels: np.ndarray, weight: np.ndarray, l2: float, kernel: np.ndarray, bias: np.ndarray
) -> float:
    """The objective as its definition reads, row by row."""
    total = l2 / 2 * float((kernel**2).sum())
    for row, label, share in zip(x.astype(float), labels, weight, strict=True):
        logits = row @ kernel + bias
        total += share * (np.log(np.exp(logits).sum()) - logits[label])
    return total


def generic_optimum(x: np.ndarray, labels: np.ndarray, weight: np.ndarray, l2: float, classes: int) -> float:
    """The lowest objective that a minimizer without derivatives or preconditioning finds."""
    d = x.shape[1]

    def objective(flat: np.ndarray) -> float:
        return loss(x, labels, weight, l2, flat[: d * classes].reshape(d, classes), flat[d * classes :])

    return float(minimize(objective, np.zeros(d * classes + classes), method="BFGS", options={"gtol": 1e-7}).fun)


def test_several_problems_are_each_solved_to_the_optimum_that_a_generic_minimizer_finds() -> None:
    x, labels = example()
    rng = np.random.default_rng(1)
    weights = rng.random((len(x), 3)) * (rng.random((len(x), 3)) > 0.3)
    weights /= weights.sum(axis=0)
    with working() as workers:
        problems = LogisticProblems(x, labels, weights, 3, workers)
        found = problems.solve(0.05, problems.origin(), **FINE)
    for k in range(3):
        reached = loss(x, labels, weights[:, k], 0.05, found.kernel[:, k], found.bias[k])
        assert reached == pytest.approx(generic_optimum(x, labels, weights[:, k], 0.05, 3), abs=1e-6)


def test_a_problem_worked_by_hand() -> None:
    # One feature, +1 for class 1 and -1 for class 0, no bias needed by symmetry: kernel (-w, w). The loss is
    # ln(1 + exp(-2w)) + l2 w²; at its least -2/(1 + exp(2w)) + 2 l2 w = 0. With w = 1/2: l2 = 2 / (1 + e).
    x = np.array([[-1.0], [1.0]], dtype=np.float32)
    with working() as workers:
        problem = LogisticProblems(x, np.array([0, 1]), np.full((2, 1), 0.5), 2, workers)
        found = problem.solve(2 / (1 + np.e), problem.origin(), **FINE)
    np.testing.assert_allclose(found.kernel[0, 0], [-0.5, 0.5], atol=1e-5)
    assert found.bias[0, 0] == pytest.approx(found.bias[0, 1], abs=1e-5)


def test_problems_do_not_disturb_each_other() -> None:
    x, labels = example(80, 6, 4)
    weights = np.repeat((np.arange(80)[:, None] % 4 != np.arange(2)).astype(float), 1, axis=1)
    weights /= weights.sum(axis=0)
    with working() as workers:
        both = LogisticProblems(x, labels, weights, 4, workers)
        together = both.solve(0.1, both.origin(), **FINE)
        alone = LogisticProblems(x, labels, weights[:, 1:], 4, workers)
        single = alone.solve(0.1, alone.origin(), **FINE)
    np.testing.assert_allclose(together.kernel[:, 1], single.kernel[:, 0], atol=2e-4)


def test_a_row_without_weight_has_no_say() -> None:
    x, labels = example()
    weights = np.full((len(x), 1), 1 / 50)
    weights[50:] = 0
    spoiled = x.copy()
    spoiled[50:] = 7
    results = []
    with working() as workers:
        for rows in (x, spoiled):
            problem = LogisticProblems(rows, labels, weights, 3, workers)
            results.append(problem.solve(0.1, problem.origin(), **FINE).kernel)
    np.testing.assert_allclose(results[0], results[1], atol=2e-4)


def test_the_scores_are_those_of_the_problem_asked_for() -> None:
    x, labels = example()
    weights = np.full((len(x), 2), 1 / len(x))
    rng = np.random.default_rng(2)
    solution = Solution(rng.normal(size=(5, 2, 3)), rng.normal(size=(2, 3)))
    asked = rng.integers(0, 2, len(x))
    with working() as workers:
        scores = LogisticProblems(x, labels, weights, 3, workers).score(solution, asked)
    for row, k, given in zip(x, asked, scores, strict=True):
        np.testing.assert_allclose(given, row @ solution.kernel[:, k] + solution.bias[k], rtol=1e-4, atol=1e-5)


def test_curvature_changes_the_way_and_not_the_optimum() -> None:
    x, labels = example(100, 8, 4)
    with working() as workers:
        problem = LogisticProblems(x, labels, np.full((100, 1), 0.01), 4, workers)
        first = problem.solve(1e-2, problem.origin(), **FINE)
        problem.score(first, np.zeros(100, dtype=int))
        second = problem.solve(1e-2, problem.origin(), **FINE)
    np.testing.assert_allclose(first.kernel, second.kernel, atol=5e-3)


@pytest.mark.parametrize(("n", "d"), [(10, 40), (40, 40), (200, 12)])
def test_principal_axes_are_orthonormal_uncorrelated_and_complete(n: int, d: int) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(n, d)) @ rng.normal(size=(d, d))).astype(np.float32)
    rows -= rows.mean(axis=0)
    with working() as workers:
        coordinates, axes = principal_axes(rows, workers)
    np.testing.assert_allclose(axes @ axes.T, np.eye(len(axes)), atol=1e-4)
    np.testing.assert_allclose(coordinates @ axes, rows, atol=1e-3)
    spread = coordinates.T @ coordinates
    assert np.abs(spread - np.diag(np.diag(spread))).max() < 1e-4 * spread.max()


def test_equal_rows_have_no_axes_and_only_the_bias_is_fitted() -> None:
    labels = np.array([0, 0, 0, 1])
    with working() as workers:
        coordinates, axes = principal_axes(np.zeros((4, 9), dtype=np.float32), workers)
        problem = LogisticProblems(coordinates, labels, np.full((4, 1), 0.25), 2, workers)
        found = problem.solve(0.1, problem.origin(), **FINE)
    assert coordinates.shape == (4, 0)
    assert axes.shape == (0, 9)
    assert found.bias[0, 0] - found.bias[0, 1] == pytest.approx(np.log(3), abs=1e-3)


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = example(500, 20, 3)
    monkeypatch.setattr(logistic, "_BLOCK_ROWS", 64)
    kernels = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(logistic, "cpu_cores", lambda threads=threads: threads)
        with working() as workers:
            coordinates, _ = principal_axes(x, workers)
            problem = LogisticProblems(coordinates, labels, np.full((500, 1), 1 / 500), 3, workers)
            kernels.append(problem.solve(0.01, problem.origin(), **FINE).kernel)
    assert np.array_equal(kernels[0], kernels[1])
    assert np.array_equal(kernels[0], kernels[2])


def test_blocks_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = example(300, 10, 3)
    kernels = []
    for rows in (37, 2048):
        monkeypatch.setattr(logistic, "_BLOCK_ROWS", rows)
        with working() as workers:
            problem = LogisticProblems(x, labels, np.full((300, 1), 1 / 300), 3, workers)
            kernels.append(problem.solve(0.01, problem.origin(), **FINE).kernel)
    np.testing.assert_allclose(kernels[0], kernels[1], atol=1e-3)


def test_the_next_start_lies_as_far_beyond_as_the_last_step_went() -> None:
    here, before = (Solution(np.full((2, 1, 2), v), np.full((1, 2), -v)) for v in (3.0, 1.0))
    ahead = here.beyond(before)
    assert (ahead.kernel == 5).all()
    assert (ahead.bias == -5).all()
