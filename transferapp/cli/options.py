"""Command-line options made from `FitConfig`, in groups, so that options, YAML file and bundle hold the same settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from transferapp.backbones.registry import backbone_spec
from transferapp.config import COMMON, GROUPS, FitConfig, make_config, read_config_file
from transferapp.data.names import printable
from transferapp.data.options import SourceOptions
from transferapp.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

_TYPES = {int: click.INT, float: click.FLOAT}
_COMMON = "Options"
_HEADINGS = (_COMMON, *GROUPS)


class Option(click.Option):
    """An option with the heading that it stands under in `--help`."""

    def __init__(self, *arguments: Any, heading: str = _COMMON, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.heading = heading


class GroupedCommand(click.Command):
    """A command whose `--help` lists the most used options first and the others in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in _HEADINGS}
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        common = [option for name in COMMON for option in options if option.name == name]
        for option in dict.fromkeys([*common, *options]):
            if record := option.get_help_record(ctx):
                sections[getattr(option, "heading", _COMMON)].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records, col_max=26)


def fit_options(*leave_out: str) -> Callable[[F], F]:
    """Return a decorator that adds an option for each field of `FitConfig`, and `--config`.

    Args:
        leave_out: Fields without an option.
    """

    def decorate(function: F) -> F:
        decorator = click.option(
            "--config",
            "config_file",
            cls=Option,
            type=click.Path(path_type=Path),
            metavar="PATH",
            help="YAML file of settings; options override it.",
        )
        for spec in reversed(dataclasses.fields(FitConfig)):
            if spec.name not in leave_out:
                function = _option(spec)(function)
        return decorator(function)

    return decorate


def _option(spec: dataclasses.Field[Any]) -> Callable[[F], F]:
    """Return the decorator that adds the option of one field; without a value it gives None."""
    dashed, metadata = spec.name.replace("_", "-"), spec.metadata
    settings: dict[str, Any] = {
        "cls": Option,
        "default": None,
        "metavar": metadata["metavar"],
        "help": metadata["help"],
    }
    if spec.name == "data":
        settings |= {"multiple": True, "callback": _only_one}
    settings["heading"] = _COMMON if spec.name in COMMON else metadata["group"]
    if isinstance(spec.default, bool):
        flags = f"--{dashed}/--no-{dashed}" if spec.default else f"--{dashed}"
        return click.option(flags, spec.name, is_flag=True, flag_value=True, **settings)
    if spec.default != "":
        default = f"{spec.default:g}" if isinstance(spec.default, float) else spec.default
        settings["help"] += f"  [default:\N{NO-BREAK SPACE}{default}]"
    settings["type"] = click.Choice(metadata["choices"]) if metadata["choices"] else _TYPES.get(type(spec.default))
    return click.option(f"--{dashed}", spec.name, **settings)


def ray_option(function: F) -> F:
    """Add `--ray`."""
    return click.option(
        "--ray",
        "cluster",
        cls=Option,
        default="",
        metavar="ADDRESS",
        help="Ray cluster that shares the work: local, auto, or an address; see docs/scale.md.",
    )(function)


def data_option(help_text: str, *, required: bool = True) -> Callable[[F], F]:
    """Return a decorator that adds `--data`, which may be given once.

    Args:
        help_text: Help of the option.
        required: Whether it must be given.
    """
    return click.option(
        "--data", required=required, metavar="PATH", help=help_text, cls=Option, multiple=True, callback=_only_one
    )


def _only_one(_context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> str | None:
    """Return the value of an option that was given once; without this, click takes the last one."""
    if len(values) > 1:
        raise UsageError(
            f"--{parameter.name} was given {len(values)} times",
            expected="one folder, table or archive",
            got=", ".join(map(printable, values[:5])),
            hint="Put the images into one folder, or list them in one table",
        )
    return values[0] if values else None


def source_options(function: F) -> F:
    """Add the options of a source, without the settings of a fit."""
    names = {spec.name for spec in dataclasses.fields(SourceOptions)}
    for spec in reversed(dataclasses.fields(FitConfig)):
        if spec.name in names:
            flag = f"--{spec.name.replace('_', '-')}"
            metadata = spec.metadata
            function = click.option(
                flag,
                spec.name,
                cls=Option,
                heading=metadata["group"],
                default="",
                metavar=metadata["metavar"],
                help=metadata["help"],
            )(function)
    return function


def config_from(config_file: Path | None, options: Mapping[str, Any]) -> FitConfig:
    """Return the settings of a file, overruled by the options that were given."""
    values = read_config_file(config_file) if config_file else {}
    values.update({name: value for name, value in options.items() if value is not None})
    config = make_config(values)
    if config.backbone != "auto":
        backbone_spec(config.backbone)  # reports an unknown name before any image is read
    return config
