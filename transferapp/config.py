"""Everything a fit can be told, in one frozen dataclass: command-line flags, YAML file and bundle hold the same fields.

Each field's metadata carries its help text and, where it has them, its choices; the command line is generated from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transferapp.backbones.engine import ENGINES, PRECISIONS
from transferapp.data.options import SourceOptions
from transferapp.errors import UsageError
from transferapp.images.augment import Augmentation
from transferapp.images.color_jitter import ColorJitter
from transferapp.images.views import TINY_SHORT_SIDES, TRAINING_SHORT_SIDES
from transferapp.policy.budget import usual_batch_size, usual_epochs
from transferapp.policy.class_weights import CLASS_WEIGHT_CHOICES
from transferapp.policy.cuts import TUNE_CHOICES
from transferapp.training.head_spec import ACTIVATIONS, INITIALIZERS, POOLINGS, HeadSpec
from transferapp.training.optimizers import OPTIMIZERS, POLYAK_DECAY, decay_in_effect
from transferapp.training.schedules import SCHEDULES

MAX_SEED = 2**32 - 1
"""The largest that every random generator takes."""

USUAL_BATCH_SIZE = 64

SOLVED_HEAD_FACTOR = 3.0
"""The classifier starts solved and bears a higher rate than a random one; the backbone's, a tenth of it, is then 3e-4 for Adam.
With 1e-4 a few epochs ended 3 points lower (CIFAR-10, last two stages, five epochs of 4,000 images: .817 against .843).
Single runs, taken before BatchNorm was held in inference mode: to be taken again."""


def _option(default: Any, help_text: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices})


@dataclass(frozen=True)
class FitConfig:
    """The settings of one fit. Construct through `make_config`, which checks them."""

    data: str = _option(
        "",
        "The images: a folder with one sub-folder a class (or train/, val/, test/ of that form), a .csv or .parquet of "
        "paths and labels, a zip or tar of these, or tfds:NAME.",
    )
    out: str = _option("", "Where the bundle goes. Default: models/ and the name of the data folder.")
    backbone: str = _option(
        "auto",
        "auto (try every embedded one), a name that `transferapp backbones` lists, or the path of a .keras file.",
    )
    path_column: str = _option("", "The column of a table that names the images, where its name does not tell.")
    label_column: str = _option("", "The column with their classes, where its name does not tell.")
    split_column: str = _option("", "The column that says train, val or test.")
    group_column: str = _option("", "The column of what must not be split apart, such as a patient.")
    data_dir: str = _option("", "Where tensorflow-datasets keeps prepared data, for tfds:NAME.")
    weights: str = _option("", "A file of pretrained weights for the backbone, instead of the usual one.")
    size: str = _option("auto", "Overrule what is measured of the data's size.", ("auto", "small", "large"))
    similarity: str = _option(
        "auto", "Overrule what is measured of their similarity to ImageNet.", ("auto", "similar", "different")
    )
    train_views: str = _option("auto", "Random views of each image to train on: auto (measure what helps) or 0 to 64.")
    val_fraction: float = _option(
        0.2, "Share of the training images kept for validation, unless there is a val/ folder."
    )
    test_fraction: float = _option(0.2, "Share of all images kept for the final figure, unless the data come split.")
    seed: int = _option(0, "Seeds the split, the folds and the random views.")
    engine: str = _option("auto", "What runs the backbone: openvino on CPUs, keras on accelerators.", ENGINES)
    precision: str = _option(
        "auto",
        "What OpenVINO computes in: bf16 where that is faster (auto), f32, or bf16. With f32, so does all fine-tuning.",
        PRECISIONS,
    )

    class_weights: str = _option(
        "auto",
        "Let small classes count as much as large ones: where that pays on cross-validation (auto), always, or never.",
        CLASS_WEIGHT_CHOICES,
    )
    label_fixes: str = _option("", "A CSV that `transferapp doctor` wrote, with its fix column filled in.")
    image_size: int = _option(
        0, "Side of the network's input in pixels; 0 lets the images' own size decide (128 for tiny ones)."
    )
    tune: str = _option(
        "auto", "Which part of the backbone to fine-tune: what the rule says (auto), or overrule it.", TUNE_CHOICES
    )
    rule_only: bool = _option(False, "Ship what the rule proposes, without comparing it with the simpler classifier.")
    scratch: bool = _option(False, "Start from random weights, to see what pretraining is worth. Implies --tune all.")
    budget: str = _option("10m", "Time for fine-tuning, such as 90s, 10m, 2h; or none for no limit.")
    epochs: int = _option(
        0, "Passes over the images when fine-tuning, as far as the budget goes; 0 for 8, and more for few images."
    )
    batch_size: int = _option(0, "Images in a training step; 0 for 64, and fewer when few images fine-tune.")
    optimizer: str = _option("adam", "What fine-tunes.", tuple(n for n, s in OPTIMIZERS.items() if s.keras_class))
    learning_rate: str = _option(
        "auto",
        "The new classifier's rate when fine-tuning: a number, auto (adam: 3e-3 at 64 a batch), or find (a range test).",
    )
    backbone_ratio: float = _option(0.1, "The backbone's rate over the classifier's; at most 0.1, as the rule says.")
    layer_decay: float = _option(1.0, "Each stage's rate over that of the stage above it.")
    schedule: str = _option("cosine", "How the rate changes over the epochs.", tuple(SCHEDULES))
    cycles: int = _option(1, "Restarts of sgdr or triangles of cyclic; with sgdr, snapshots that may be averaged.")
    average: float = _option(POLYAK_DECAY, "Polyak averaging of the weights, used where it is better; 0 for none.")
    weight_decay: float = _option(
        0.0, "Decoupled weight decay when fine-tuning; 0 for none, or for adamw's usual 0.004."
    )
    pooling: str = _option(
        "average", "How the backbone's feature map becomes features: fractional_max draws regions at random.", POOLINGS
    )
    hidden: str = _option(
        "", "Units of hidden layers in the new classifier, such as 256,128. Default: none, it is linear."
    )
    activation: str = _option("relu", "Of the hidden layers.", ACTIVATIONS)
    initializer: str = _option(
        "auto",
        "Initial weights of hidden layers: glorot (Xavier) for tanh and sigmoid, he (MSRA) otherwise.",
        ("auto", *INITIALIZERS),
    )
    head_batch_norm: bool = _option(False, "Normalize each hidden layer over the batch before its activation.")
    dropout: float = _option(0.0, "Share of what enters each layer of the new classifier that is left out in training.")
    dropconnect: float = _option(0.0, "Share of the new classifier's weights that is left out in training.")
    l1: float = _option(0.0, "Penalty on the sum of the new classifier's weights; with --l2 it is the elastic net.")
    l2: str = _option(
        "auto",
        "Penalty on half the sum of their squares: a positive number, or auto (cross-validated; none in hidden layers).",
    )
    stochastic_depth: float = _option(
        0.0, "Probability that the last residual branch is left out when fine-tuning; less for those below."
    )
    label_smoothing: float = _option(0.0, "Share of each label that is spread over all classes in training.")
    mixup: float = _option(0.0, "Blend pairs of training images and labels by shares from Beta(a, a); 0 for not.")
    cutmix: float = _option(0.0, "Paste boxes of training images into others, of areas from Beta(a, a); 0 for not.")
    flip: bool = _option(True, "Mirror half of the training views.")
    random_crop: bool = _option(True, "Crop training views anywhere instead of in the middle.")
    scale_min: int = _option(
        0,
        "Smallest scale of training views: short side for a 224-pixel crop; 0 for 256, or 224 where images are tiny.",
    )
    scale_max: int = _option(0, "Largest scale of training views; 0 for 480, or 320 where images are tiny.")
    contrast: float = _option(0.2, "Largest change of a training view's contrast.")
    brightness: float = _option(0.2, "Largest change of a training view's brightness.")
    pca_std: float = _option(0.1, "Strength of random color along the set's principal components.")

    @property
    def source(self) -> SourceOptions:
        """What was said about the data beside their name."""
        return SourceOptions(**{f.name: getattr(self, f.name) for f in dataclasses.fields(SourceOptions)})

    @property
    def augmentation(self) -> Augmentation:
        """What varies in training views of images of ordinary size."""
        return self.augmentation_for(tiny=False)

    def augmentation_for(self, *, tiny: bool) -> Augmentation:
        """What varies in training views.

        Args:
            tiny: The images are smaller than the network's input: they hold too little to show only a quarter of them.
        """
        least, most = TINY_SHORT_SIDES if tiny else TRAINING_SHORT_SIDES
        return Augmentation(
            flip=self.flip,
            short_sides=(self.scale_min or least, self.scale_max or most),
            random_crop=self.random_crop,
            color=ColorJitter(self.contrast, self.brightness, self.pca_std),
        )

    @property
    def budget_seconds(self) -> float:
        """Time for fine-tuning; infinite where there is no limit."""
        return parse_duration(self.budget)

    @property
    def ratio(self) -> float:
        """The backbone's rate over the classifier's in effect: 1 where nothing is pretrained."""
        return 1.0 if self.scratch else self.backbone_ratio

    @property
    def training_precision(self) -> str:
        """One of `PRECISIONS`: a network whose BatchNorm learns trains in single precision on a CPU."""
        return "f32" if self.scratch else self.precision

    @property
    def decay(self) -> float:
        """Weight decay in effect."""
        return decay_in_effect(self.optimizer, self.weight_decay)

    @property
    def head_learning_rate(self) -> float:
        """The classifier's rate when fine-tuning; where it is to be found, three times what is usual of the optimizer.

        That is a rate for batches of 64, and falls with smaller ones, whose gradients are noisier: as the batch for plain
        gradient steps (Goyal et al., 2017, arXiv:1706.02677), as its root for steps that are scaled by the gradients' size
        (Malladi et al., 2022, arXiv:2205.10287).
        """
        if self.learning_rate not in ("auto", "find"):
            return float(self.learning_rate)
        spec, share = OPTIMIZERS[self.optimizer], min(1.0, self.head_batch_size / USUAL_BATCH_SIZE)
        return SOLVED_HEAD_FACTOR * spec.learning_rate * (math.sqrt(share) if spec.adaptive else share)

    @property
    def head_batch_size(self) -> int:
        """Images in a step where only a head trains, on features: such a step costs little, but not nothing."""
        return self.batch_size or USUAL_BATCH_SIZE

    def tuning(self, num_train: int) -> FitConfig:
        """The same with the epochs and the batch size that fine-tuning on so many images takes, where they were left open."""
        batch_size = self.batch_size or usual_batch_size(num_train)
        return dataclasses.replace(
            self, epochs=self.epochs or usual_epochs(num_train, batch_size), batch_size=batch_size
        )

    @property
    def new_head_learning_rate(self) -> float:
        """The rate of a classifier that begins at random."""
        if self.learning_rate in ("auto", "find"):
            return OPTIMIZERS[self.optimizer].learning_rate
        return float(self.learning_rate)

    @property
    def head_spec(self) -> HeadSpec:
        """The new classifier's form; its L2 is 0 where that is to be cross-validated."""
        usual = "glorot" if self.activation in ("tanh", "sigmoid") else "he"
        return HeadSpec(
            pooling=self.pooling,
            hidden=_units(self.hidden),
            activation=self.activation,
            initializer=usual if self.initializer == "auto" else self.initializer,
            batch_norm=self.head_batch_norm,
            dropout=self.dropout,
            dropconnect=self.dropconnect,
            l1=self.l1,
            l2=0.0 if self.l2 == "auto" else float(self.l2),
        )

    @property
    def trained_head(self) -> str:
        """The new classifier in a few words, where it is one that L-BFGS cannot solve; empty otherwise."""
        words = [f"{name.replace('_', ' ')} {getattr(self, name):g}" for name in _SOFT if getattr(self, name)]
        return ", ".join([self.head_spec.describe(), *words]) if words or not self.head_spec.solvable else ""

    @property
    def bundle_path(self) -> Path:
        """The folder that the bundle is written to."""
        if self.out:
            return Path(self.out)
        name = self.data if self.data.startswith("tfds:") else Path(self.data).resolve().name
        name = re.sub(
            r"^tfds:|\.(csv|tsv|parquet|zip|tgz|tbz2?|txz|tar(\.(gz|bz2|xz))?)$", "", name, flags=re.IGNORECASE
        )
        name = re.sub(r"[^\w.-]+", "_", name).strip("._") or "model"
        return Path("models") / name

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


