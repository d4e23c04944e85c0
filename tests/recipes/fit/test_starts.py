"""What contenders start from: the solved classifier on the top stage, or nothing at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.contest import draw_textures, ring
from tests.helpers.networks import tiny_network
from transferapp.backbones.feature_store import CENTER
from transferapp.recipes.fit.starts import blank_head, random_weights, solved_head
from transferapp.system.progress import Silent
from transferapp.training.head_spec import HeadSpec
from transferapp.training.probe import fit_probe


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_textures(tmp_path_factory.mktemp("contest"))


@pytest.mark.parametrize("weights", [None, np.array([2.0, 0.5, 0.5])])
def test_the_head_is_solved_on_the_top_stage_with_the_weights_of_the_classes(
    root: Path, weights: np.ndarray | None
) -> None:
    around = ring(root, l2="0.03", dropout=0.2)
    chosen, train = around.measurement.chosen, around.measurement.dataset.part("train")
    weighting = dataclasses.replace(around.measurement.weighting, weights=weights)
    head = solved_head(chosen, train, weighting, around.config, Silent())
    top = chosen.trunk.row_slices[chosen.trunk.top.index]
    rows = chosen.store.collect(train.records, [CENTER])[:, 0, top]
    each = None if weights is None else weights[train.labels]
    probe = fit_probe(rows, train.labels, 3, 0.03, sample_weight=each)
    np.testing.assert_allclose(head.weights[0], probe.kernel, atol=1e-5)
    np.testing.assert_allclose(head.weights[1], probe.bias, atol=1e-5)
    assert head.spec == HeadSpec(dropout=0.2, l2=0.03)


def test_random_weights_are_drawn_by_the_seed_and_leave_the_scale_of_pixels_alone() -> None:
    backbone = tiny_network(adapted=True)
    first, again, other = (random_weights(backbone, seed) for seed in (0, 0, 1))
    names = [variable.path for variable in backbone.weights]
    kernels = [i for i, name in enumerate(names) if name.endswith("kernel")]
    scaling = [i for i, name in enumerate(names) if name.startswith("scale/")]
    assert len(scaling) == 3, names
    for index in scaling:
        np.testing.assert_array_equal(first[index], backbone.get_weights()[index])
    for index in kernels:
        np.testing.assert_array_equal(first[index], again[index])
        assert np.abs(first[index] - other[index]).max() > 0
        assert np.abs(first[index] - backbone.get_weights()[index]).max() > 0


def test_a_blank_linear_head_finds_all_classes_equally_likely(root: Path) -> None:
    around = ring(root)
    head = blank_head(around.measurement.chosen, 3, around.config)
    assert head.num_classes == 3
    assert not any(array.any() for array in head.weights)
    hidden = blank_head(around.measurement.chosen, 3, ring(root, hidden="4").config)
    assert hidden.weights == (), "of hidden layers they are to be drawn"
