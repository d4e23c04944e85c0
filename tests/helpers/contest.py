"""A bake-off small enough for any test: textures of 32 pixels, a network of two thousand parameters, a solved classifier.

Everything is what a fit uses, but for the measuring: that would run a real backbone to learn how similar the set is to
ImageNet. The network's weights are random, so that a solved classifier on it does middling and training it helps.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.helpers.networks import TINY_SIZE, tiny_network
from transferapp.backbones.feature_store import CENTER, FeatureStore, RandomViews
from transferapp.backbones.registry import backbone_spec
from transferapp.backbones.trunk import load_trunk
from transferapp.config import FitConfig, make_config
from transferapp.data.audit import audit
from transferapp.data.audit_findings import summarize
from transferapp.data.dataset import Dataset
from transferapp.data.sources import open_source
from transferapp.data.split import assign_splits
from transferapp.policy.class_weights import WeightsFinding
from transferapp.policy.input_size import choose_input_size
from transferapp.policy.plan import FineTuning, NewHead, Overrides, make_plan
from transferapp.policy.reasons import Reason
from transferapp.policy.similarity import StageScore, judge_similarity
from transferapp.policy.size import measure_size
from transferapp.recipes.fit.class_weighting import Weighting
from transferapp.recipes.fit.measure import Candidate, Measurement, Workshop, l2_path
from transferapp.recipes.fit.random_views import ViewChoice
from transferapp.recipes.fit.solve import Solved, solve
from transferapp.system.progress import Silent
from transferapp.training.probe import cross_validate

CLASSES = ("across", "down", "rings")
PER_CLASS = 24


def texture(name: str, seed: int) -> Image.Image:
    """Colored waves under noise: stripes across, stripes down, or rings."""
    rng = np.random.default_rng([seed, CLASSES.index(name)])
    down, across = np.mgrid[0 : TINY_SIZE[0], 0 : TINY_SIZE[1]]
    middle = rng.uniform(10, 22, 2)
    along = {"across": down, "down": across, "rings": np.hypot(down - middle[0], across - middle[1])}[name]
    wave = np.sin(along * rng.uniform(0.9, 1.3) + rng.uniform(0, 6))[..., None]
    pixels = rng.uniform(90, 160, 3) + wave * rng.uniform(20, 60, 3) + rng.normal(0, 22, (*TINY_SIZE, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_textures(root: Path, per_class: int = PER_CLASS) -> Path:
    """Class folders of textures below `root`, which is made, and beside them the network `tiny.keras`."""
    for name in CLASSES:
        (root / "images" / name).mkdir(parents=True)
        for index in range(per_class):
            texture(name, index).save(root / "images" / name / f"{index:02}.png")
    tiny_network().save(root / "tiny.keras")
    return root


@dataclass(frozen=True)
class Ring:
    """What a bake-off is called with, but for the run's folder."""

    config: FitConfig
    measurement: Measurement
    solved: Solved
    shop: Workshop

    @property
    def backbone(self) -> Any:
        return self.shop.model(self.measurement.chosen.spec)

    @property
    def val(self) -> Dataset:
        return self.measurement.dataset.part("val")


def ring(root: Path, **changes: Any) -> Ring:
    """Everything that comes before a bake-off.

    Args:
        root: From `draw_textures`.
        **changes: Settings of the fit.
    """
    usual: dict[str, Any] = {
        "data": str(root / "images"),
        "out": str(root / "bundle"),
        "backbone": str(root / "tiny.keras"),
        "precision": "f32",
        "size": "large",
        "tune": "last",
        "budget": "none",
        "epochs": 2,
        "batch_size": 16,
        "pca_std": 0.0,
        "scale_max": 280,
        "val_fraction": 0.3,
    }
    config = make_config({**usual, **changes})
    shop = Workshop(config)
    spec = backbone_spec(config.backbone)
    trunk = load_trunk(spec, lambda: shop.model(spec), image_size=TINY_SIZE, precision=config.precision)
    dataset = _audited(config.data, config.val_fraction, config.test_fraction)
    train = dataset.part("train")
    store = FeatureStore(trunk, random_views=RandomViews(config.augmentation_for(tiny=False)))
    rows = store.collect(train.records, [CENTER])[:, 0]
    validations = tuple(
        cross_validate(rows[:, columns], train.labels, len(CLASSES), path=l2_path(config), groups=train.groups())
        for columns in trunk.row_slices[: len(trunk.stages)]
    )
    scores = tuple(
        StageScore(stage.name, v.accuracy, v.loss, 0.0, 0.05)
        for stage, v in zip(trunk.stages, validations, strict=True)
    )
    head = NewHead(config.trained_head, config.new_head_learning_rate)
    plan = make_plan(
        measure_size(train.counts()),
        judge_similarity(0.9, scores),
        scores,
        backbone=spec.name,
        overrides=Overrides(size=config.size, tune=config.tune),
        tuning=FineTuning(epochs=config.epochs),
        head=head if config.trained_head and not config.scratch else None,
    )
    chosen = Candidate(spec, trunk, store, choose_input_size((), TINY_SIZE), validations, scores, plan, 1.0)
    at_cut = validations[chosen.cut.index]
    weighting = Weighting(None, WeightsFinding("none", Reason("classes", "not asked")), at_cut, 1.0)
    measurement = Measurement(dataset, (chosen,), chosen, summarize(dataset), weighting)
    choice = ViewChoice(0, validations[chosen.cut.index], (), "")
    return Ring(config, measurement, solve(measurement, choice, config, Silent()), shop)


@functools.cache
def _audited(data: str, val_fraction: float, test_fraction: float) -> Dataset:
    return assign_splits(audit(open_source(data)), seed=0, val_fraction=val_fraction, test_fraction=test_fraction)
