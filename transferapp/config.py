"""Settings of a fit, in one frozen dataclass: command-line options, YAML file and bundle hold the same fields.

Each field's metadata holds its help text, its group in `--help`, its choices and its range. The command line is generated from
it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transferapp.backbones.engine import ENGINES, PRECISIONS
from transferapp.data.names import is_generic
from transferapp.data.options import SourceOptions
from transferapp.errors import UsageError, first_line
from transferapp.images.augment import Augmentation, ColorJitter
from transferapp.images.views import TINY_SHORT_SIDES, TRAINING_SHORT_SIDES
from transferapp.policy.budget import usual_batch_size, usual_epochs
from transferapp.policy.class_weights import CLASS_WEIGHT_CHOICES
from transferapp.policy.cuts import TUNE_CHOICES
from transferapp.policy.geometry import GEOMETRY_CHOICES
from transferapp.training.head_spec import ACTIVATIONS, INITIALIZERS, POOLINGS, HeadSpec
from transferapp.training.optimizers import OPTIMIZERS, POLYAK_DECAY, decay_in_effect
from transferapp.training.schedules import SCHEDULES

MAX_SEED = 2**32 - 1
"""Largest seed that every random generator takes."""

USUAL_BATCH_SIZE = 64

SOLVED_HEAD_FACTOR = 3.0
"""A head that starts solved bears a higher rate than a random one; the backbone's, a tenth of it, is then 3e-4 for Adam.
With 1e-4 a few epochs ended 3 points lower (CIFAR-10, last two stages, five epochs of 4,000 images: .817 against .843).
Single runs, taken before BatchNorm was held in inference mode: to be measured again."""

GROUPS = ("Data", "Decision", "Fine-tuning", "Head", "Augmentation", "Output")
DATA, DECISION, FINE_TUNING, HEAD, AUGMENTATION, OUTPUT = GROUPS
"""Groups of options in `--help`."""

COMMON = ("data", "out", "backbone", "tune", "budget", "epochs", "learning_rate", "label_fixes")
"""Options that `--help` lists before the groups."""


def _option(
    default: Any,
    group: str,
    help_text: str,
    *,
    choices: tuple[str, ...] = (),
    limits: tuple[float, float] | None = None,
    least: int = 0,
    metavar: str | None = None,
) -> Any:
    """Declare a field.

    Args:
        default: Default value, of the field's type.
        group: One of `GROUPS`.
        help_text: A noun phrase.
        choices: Allowed values; empty allows any.
        limits: Smallest and largest allowed number.
        least: Smallest allowed number besides 0, which means automatic.
        metavar: Placeholder for the value in `--help`.
    """
    metadata = {"group": group, "help": help_text, "choices": choices, "limits": limits, "least": least}
    return field(default=default, metadata={**metadata, "metavar": metavar})


@dataclass(frozen=True)
class FitConfig:
    """Settings of one fit. Construct it with `make_config`, which checks them."""

    data: str = _option(
        "", DATA, "Folder of images with a sub-folder per class, a table, an archive, or tfds:NAME.", metavar="PATH"
    )
    label_fixes: str = _option("", DATA, "Corrected labels: a filled-in CSV of `doctor`.", metavar="PATH")
    path_column: str = _option("", DATA, "Table column of the image paths.", metavar="NAME")
    label_column: str = _option("", DATA, "Table column of the classes.", metavar="NAME")
    split_column: str = _option("", DATA, "Table column of the splits: train, val or test.", metavar="NAME")
    group_column: str = _option(
        "", DATA, "Table column of groups to keep in one split, such as patients.", metavar="NAME"
    )
    data_dir: str = _option("", DATA, "Folder of prepared data for tfds:NAME.", metavar="PATH")
    encoding: str = _option(
        "", DATA, "Encoding of a table or of names in a zip, such as gbk; otherwise detected.", metavar="NAME"
    )
    val_fraction: float = _option(
        0.2, DATA, "Share of training images for validation, without val/.", limits=(0, 0.999)
    )
    test_fraction: float = _option(0.2, DATA, "Share of images for the test, without given splits.", limits=(0, 0.999))
    seed: int = _option(0, DATA, "Seed of splits, folds, views and training.", limits=(0, MAX_SEED))

    backbone: str = _option(
        "auto", DECISION, "Pretrained network: a name from `backbones`, a .keras file, or auto.", metavar="NAME"
    )
    weights: str = _option("", DECISION, "File of other pretrained weights for the backbone.", metavar="PATH")
    image_size: int = _option(
        0,
        DECISION,
        "Side of the input in pixels; 0 for the backbone's own, or 128 for tiny images.",
        limits=(0, 1024),
        least=32,
    )
    geometry: str = _option(
        "auto",
        DECISION,
        "Center crop of each image, or the whole image resized or padded; auto tries all for long images.",
        choices=GEOMETRY_CHOICES,
    )
    size: str = _option("auto", DECISION, "Size of the data; auto measures it.", choices=("auto", "small", "large"))
    similarity: str = _option(
        "auto", DECISION, "Similarity to ImageNet; auto measures it.", choices=("auto", "similar", "different")
    )
    tune: str = _option(
        "auto", DECISION, "Part of the backbone to fine-tune; auto follows the rule.", choices=TUNE_CHOICES
    )
    rule_only: bool = _option(False, DECISION, "The rule alone, without a comparison on the validation images.")
    class_weights: str = _option(
        "auto", DECISION, "Class weights in training; auto uses them if they help.", choices=CLASS_WEIGHT_CHOICES
    )

    budget: str = _option(
        "auto",
        FINE_TUNING,
        "Time limit, such as 90s, 10m or 2h; 0 leaves fine-tuning out, none lifts the limit; auto is 10m for large sets and "
        "2m for small ones that differ from ImageNet.",
        metavar="TIME",
    )
    epochs: int = _option(0, FINE_TUNING, "Most epochs; 0 for 8, or more for small sets.", limits=(0, 10_000))
    batch_size: int = _option(
        0, FINE_TUNING, "Images in a step; 0 for 64, and fewer for small sets.", limits=(0, 4096), least=4
    )
    optimizer: str = _option(
        "adam", FINE_TUNING, "Update rule.", choices=tuple(n for n, s in OPTIMIZERS.items() if s.keras_class)
    )
    learning_rate: str = _option(
        "auto", FINE_TUNING, "Highest rate of the head: a number, auto, or find (a range test).", metavar="RATE"
    )
    backbone_ratio: float = _option(
        0.1, FINE_TUNING, "Rate of the backbone over the head's; at most 0.1.", limits=(0, 0.1)
    )
    layer_decay: float = _option(1.0, FINE_TUNING, "Rate of each stage over that of the next.", limits=(0.01, 1))
    schedule: str = _option("cosine", FINE_TUNING, "Rate over the epochs.", choices=tuple(SCHEDULES))
    cycles: int = _option(
        1, FINE_TUNING, "Restarts of sgdr (averaged if better), triangles of cyclic.", limits=(1, 100)
    )
    average: float = _option(
        POLYAK_DECAY, FINE_TUNING, "Decay of the Polyak average, used if better; 0 for none.", limits=(0, 0.999999)
    )
    weight_decay: float = _option(
        0.0, FINE_TUNING, "Decoupled weight decay; 0 for none, or adamw's 0.004.", limits=(0, 1)
    )
    stochastic_depth: float = _option(
        0.0, FINE_TUNING, "Probability of dropping the last residual branch; less for earlier ones.", limits=(0, 0.95)
    )
    label_smoothing: float = _option(0.0, FINE_TUNING, "Share of each label spread over all classes.", limits=(0, 0.9))
    scratch: bool = _option(False, FINE_TUNING, "Random initial weights, for comparison; implies --tune all.")

    pooling: str = _option("average", HEAD, "Pooling of the feature map.", choices=POOLINGS)
    hidden: str = _option("", HEAD, "Units of hidden layers, such as 256,128; none for a linear head.", metavar="UNITS")
    activation: str = _option("relu", HEAD, "Activation of hidden layers.", choices=ACTIVATIONS)
    initializer: str = _option(
        "auto",
        HEAD,
        "Initial weights of hidden layers; auto is glorot (Xavier) for tanh and sigmoid, else he (MSRA).",
        choices=("auto", *INITIALIZERS),
    )
    head_batch_norm: bool = _option(False, HEAD, "Batch normalization before each activation.")
    dropout: float = _option(0.0, HEAD, "Share of each layer's inputs dropped in training.", limits=(0, 0.95))
    dropconnect: float = _option(0.0, HEAD, "Share of the weights dropped in training.", limits=(0, 0.95))
    l1: float = _option(0.0, HEAD, "L1 penalty; with --l2 the elastic net.", limits=(0, 1000))
    l2: str = _option(
        "auto", HEAD, "L2 penalty; auto cross-validates it (0 in hidden layers).", metavar="[auto|NUMBER]"
    )

    train_views: str = _option(
        "auto", AUGMENTATION, "Random views of each image; auto adds them while they help.", metavar="[auto|0-64]"
    )
    flip: bool = _option(True, AUGMENTATION, "Mirroring of half of the views.")
    random_crop: bool = _option(True, AUGMENTATION, "Crops at random places instead of the center.")
    scale_min: int = _option(
        0, AUGMENTATION, "Smallest shorter side, for a crop of 224 pixels; 0 for 256, or 224 for tiny images."
    )
    scale_max: int = _option(0, AUGMENTATION, "Largest shorter side; 0 for 480, or 320 for tiny images.")
    contrast: float = _option(0.2, AUGMENTATION, "Largest change of contrast.")
    brightness: float = _option(0.2, AUGMENTATION, "Largest change of brightness.")
    pca_std: float = _option(0.1, AUGMENTATION, "Strength of color shifts along principal components.")
    mixup: float = _option(
        0.0, AUGMENTATION, "Blends of two images, in shares from Beta(a, a); 0 for none.", limits=(0, 100)
    )
    cutmix: float = _option(
        0.0, AUGMENTATION, "Boxes from other images, areas from Beta(a, a); 0 for none.", limits=(0, 100)
    )

    out: str = _option(
        "",
        OUTPUT,
        "Folder of the bundle.  [default:\N{NO-BREAK SPACE}models/NAME, named after the data]",
        metavar="PATH",
    )
    coverage: float = _option(
        0.9, OUTPUT, "Share of images whose prediction set has the right class.", limits=(0.5, 0.999)
    )
    engine: str = _option("auto", OUTPUT, "Inference engine; auto is openvino on CPUs, else keras.", choices=ENGINES)
    precision: str = _option("auto", OUTPUT, "Precision; auto is bf16 where that is faster.", choices=PRECISIONS)

    @property
    def source(self) -> SourceOptions:
        """Options of the source."""
        return SourceOptions(**{f.name: getattr(self, f.name) for f in dataclasses.fields(SourceOptions)})

    def augmentation_for(self, *, tiny: bool) -> Augmentation:
        """Return the augmentation of training views.

        Args:
            tiny: Whether the images are smaller than the network's input, so that a crop must show most of them.
        """
        least, most = TINY_SHORT_SIDES if tiny else TRAINING_SHORT_SIDES
        return Augmentation(
            flip=self.flip,
            short_sides=(self.scale_min or least, self.scale_max or most),
            random_crop=self.random_crop,
            color=ColorJitter(self.contrast, self.brightness, self.pca_std),
        )

    @property
    def budget_seconds(self) -> float | None:
        """Seconds of fine-tuning; infinite where there is no limit, None where the policy decides."""
        return None if self.budget == "auto" else parse_duration(self.budget)

    @property
    def ratio(self) -> float:
        """Rate of the backbone relative to the head's in effect: 1 where nothing is pretrained."""
        return 1.0 if self.scratch else self.backbone_ratio

    @property
    def training_precision(self) -> str:
        """One of `PRECISIONS`; from scratch, where BatchNorm trains, single precision."""
        return "f32" if self.scratch else self.precision

    @property
    def decay(self) -> float:
        """Weight decay in effect."""
        return decay_in_effect(self.optimizer, self.weight_decay)

    @property
    def head_learning_rate(self) -> float:
        """Rate of the head in fine-tuning; for `auto` and `find`, three times the optimizer's usual rate.

        That is a rate for batches of 64. It falls with smaller ones, whose gradients are noisier: in proportion for plain
        gradient steps (Goyal et al., 2017, arXiv:1706.02677), as the root for steps scaled by the size of gradients (Malladi et
        al., 2022, arXiv:2205.10287).
        """
        if self.learning_rate not in ("auto", "find"):
            return float(self.learning_rate)
        spec, share = OPTIMIZERS[self.optimizer], min(1.0, self.head_batch_size / USUAL_BATCH_SIZE)
        return SOLVED_HEAD_FACTOR * spec.learning_rate * (math.sqrt(share) if spec.adaptive else share)

    @property
    def head_batch_size(self) -> int:
        """Images in a step where only a head trains, on features."""
        return self.batch_size or USUAL_BATCH_SIZE

    def tuning(self, num_train: int) -> FitConfig:
        """Return the same settings with epochs and batch size filled in for a number of training images."""
        batch_size = self.batch_size or usual_batch_size(num_train)
        return dataclasses.replace(
            self, epochs=self.epochs or usual_epochs(num_train, batch_size), batch_size=batch_size
        )

    @property
    def new_head_learning_rate(self) -> float:
        """Rate of a head with random initial weights."""
        if self.learning_rate in ("auto", "find"):
            return OPTIMIZERS[self.optimizer].learning_rate
        return float(self.learning_rate)

    @property
    def head_spec(self) -> HeadSpec:
        """Form of the head; its L2 is 0 where it is cross-validated."""
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
        """Description of a head that L-BFGS cannot solve; empty for one that it can."""
        words = [f"{name.replace('_', ' ')} {getattr(self, name):g}" for name in _SOFT_LABELS if getattr(self, name)]
        return ", ".join([self.head_spec.describe(), *words]) if words or not self.head_spec.solvable else ""

    @property
    def bundle_path(self) -> Path:
        """Folder that the bundle is written to: of the name of the data, or of the folder around data with a generic name."""
        if self.out:
            return Path(self.out)
        place = Path(os.path.realpath(self.data))  # `resolve` raises an error for a link to itself
        names = (
            [self.data] if self.data.startswith("tfds:") else [place.name, *(parent.name for parent in place.parents)]
        )
        names[0] = re.sub(
            r"^tfds:|\.(csv|tsv|jsonl|parquet|zip|tgz|tbz2?|txz|tar(\.(gz|bz2|xz))?)$",
            "",
            names[0],
            flags=re.IGNORECASE,
        )
        name = next((name for name in names if name and not is_generic(name)), names[0])
        name = re.sub(r"[^\w.-]+", "_", name).strip("._") or "model"
        return Path("models") / name

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