_SOFT = ("label_smoothing", "mixup", "cutmix")
"""What makes probabilities of labels."""


def make_config(values: Mapping[str, Any]) -> FitConfig:
    """Check settings and freeze them.

    Args:
        values: Any of the fields by name; the others keep their defaults.

    Raises:
        UsageError: A name is unknown, a value is of the wrong type or out of range, or `data` is missing.
    """
    fields = {f.name: f for f in dataclasses.fields(FitConfig)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UsageError(f"Unknown setting {unknown[0]!r}", expected=f"one of {', '.join(fields)}")
    checked = {name: _checked(fields[name], value) for name, value in values.items()}
    config = FitConfig(**checked)
    if not config.data:
        raise UsageError("No data given", hint="Name a folder of images with --data")
    for name in ("val_fraction", "test_fraction"):
        if not 0 <= getattr(config, name) < 1:
            raise UsageError(f"{name} is out of range", expected="0 to less than 1", got=str(getattr(config, name)))
    if config.train_views != "auto" and not re.fullmatch("[0-9]|[1-5][0-9]|6[0-4]", config.train_views):
        raise UsageError("train_views is out of range", expected="auto, or 0 to 64", got=repr(config.train_views))
    if not 0 <= config.seed <= MAX_SEED:
        raise UsageError("seed is out of range", expected=f"0 to {MAX_SEED}", got=str(config.seed))
    config.augmentation  # noqa: B018 - says itself what is out of range
    _check_head(config)
    _check_training(config)
    if config.weights and config.backbone == "auto":
        raise UsageError("--weights needs a --backbone", hint="Name the backbone that the weights are of")
    return dataclasses.replace(config, tune="all") if config.scratch else config


_RANGES: dict[str, tuple[float, float, str]] = {
    "image_size": (0, 1024, "0, or 32 to 1024 pixels"),
    "epochs": (0, 10_000, "1 or more, or 0 for as many as the images need"),
    "batch_size": (0, 4096, "0, or 4 to 4096"),
    "backbone_ratio": (0, 0.1, "0 to 0.1: a pretrained layer moves at no more than a tenth of a new one's rate"),
    "layer_decay": (0.01, 1.0, "0.01 to 1"),
    "cycles": (1, 100, "1 to 100"),
    "average": (0, 0.999999, "0 for none, or a decay below 1"),
    "weight_decay": (0, 1, "0 to 1"),
    "dropout": (0, 0.95, "0 to 0.95"),
    "dropconnect": (0, 0.95, "0 to 0.95"),
    "l1": (0, 1000, "0 to 1000"),
    "stochastic_depth": (0, 0.95, "0 to 0.95"),
    "label_smoothing": (0, 0.9, "0 to 0.9"),
    "mixup": (0, 100, "0 to 100"),
    "cutmix": (0, 100, "0 to 100"),
}


_LEAST = {"image_size": 32, "batch_size": 4}
"""What is not 0 is at least this."""


def _check_head(config: FitConfig) -> None:
    if config.l2 != "auto":
        try:
            strength = float(config.l2)
        except ValueError:
            strength = -1.0
        if not 1e-8 <= strength <= 1000:
            raise UsageError("l2 is out of range", expected="auto, or a number from 1e-8 to 1000", got=config.l2)
    spec = config.head_spec  # says itself what makes no sense
    if spec.batch_norm and spec.linear:
        raise UsageError("--head-batch-norm needs hidden layers", hint="Name their units, such as --hidden 256")


def _units(text: str) -> tuple[int, ...]:
    """The numbers in `256,128`; none in an empty text or `none`."""
    if text in ("", "none"):
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise UsageError("hidden is no list of units", expected="numbers such as 256,128", got=repr(text)[:200])
    return tuple(map(int, parts))


def _check_training(config: FitConfig) -> None:
    for name, (low, high, expected) in _RANGES.items():
        value = getattr(config, name)
        if not low <= value <= high or 0 < value < _LEAST.get(name, 0):
            raise UsageError(f"{name} is out of range", expected=expected, got=f"{value:g}")
    if config.scratch and config.tune not in ("auto", "all"):
        raise UsageError(
            f"--scratch and --tune {config.tune} do not go together",
            hint="Random weights have nothing worth keeping: leave out one of the two",
        )
    parse_duration(config.budget)
    if config.learning_rate not in ("auto", "find"):
        try:
            rate = float(config.learning_rate)
        except ValueError:
            rate = -1.0
        if not 0 < rate <= 10:
            raise UsageError(
                "learning_rate is out of range",
                expected="auto, find, or a number such as 1e-3",
                got=config.learning_rate,
            )


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `90s`, `10m` or `2h`; a bare number is seconds; `none` is infinite.

    Raises:
        UsageError: It is not one.
    """
    if text == "none":
        return math.inf
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smh]?)", text.strip())
    if match is None:
        raise UsageError("budget is not a duration", expected="such as 90s, 10m, 2h, or none", got=repr(text))
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _checked(spec: dataclasses.Field[Any], value: Any) -> Any:
    kind = type(spec.default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise UsageError(f"{spec.name} is of the wrong type", expected=kind.__name__, got=reprlib.repr(value)[:200])
    choices = spec.metadata["choices"]
    if choices and value not in choices:
        raise UsageError(f"Unknown {spec.name} {value!r}", expected=f"one of {', '.join(choices)}")
    return value


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings in a YAML file: a mapping from field names to values.

    Raises:
        UsageError: The file is missing or not such a mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a date that is none
        raise UsageError(f"{path} is not valid YAML ({_complaint(error)})") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UsageError(f"{path} is not a mapping from settings to values", expected="lines such as `backbone: auto`")
    return values


def _complaint(error: Exception) -> str:
    """What a YAML reader's exception says, in one line, with the line it is about."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"line {mark.line + 1}: {getattr(error, 'problem', None) or 'not understood'}"
    return (str(error).splitlines() or [type(error).__name__])[0]
