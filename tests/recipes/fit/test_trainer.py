"""Heads that the trainer's candidates start from: the linear classifier on the top stage, or none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.fine_tuning import Setting, draw_textures, prepared, trainer_of
from transferapp.backbones.feature_store import CENTER
from transferapp.policy.cuts import INPUT, Proposal
from transferapp.training import tail as tails
from transferapp.training.head_spec import Head, HeadSpec
from transferapp.training.probe import fit_probe

pytestmark = pytest.mark.usefixtures("module_cache")

WHOLE = Proposal("whole network", INPUT)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_textures(tmp_path_factory.mktemp("textures"))


class Built(BaseException):
    """Ends a training when its tail is built."""


def start_of(setting: Setting, target: Path) -> tuple[Head, dict[str, Any]]:
    """Return the head that a tail is built with, and the options."""

    def spy(network: Any, stages: Any, cut: Any, head: Head, **options: Any) -> Any:
        raise Built(head, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tails, "build_tail", spy)
        with pytest.raises(Built) as caught:
            trainer_of(setting, target).train(WHOLE, np.inf)
    head, options = caught.value.args
    return head, options


@pytest.mark.parametrize("weights", [None, np.array([2.0, 0.5, 0.5])])
def test_the_head_is_solved_on_the_top_stage_with_the_class_weights(
    root: Path, tmp_path: Path, weights: np.ndarray | None
) -> None:
    setting = prepared(root, l2="0.03", dropout=0.2)
    chosen, train = setting.measurement.chosen, setting.measurement.dataset.part("train")
    weighting = dataclasses.replace(setting.measurement.weighting, weights=weights)
    weighed = dataclasses.replace(setting.measurement, weighting=weighting)
    head, options = start_of(dataclasses.replace(setting, measurement=weighed), tmp_path / "bundle")
    top = chosen.trunk.row_slices[chosen.trunk.top.index]
    rows = chosen.store.collect(train.records, [CENTER])[:, 0, top]
    each = None if weights is None else weights[train.labels]
    probe = fit_probe(rows, train.labels, 3, 0.03, sample_weight=each)
    np.testing.assert_allclose(head.weights[0], probe.kernel, atol=1e-5)
    np.testing.assert_allclose(head.weights[1], probe.bias, atol=1e-5)
    assert head.spec == HeadSpec(dropout=0.2, l2=0.03)
    assert not options["from_scratch"]


def test_from_scratch_a_linear_head_gives_all_classes_the_same_probability(root: Path, tmp_path: Path) -> None:
    head, options = start_of(prepared(root, tune="auto", scratch=True), tmp_path / "linear")
    assert options["from_scratch"]
    assert head.num_classes == 3
    assert [w.shape for w in head.weights] == [(20, 3), (3,)]
    assert not any(array.any() for array in head.weights)
    hidden, _ = start_of(prepared(root, tune="auto", scratch=True, hidden="4"), tmp_path / "hidden")
    assert hidden.weights == (), "hidden layers are drawn at random"
