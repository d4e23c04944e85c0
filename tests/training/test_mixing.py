"""mixup and CutMix: shares, boxes and labels worked out by hand, from the seed, epoch and batch alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers.toys import CLASSES, toy_data, toy_model
from transferapp.training.batches import SoftBatches, mixed, soft
from transferapp.training.checkpoint import CheckpointStore
from transferapp.training.loop import train
from transferapp.training.settings import TrainingJob, TrainingSettings


def images(count: int = 8, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Image p is p everywhere, and of class p."""
    x = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, size, size, 3))
    return x.copy(), np.eye(count, dtype=np.float32)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_labels_say_how_much_of_each_image_there_is(cut: bool, seed: int) -> None:
    x, y = images()
    mixed_x, mixed_y = mixed(x, y, np.random.default_rng(seed), 1.0, cut=cut)
    assert (mixed_x.dtype, mixed_y.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(mixed_y.sum(axis=1), 1, atol=1e-6)
    # Values are class numbers, so an image's mean is the mean of its label.
    np.testing.assert_allclose(mixed_x.mean(axis=(1, 2, 3)), mixed_y @ np.arange(8), atol=1e-4)
    shares = np.diag(mixed_y)
    if cut:
        assert set(np.unique(mixed_x)) <= set(range(8)), "pixels are of one image or the other"
    assert np.ptp(shares[shares < 1 - 1e-6]) < 1e-6, "one share for the whole batch"


def test_a_box_is_pasted_in_one_piece() -> None:
    x, y = images()
    mixed_x, mixed_y = mixed(x, y, np.random.default_rng(2), 1.0, cut=True)
    pasted = mixed_x[..., 0] != x[..., 0]
    for index in np.flatnonzero(pasted.any(axis=(1, 2))):
        rows, columns = pasted[index].any(axis=1), pasted[index].any(axis=0)
        assert pasted[index].sum() == rows.sum() * columns.sum()
        assert 1 - mixed_y[index, index] == pytest.approx(pasted[index].mean())
        assert (np.diff(np.flatnonzero(rows)) == 1).all()


def test_features_without_place_are_blended() -> None:
    x, y = np.arange(4, dtype=np.float32)[:, None] * np.ones(5, np.float32), np.eye(4, dtype=np.float32)
    cut = mixed(x, y, np.random.default_rng(0), 1.0, cut=True)
    blended = mixed(x, y, np.random.default_rng(0), 1.0, cut=False)
    np.testing.assert_array_equal(cut[0], blended[0])


def test_a_small_alpha_leaves_most_as_it_is_and_one_is_even() -> None:
    def shares(alpha: float) -> np.ndarray:
        x, y = images(2, 1)
        drawn = [mixed(x, y, np.random.default_rng(seed), alpha, cut=False)[1][0, 0] for seed in range(400)]
        return np.abs(np.array(drawn) - 0.5)

    assert (shares(0.05) > 0.45).mean() > 0.7
    # Even on [0, 1], and half of the time the partner of an image of two is itself.
    assert shares(1.0).mean() == pytest.approx((0.25 + 0.5) / 2, abs=0.03)


def test_what_is_mixed_follows_from_seed_epoch_and_batch() -> None:
    make, _, _ = toy_data()

    def batch(seed: int = 1, epoch: int = 3, index: int = 1) -> Any:
        batches = soft(make, CLASSES, mixup=1.0, cutmix=1.0, seed=seed)(16)
        batches.epoch = epoch
        return batches[index]

    for ours, theirs in zip(batch(), batch(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert all(np.abs(batch()[0] - other[0]).max() > 0 for other in (batch(seed=2), batch(epoch=4), batch(index=0)))


def test_labels_alone_become_probabilities() -> None:
    make, _, _ = toy_data()
    plain, softened = make(16), soft(make, CLASSES, mixup=0.0, cutmix=0.0, seed=0)(16)
    assert len(softened) == len(plain)
    np.testing.assert_array_equal(softened[0][0], plain[0][0])
    np.testing.assert_array_equal(softened[0][1].argmax(axis=1), plain[0][1])
    assert set(np.unique(softened[0][1])) == {0.0, 1.0}
    assert isinstance(softened, SoftBatches)


@pytest.mark.parametrize(
    "settings", [{"label_smoothing": 0.1}, {"mixup": 0.4}, {"label_smoothing": 0.1, "mixup": 0.4, "cutmix": 1.0}]
)
def test_a_network_learns_from_soft_labels(settings: dict[str, float], tmp_path: Any) -> None:
    make, validation, val_labels = toy_data()
    how = TrainingSettings(epochs=6, learning_rate=3e-2, average=0.0, patience=6, **settings)  # type: ignore[arg-type]
    softened = soft(make, CLASSES, mixup=how.mixup, cutmix=how.cutmix, seed=0)
    trained = train(
        TrainingJob(toy_model(), softened, how, {}, 16),
        validation,
        val_labels,
        checkpoints=CheckpointStore(tmp_path),
    )
    assert trained.accuracy >= 0.9
    assert trained.history[-1].loss > trained.loss, "what was mixed or smoothed cannot be fitted so closely"


def test_smoothing_gives_the_loss_of_the_formula(tmp_path: Any) -> None:
    from transferapp.training.session import Session

    make, validation, _ = toy_data()
    model = toy_model()
    how = TrainingSettings(label_smoothing=0.3, average=0.0)
    softened = soft(make, CLASSES, mixup=0.0, cutmix=0.0, seed=0)
    Session(TrainingJob(model, softened, how, {}, 8), validation)
    x, y = softened(8)[0]
    logits = np.asarray(model(x), np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -((0.7 * y + 0.3 / CLASSES) * log_probabilities).sum(axis=1).mean()
    assert float(model.test_on_batch(x, y)[0]) == pytest.approx(expected, rel=1e-4)
