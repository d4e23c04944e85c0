"""Command-line options made from `FitConfig`, so that flags, YAML file and bundle never drift apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from transferapp.config import FitConfig, make_config, read_config_file

F = TypeVar("F", bound=Callable[..., Any])

_METAVARS = {
    "data": "PATH",
    "out": "PATH",
    "weights": "PATH",
    "backbone": "NAME",
    "train_views": "[auto|0-64]",
    "hidden": "UNITS",
    "l2": "[auto|NUMBER]",
}
_TYPES = {int: click.INT, float: click.FLOAT}


def fit_options(*leave_out: str) -> Callable[[F], F]:
    """A decorator that adds one option a field of `FitConfig`, and `--config` for a YAML file with the same fields."""

    def decorate(function: F) -> F:
        for spec in reversed(dataclasses.fields(FitConfig)):
            if spec.name in leave_out:
                continue
            choices = spec.metadata["choices"]
            if isinstance(spec.default, bool):
                dashed = spec.name.replace("_", "-")
                names = f"--{dashed}/--no-{dashed}" if spec.default else f"--{dashed}"
                function = click.option(
                    names, spec.name, is_flag=True, flag_value=True, default=None, help=spec.metadata["help"]
                )(function)
                continue
            default = "" if spec.default == "" else f" [default:\N{NO-BREAK SPACE}{spec.default}]"
            function = click.option(
                f"--{spec.name.replace('_', '-')}",
                spec.name,
                type=click.Choice(choices) if choices else _TYPES.get(type(spec.default)),
                default=None,
                metavar=_METAVARS.get(spec.name),
                help=spec.metadata["help"] + default,
            )(function)
        return click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            metavar="PATH",
            help="A YAML file of these settings; flags win.",
        )(function)

    return decorate


def config_from(config_file: Path | None, flags: dict[str, Any]) -> FitConfig:
    """Settings from the file, overruled by the flags that were given."""
    values = read_config_file(config_file) if config_file else {}
    values.update({name: value for name, value in flags.items() if value is not None})
    return make_config(values)
