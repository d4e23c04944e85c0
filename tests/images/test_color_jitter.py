"""Color jitter and the principal components of colors: by hand, against references, and reproducible."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from transferapp.errors import UsageError
from transferapp.images.augment import ColorJitter, PCAColor, color_table, fit_pca_color, jitter

NONE = ColorJitter(contrast=0, brightness=0, pca_std=0)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def correlated_samples(count: int = 5000) -> np.ndarray:
    """Brightness varies most, then red against blue, then green; as in photographs."""
    rng = generator(1)
    mixing = np.array([[50, 20, 3], [50, 0, -6], [50, -20, 3]])
    values = 128 + rng.standard_normal((count, 3)) @ mixing.T
    return np.clip(values, 0, 255).astype(np.uint8)


def photo(seed: int = 0, shape: tuple[int, int] = (40, 30)) -> np.ndarray:
    return generator(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pca() -> PCAColor:
    return fit_pca_color(correlated_samples())


# ------------------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (120, (114, 104, 84)),  # .8 (100 + 1.5 · 20) = 104, and the offsets
        (100, (90, 80, 60)),  # the mean: only brightness and offset
        (0, (0, 0, 0)),  # .8 (100 - 150) = -40: clipped
        (255, (255, 255, 246)),  # .8 (100 + 232.5) = 266
        (33, (10, 0, 0)),  # .8 (100 - 100.5) = -.4, rounds to 0 after the offset is added
    ],
)
def test_a_table_worked_by_hand(value: int, expected: tuple[int, int, int]) -> None:
    table = color_table(100.0, 1.5, 0.8, np.array([10.0, 0.0, -20.0]))
    assert table.shape == (3, 256)
    assert tuple(table[:, value]) == expected


def test_factors_of_one_leave_every_value_alone() -> None:
    for mean in (0.0, 255.0, 127.3, 1 / 3):
        np.testing.assert_array_equal(color_table(mean, 1.0, 1.0, np.zeros(3)), np.tile(np.arange(256), (3, 1)))


# --------------------------------------------------------------------------------------------------------------- jitter


def test_jitter_agrees_with_the_formula_pixel_by_pixel(pca: PCAColor) -> None:
    pixels = photo()
    for seed in range(20):
        got = jitter(pixels, generator(seed), ColorJitter(0.3, 0.4, 0.5), pca)
        rng = generator(seed)
        u, w = rng.random(2)
        alphas = rng.normal(0.0, 0.5, 3)
        shift = 255 * sum(
            alpha * lam * p for alpha, lam, p in zip(alphas, pca.eigenvalues, pca.eigenvectors.T, strict=True)
        )
        contrast, brightness = 0.7 + 0.6 * u, 0.6 + 0.8 * w
        mean = pixels.mean()
        exact = brightness * (mean + contrast * (pixels - mean)) + shift
        assert got.dtype == np.uint8
        assert got.shape == pixels.shape
        # Half a level from rounding, and a hair for the order of the sums.
        assert np.abs(got - np.clip(exact, 0, 255)).max() <= 0.5 + 1e-9


def test_settings_of_zero_change_nothing(pca: PCAColor) -> None:
    pixels = photo()
    for components in (pca, None):
        np.testing.assert_array_equal(jitter(pixels, generator(), NONE, components), pixels)


def test_as_many_numbers_are_drawn_whatever_the_settings(pca: PCAColor) -> None:
    states = []
    for settings in (NONE, ColorJitter(), ColorJitter(0.2, 0, 0), ColorJitter(0, 0.2, 0), ColorJitter(0, 0, 0.1)):
        rng = generator(7)
        jitter(photo(), rng, settings, pca)
        states.append(rng.bit_generator.state)
    assert all(state == states[0] for state in states)


def test_switching_one_setting_off_leaves_the_others_draws_as_they_were(pca: PCAColor) -> None:
    gray = np.full((2, 2, 3), 100, np.uint8)  # no contrast to change
    only_brightness = jitter(gray, generator(3), ColorJitter(0, 0.2, 0), None)
    np.testing.assert_array_equal(jitter(gray, generator(3), ColorJitter(0.9, 0.2, 0), pca), only_brightness)


def test_contrast_factors_are_even_in_the_range_and_keep_the_mean() -> None:
    pixels = np.zeros((2, 1, 3), np.uint8)
    pixels[:, 0] = [[50] * 3, [200] * 3]
    views = np.array([jitter(pixels, generator(seed), ColorJitter(0.2, 0, 0), None)[:, 0, 0] for seed in range(1500)])
    factors = (views[:, 1].astype(float) - views[:, 0]) / 150
    assert np.abs(views.mean(axis=1) - 125).max() <= 0.5
    assert 0.79 < factors.min() < 0.81 < 1.19 < factors.max() < 1.21
    assert factors.mean() == pytest.approx(1, abs=0.01)
    assert factors.std() == pytest.approx(0.4 / 12**0.5, rel=0.05)


def test_brightness_factors_are_even_in_the_range() -> None:
    pixels = np.full((1, 1, 3), 200, np.uint8)
    factors = np.array([jitter(pixels, generator(s), ColorJitter(0, 0.2, 0), None)[0, 0, 1] for s in range(1500)]) / 200
    assert 0.79 < factors.min() < 0.81 < 1.19 < factors.max() < 1.21
    assert factors.mean() == pytest.approx(1, abs=0.01)
    assert factors.std() == pytest.approx(0.4 / 12**0.5, rel=0.05)


def test_without_light_offsets_gray_stays_gray() -> None:
    pixels = np.repeat(photo()[..., :1], 3, axis=2)
    changed = jitter(pixels, generator(5), ColorJitter(0.5, 0.5, 0), None)
    assert (changed != pixels).any()
    assert (changed == changed[..., :1]).all()


def test_nothing_wraps_round_at_black_and_white(pca: PCAColor) -> None:
    pixels = np.zeros((2, 1, 3), np.uint8)
    pixels[1] = 255
    for seed in range(200):
        black, white = jitter(pixels, generator(seed), ColorJitter(0.5, 0.5, 0.1), pca)[:, 0].astype(int)
        assert black.max() < white.min()


def test_the_same_generator_gives_the_same_bytes_and_another_does_not(pca: PCAColor) -> None:
    first, again, other = (jitter(photo(), generator(seed), ColorJitter(), pca) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_the_input_is_not_changed_and_may_be_mirrored_or_read_only(pca: PCAColor) -> None:
    pixels = photo()
    before = pixels.copy()
    pixels.flags.writeable = False
    mirrored = jitter(pixels[:, ::-1], generator(1), ColorJitter(), pca)
    np.testing.assert_array_equal(mirrored[:, ::-1], jitter(pixels, generator(1), ColorJitter(), pca))
    np.testing.assert_array_equal(pixels, before)


def test_offsets_lie_along_a_principal_direction() -> None:
    direction = np.array([2.0, 1.0, -2.0]) / 3
    others = np.linalg.svd(direction[None])[2][1:].T
    pca = PCAColor(np.column_stack([direction, others]), np.array([0.8, 0.0, 0.0]), np.full(3, 0.5))
    gray = np.full((1, 1, 3), 128, np.uint8)
    settings = ColorJitter(0, 0, 0.1)
    offsets = np.array([jitter(gray, generator(seed), settings, pca)[0, 0] - 128.0 for seed in range(500)])
    along = offsets @ direction
    assert np.linalg.norm(offsets - along[:, None] * direction, axis=1).max() <= 0.5 * 3**0.5
    assert np.abs(along).max() > 30


def test_offsets_spread_by_each_eigenvalue_and_independently(pca: PCAColor) -> None:
    wide = PCAColor(pca.eigenvectors, np.array([1.0, 0.5, 0.25]), pca.mean)
    gray = np.full((1, 1, 3), 128, np.uint8)
    settings = ColorJitter(0, 0, 0.1)
    offsets = np.array([jitter(gray, generator(seed), settings, wide)[0, 0] - 128.0 for seed in range(2000)])
    along = offsets @ wide.eigenvectors
    assert np.abs(along.mean(axis=0)).max() < 1.5
    np.testing.assert_allclose(along.std(axis=0), 255 * 0.1 * wide.eigenvalues, rtol=0.05)
    assert np.abs(np.corrcoef(along.T) - np.eye(3)).max() < 0.06


def test_every_pixel_of_a_view_gets_the_same_offset(pca: PCAColor) -> None:
    pixels = generator(2).integers(100, 156, (8, 8, 3), dtype=np.uint8)
    moved = jitter(pixels, generator(3), ColorJitter(0, 0, 0.5), pca).astype(int) - pixels
    assert len(np.unique(moved.reshape(-1, 3), axis=0)) == 1
    assert moved.any()


def test_offsets_without_components_are_refused() -> None:
    with pytest.raises(ValueError, match="fit_pca_color"):
        jitter(photo(), generator(), ColorJitter(), None)


@pytest.mark.parametrize(
    "values", [{"contrast": -0.1}, {"contrast": 1.0}, {"brightness": 1.5}, {"pca_std": -1}, {"pca_std": float("nan")}]
)
def test_settings_out_of_range_are_refused_by_name(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        ColorJitter(**values)


# ------------------------------------------------------------------------------------------------- principal components


def test_components_of_black_and_white_worked_by_hand() -> None:
    found = fit_pca_color(np.array([[0, 0, 0], [255, 255, 255]], np.uint8))
    # Every entry of the covariance is ((-1/2)² + (1/2)²) / (2 - 1) = 1/2.
    np.testing.assert_allclose(found.eigenvalues, [1.5, 0, 0], atol=1e-15)
    np.testing.assert_allclose(found.eigenvectors[:, 0], np.full(3, 3**-0.5), rtol=1e-12)
    np.testing.assert_allclose(found.mean, 0.5)
    np.testing.assert_allclose(found.offset(np.array([0.1, 5.0, 5.0])), np.full(3, 0.15 * 3**-0.5), atol=1e-14)


def test_components_agree_with_a_singular_value_decomposition(pca: PCAColor) -> None:
    centerd = correlated_samples() / 255.0
    centerd -= centerd.mean(axis=0)
    _, singular, directions = np.linalg.svd(centerd, full_matrices=False)
    np.testing.assert_allclose(pca.eigenvalues, singular**2 / (len(centerd) - 1), rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(directions.T * pca.eigenvectors, axis=0)), 1, rtol=1e-9)


def test_components_rebuild_the_covariance(pca: PCAColor) -> None:
    rebuilt = pca.eigenvectors @ np.diag(pca.eigenvalues) @ pca.eigenvectors.T
    np.testing.assert_allclose(rebuilt, np.cov(correlated_samples().T / 255.0), rtol=1e-9)
    np.testing.assert_allclose(pca.mean, correlated_samples().mean(axis=0) / 255)
    assert pca.eigenvalues[0] > pca.eigenvalues[1] > pca.eigenvalues[2] > 0


def test_each_component_points_where_its_largest_part_is_positive(pca: PCAColor) -> None:
    for vector in pca.eigenvectors.T:
        assert vector[np.abs(vector).argmax()] > 0


def test_the_order_of_the_samples_leaves_no_trace(pca: PCAColor) -> None:
    shuffled = generator(4).permutation(correlated_samples())
    assert fit_pca_color(shuffled).to_json() == pca.to_json()


def test_gray_images_have_one_component_and_no_negative_variance() -> None:
    grays = np.repeat(generator(0).integers(0, 256, (500, 1), dtype=np.uint8), 3, axis=1)
    found = fit_pca_color(grays)
    assert found.eigenvalues.min() >= 0
    np.testing.assert_allclose(found.eigenvalues[1:], 0, atol=1e-15)
    np.testing.assert_allclose(found.eigenvectors[:, 0], 3**-0.5)


def test_json_carries_the_components_without_loss(pca: PCAColor) -> None:
    back = PCAColor.from_json(json.loads(json.dumps(pca.to_json())))
    for name in ("eigenvectors", "eigenvalues", "mean"):
        np.testing.assert_array_equal(getattr(back, name), getattr(pca, name))


@pytest.mark.parametrize(
    ("name", "value"),
    [("mean", None), ("mean", [0.5]), ("eigenvalues", [1, 2, float("nan")]), ("eigenvectors", [1, 2, 3])],
)
def test_json_that_is_no_set_of_components_is_refused(pca: PCAColor, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        PCAColor.from_json({**pca.to_json(), name: value})


@pytest.mark.parametrize(
    "samples", [np.zeros((1, 3), np.uint8), np.zeros((5, 4), np.uint8), np.zeros((5, 3)), np.zeros((4, 4, 3), np.uint8)]
)
def test_samples_of_another_form_are_refused(samples: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 samples"):
        fit_pca_color(samples)


def test_color_and_augmentation_import_no_keras() -> None:
    code = "import sys, transferapp.images.augment; sys.exit(any(m in sys.modules for m in ('keras', 'tensorflow', 'jax')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