_SOFT_LABELS = ("label_smoothing", "mixup", "cutmix")
"""Settings that turn labels into probabilities."""


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
    config = FitConfig(**{name: _checked(fields[name], value) for name, value in values.items()})
    if not config.data:
        raise UsageError("No data given", hint="Name a folder of images with --data")
    if config.train_views != "auto" and not re.fullmatch("[0-9]|[1-5][0-9]|6[0-4]", config.train_views):
        raise UsageError("train_views is out of range", expected="auto, or 0 to 64", got=repr(config.train_views))
    if config.l2 != "auto":
        _check_number("l2", config.l2, (1e-8, 1000), "auto, or a number from 1e-8 to 1000")
    if config.learning_rate not in ("auto", "find"):
        _check_number("learning_rate", config.learning_rate, (1e-30, 10), "auto, find, or a number such as 1e-3")
    if config.budget != "auto":
        parse_duration(config.budget)
    config.augmentation_for(tiny=False)  # raises what is out of range, and so does `head_spec`
    if config.head_spec.batch_norm and config.head_spec.linear:
        raise UsageError("--head-batch-norm needs hidden layers", hint="Name their units, such as --hidden 256")
    if config.weights and config.backbone == "auto":
        raise UsageError("--weights needs a --backbone", hint="Name the backbone that the weights belong to")
    if config.scratch and config.budget_seconds == 0:
        raise UsageError(
            "--scratch and --budget 0 do not go together",
            hint="Random weights need training: name a longer time, or none",
        )
    if config.scratch and config.tune not in ("auto", "all"):
        raise UsageError(
            f"--scratch and --tune {config.tune} do not go together",
            hint="Leave out one of the two: random weights cannot stay frozen",
        )
    return dataclasses.replace(config, tune="all") if config.scratch else config


