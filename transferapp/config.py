"""Everything a fit can be told, in one frozen dataclass: command-line flags, YAML file and bundle hold the same fields.

Each field's metadata carries its help text and, where it has them, its choices; the command line is generated from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transferapp.engine import ENGINES, PRECISIONS
from transferapp.errors import UsageError

MAX_SEED = 2**32 - 1
"""The largest that every random generator takes."""


def _option(default: Any, help_text: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices})


@dataclass(frozen=True)
class FitConfig:
    """The settings of one fit. Construct through `make_config`, which checks them."""

    data: str = _option(
        "", "The pictures: a folder with one sub-folder a class, or with train/, val/, test/ of that form."
    )
    out: str = _option("", "Where the bundle goes. Default: models/ and the name of the data folder.")
    backbone: str = _option(
        "auto",
        "auto (try every embedded one), a name that `transferapp backbones` lists, or the path of a .keras file.",
    )
    weights: str = _option("", "A file of pretrained weights for the backbone, instead of the usual one.")
    size: str = _option("auto", "Overrule what is measured of the data's size.", ("auto", "small", "large"))
    similarity: str = _option(
        "auto", "Overrule what is measured of their similarity to ImageNet.", ("auto", "similar", "different")
    )
    train_views: str = _option(
        "auto", "Random views of each picture to train on: auto (measure what helps) or 0 to 64."
    )
    val_fraction: float = _option(
        0.2, "Share of the training pictures kept for validation, unless there is a val/ folder."
    )
    test_fraction: float = _option(0.2, "Share of all pictures kept for the final figure, unless the data come split.")
    seed: int = _option(0, "Seeds the split, the folds and the random views.")
    engine: str = _option("auto", "What runs the backbone: openvino on CPUs, keras on accelerators.", ENGINES)
    precision: str = _option(
        "auto", "What OpenVINO computes in: bf16 where the CPU has it (auto), f32, or bf16.", PRECISIONS
    )

    @property
    def bundle_path(self) -> Path:
        """The folder that the bundle is written to."""
        if self.out:
            return Path(self.out)
        name = re.sub(r"[^\w.-]+", "_", Path(self.data).resolve().name).strip("._") or "model"
        return Path("models") / name

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


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
        raise UsageError("No data given", hint="Name a folder of pictures with --data")
    for name in ("val_fraction", "test_fraction"):
        if not 0 <= getattr(config, name) < 1:
            raise UsageError(f"{name} is out of range", expected="0 to less than 1", got=str(getattr(config, name)))
    if config.train_views != "auto" and not re.fullmatch("[0-9]|[1-5][0-9]|6[0-4]", config.train_views):
        raise UsageError("train_views is out of range", expected="auto, or 0 to 64", got=repr(config.train_views))
    if not 0 <= config.seed <= MAX_SEED:
        raise UsageError("seed is out of range", expected=f"0 to {MAX_SEED}", got=str(config.seed))
    if config.weights and config.backbone == "auto":
        raise UsageError("--weights needs a --backbone", hint="Name the backbone that the weights are of")
    return config


def _checked(spec: dataclasses.Field[Any], value: Any) -> Any:
    kind = type(spec.default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, kind) or isinstance(value, bool):
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
