"""Fine-tuning small enough for any test: textures of 32 pixels, a network of two thousand parameters, a linear classifier.

Everything is what a fit uses, but for `measure`, which would run a real backbone to measure the similarity to ImageNet. The
network's weights are random, so that a linear classifier on it does middling and training it helps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.helpers.networks import TINY_SIZE, tiny_network
from transferapp.backbones.feature_store import CENTER, FeatureStore, RandomViews, center_pixels
from transferapp.backbones.loader import BackboneLoader
from transferapp.backbones.registry import backbone_spec
from transferapp.backbones.trunk import load_trunk
from transferapp.config import FitConfig, make_config
from transferapp.data.audit import audit, summarize
from transferapp.data.dataset import Dataset
from transferapp.data.sources import open_source
from transferapp.data.split import assign_splits
from transferapp.policy.choose import choose
from transferapp.policy.class_weights import WeightsFinding
from transferapp.policy.geometry import judge_geometry
from transferapp.policy.plan import FineTuning, NewHead, Overrides, make_plan
from transferapp.policy.reasons import Reason
from transferapp.policy.similarity import StageScore, judge_similarity
from transferapp.policy.size import choose_input_size, measure_size
from transferapp.recipes.fit.candidate import Candidate
from transferapp.recipes.fit.export import build_network
from transferapp.recipes.fit.fine_tune import fine_tune
from transferapp.recipes.fit.measure import Measurement, ProbedBackbone, Weighting, probe_stages
from transferapp.recipes.fit.report import candidate_reason
from transferapp.recipes.fit.resume import RunFolder
from transferapp.recipes.fit.solve import ViewChoice, solve
from transferapp.recipes.fit.trainer import Baseline, Trainer
from transferapp.system.progress import Silent

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


@dataclass(frozen=True, eq=False)
class Setting:
    """Arguments of fine-tuning, but for the folder of the run.

    Attributes:
        config: Settings of the fit.
        measurement: Images, backbone and plan.
        solved: The linear classifier.
        loader: Builds the backbones.
    """

    config: FitConfig
    measurement: Measurement
    solved: Candidate
    loader: BackboneLoader

    @property
    def network(self) -> Any:
        """The Keras model of the backbone."""
        return self.loader.model(self.measurement.chosen.spec)

    @property
    def val(self) -> Dataset:
        """The validation images."""
        return self.measurement.dataset.part("val")


@dataclass(frozen=True, eq=False)
class Outcome:
    """Result of fine-tuning.

    Attributes:
        setting: Its arguments.
        candidates: The linear classifier first.
        winner: The one that ships.
    """

    setting: Setting
    candidates: tuple[Candidate, ...]
    winner: Candidate

    @property
    def reasons(self) -> list[str]:
        """The sentence on each candidate."""
        return [candidate_reason(candidate, self.candidates, self.winner) for candidate in self.candidates]

    def network(self, candidate: Candidate | None = None) -> Any:
        """Return the Keras model of a candidate, of the winner where none is named."""
        candidate = candidate or self.winner
        backbone = self.setting.measurement.backbone(candidate.backbone)
        assert candidate.classifier is not None
        network = self.setting.loader.model(backbone.spec)
        return build_network(candidate.classifier, network, backbone.trunk.stages, "textures")

    def scores(self, candidate: Candidate | None = None) -> np.ndarray:
        """Return the probabilities of that model on the validation images: float32, shape (n, num_classes)."""
        return scores_on(self.setting.val, self.network(candidate))

    def accuracy(self, candidate: Candidate | None = None) -> float:
        """Return the accuracy of that model on the validation images."""
        return float((self.scores(candidate).argmax(axis=1) == self.setting.val.labels).mean())

    def loss(self, candidate: Candidate | None = None) -> float:
        """Return the mean negative log-likelihood of that model on the validation images."""
        scores, labels = self.scores(candidate), self.setting.val.labels
        return float(-np.log(scores[np.arange(len(scores)), labels]).mean())

    @property
    def timeless(self) -> list[dict[str, Any]]:
        """Fields of every candidate but the time that it took, weights as bytes: equal where two outcomes are."""
        return [_timeless(candidate) for candidate in self.candidates]


def _timeless(candidate: Candidate) -> dict[str, Any]:
    values: dict[str, Any] = {each.name: getattr(candidate, each.name) for each in fields(candidate)}
    classifier, error = candidate.classifier, candidate.error
    return {
        **values,
        "seconds": 0.0,
        "history": [replace(epoch, seconds=0.0) for epoch in candidate.history],
        "error": str(error),
        "held_out": candidate.held_out is not None,
        "probabilities": None if candidate.probabilities is None else candidate.probabilities.tolist(),
        "correct": None if candidate.correct is None else candidate.correct.tolist(),
        "classifier": None
        if classifier is None
        else (
            classifier.taps,
            classifier.cut,
            classifier.temperature,
            classifier.head.spec,
            _as_bytes(classifier.head.weights),
            [_as_bytes(weights) for weights in classifier.tails],
        ),
    }


def _as_bytes(arrays: Sequence[np.ndarray]) -> list[bytes]:
    return [np.asarray(array).tobytes() for array in arrays]


def scores_on(part: Dataset, network: Any) -> np.ndarray:
    """Return the outputs of a Keras model on the center views of images: float32."""
    pixels = np.stack([center_pixels(record, TINY_SIZE, "crop") for record in part.records])
    return np.asarray(network(pixels.astype(np.float32), training=False))


def begun(target: Path) -> RunFolder:
    """Return the folder of a run that has begun, or goes on."""
    run = RunFolder(target)
    run.begin({})
    return run


def fine_tuned(setting: Setting, target: Path) -> Outcome:
    """Fine-tune and choose, with a run folder beside `target`."""
    config = setting.config
    tuned = fine_tune(setting.measurement, setting.solved, 0, config, setting.loader, begun(target), Silent())
    candidates = (setting.solved, *tuned)
    groups = setting.measurement.dataset.part("val").groups()
    return Outcome(setting, candidates, choose(candidates, groups, insist=config.rule_only or config.scratch))


def trainer_of(setting: Setting, target: Path) -> Trainer:
    """Return the trainer of the chosen backbone."""
    chosen = setting.measurement.chosen
    return Trainer(
        chosen, setting.network, setting.measurement, Baseline(0, 0.0), setting.config, begun(target), Silent()
    )


def with_budget(setting: Setting, seconds: float) -> Setting:
    """Return the same setting with another budget."""
    measurement = setting.measurement
    chosen = replace(measurement.chosen, plan=replace(measurement.plan, budget=seconds))
    backbones = tuple(chosen if each is measurement.chosen else each for each in measurement.backbones)
    return replace(setting, measurement=replace(measurement, backbones=backbones, chosen=chosen))


def prepared(root: Path, **changes: Any) -> Setting:
    """Do everything that comes before fine-tuning.

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
    loader = BackboneLoader(engine=config.engine, precision=config.precision)
    spec = backbone_spec(config.backbone)
    trunk = load_trunk(spec, lambda: loader.model(spec), image_size=TINY_SIZE, precision=config.precision)
    dataset = _audited(config.data, config.val_fraction, config.test_fraction)
    train = dataset.part("train")
    store = FeatureStore(trunk, random_views=RandomViews(config.augmentation_for(tiny=False)))
    rows = store.collect(train.records, [CENTER])[:, 0]
    validations, members, mixture = probe_stages(trunk, rows, train, config, Silent())
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
        overrides=Overrides(config.size, config.similarity, config.tune, budget=config.budget_seconds),
        tuning=FineTuning(epochs=config.epochs, head=head if config.trained_head and not config.scratch else None),
    )
    input_size = choose_input_size((), TINY_SIZE)
    chosen = ProbedBackbone(spec, trunk, store, input_size, validations, scores, members, mixture, plan, 1.0)
    at_cut = validations[chosen.cut.index]
    weighting = Weighting(None, WeightsFinding("none", Reason("classes", "not asked")), at_cut, 1.0)
    geometry = judge_geometry("auto", 0.0, {"crop": np.zeros(1)}, {"crop": np.ones(1, bool)}, np.arange(1))
    measurement = Measurement(dataset, summarize(dataset), (chosen,), chosen, geometry, weighting)
    choice = ViewChoice(0, validations[chosen.cut.index], (), "")
    return Setting(config, measurement, solve(measurement, choice, config, Silent()), loader)


@functools.cache
def _audited(data: str, val_fraction: float, test_fraction: float) -> Dataset:
    return assign_splits(audit(open_source(data)), seed=0, val_fraction=val_fraction, test_fraction=test_fraction)