def _check_number(name: str, text: str, limits: tuple[float, float], expected: str) -> None:
    try:
        in_range = limits[0] <= float(text) <= limits[1]
    except ValueError:
        in_range = False
    if not in_range:
        raise UsageError(f"{name} is out of range", expected=expected, got=text)


def _checked(spec: dataclasses.Field[Any], value: Any) -> Any:
    """Return a value as the field's type, or raise what is wrong with it."""
    kind: type[Any] = type(spec.default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise UsageError(f"{spec.name} is of the wrong type", expected=kind.__name__, got=reprlib.repr(value)[:200])
    choices, limits, least = (spec.metadata[key] for key in ("choices", "limits", "least"))
    if choices and value not in choices:
        raise UsageError(f"Unknown {spec.name} {value!r}", expected=f"one of {', '.join(choices)}")
    if limits and (not limits[0] <= value <= limits[1] or 0 < value < least):
        expected = f"0, or {least} to {limits[1]}" if least else f"{limits[0]} to {limits[1]}"
        raise UsageError(f"{spec.name} is out of range", expected=expected, got=f"{value:g}")
    return value


def _units(text: str) -> tuple[int, ...]:
    """Return the numbers in `256,128`; none of an empty text or `none`."""
    if text in ("", "none"):
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise UsageError("hidden is not a list of units", expected="numbers such as 256,128", got=repr(text)[:200])
    return tuple(map(int, parts))


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as `90s`, `10m` or `2h`; a bare number is seconds; `none` is infinite.

    Raises:
        UsageError: The text is not a duration.
    """
    if text == "none":
        return math.inf
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smh]?)", text.strip())
    if match is None:
        raise UsageError("budget is not a duration", expected="such as 90s, 10m, 2h, none, or auto", got=repr(text))
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def read_config_file(path: Path) -> dict[str, Any]:
    """Read the settings in a YAML file: a mapping from field names to values.

    Raises:
        UsageError: The file is missing or not such a mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or an impossible date
        raise UsageError(f"{path} is not valid YAML ({_complaint(error)})") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UsageError(f"{path} is not a mapping from settings to values", expected="lines such as `backbone: auto`")
    return values


def _complaint(error: Exception) -> str:
    """Return the message of a YAML reader's exception in one line, with the line number."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"line {mark.line + 1}: {getattr(error, 'problem', None) or 'not understood'}"
    return first_line(error)
