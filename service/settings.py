"""What can be set, and from where: every setting is an environment variable `TRANSFERAPP_<NAME>`.

`read_settings` is the door for entry points: it turns a value that makes no sense into one clear `UsageError`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from transferapp.errors import UsageError
from transferapp.images import ImageLimits

ENV_PREFIX = "TRANSFERAPP_"

_KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}")
"""What RFC 6750 lets stand in a header, and long enough that nobody guesses it."""


def available_cores() -> int:
    """Cores that this process may really use: its affinity, cut by a container's CPU quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no control group, or an older kind of it: the affinity stands
    return max(cores, 1)


class Settings(BaseSettings):
    """Everything that can be set about the service. Immutable; keyword arguments win over the environment."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore")

    models: Path = Field(Path("models"), description="The bundle to serve, or a folder of bundles.")
    default_model: str | None = Field(
        None, description="The model that answers where a request names none. Default: the first by name at the start."
    )
    watch_seconds: float = Field(
        1.0, ge=0, description="Seconds between two looks for new bundles, which take the place of old ones; 0: none."
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for every one.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(
        default_factory=available_cores, ge=1, le=256, description="Images predicted at once. Default: one a core."
    )
    queue_size: int = Field(
        32, ge=0, le=100_000, description="Images that may wait for a worker; the next one is refused with 503."
    )
    request_timeout: float = Field(
        30.0, gt=0, description="Seconds an image may wait and be worked on before 503 is answered."
    )
    max_files: int = Field(16, ge=1, le=1000, description="Images in one request; more is 422.")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Keys, separated by commas, one of which a request must bring; none: no key is asked for."
    )
    rate_limit: float = Field(
        0.0, ge=0, description="Images a second for each key, or each address without keys; beyond it 429. 0: any."
    )
    rate_burst: int = Field(20, ge=1, description="Images that may come at once before `rate_limit` holds them back.")
    precision: Literal["f32", "bf16"] | None = Field(
        None, description="Arithmetic of the network. Default: what the bundle was checked with."
    )
    max_body_bytes: int = Field(20_000_000, ge=1, description="Largest request body in bytes; more is 413.")
    max_buffered_bytes: int = Field(
        400_000_000, ge=1, description="Bytes of all bodies together that are held in memory; beyond it 503."
    )
    max_pixels: int = Field(
        ImageLimits().max_pixels,
        ge=ImageLimits().min_side ** 2,
        description="Most pixels an image may have, by its header; more is 413.",
    )
    header_seconds: float = Field(8.0, gt=0, description="Seconds in which a request's headers must have come.")
    body_seconds: float = Field(
        8.0, gt=0, description="Seconds in which a body must have come, plus what `body_min_rate` grants."
    )
    body_min_rate: int = Field(
        10_000, ge=1, description="Bytes a second: each this many received grant one more second for the body."
    )
    keep_alive_seconds: int = Field(5, ge=1, description="Seconds an idle connection is kept open.")
    drain_seconds: int = Field(30, ge=0, description="Seconds that requests in flight get to finish after SIGTERM.")
    drain_notice_seconds: float = Field(
        0.0,
        ge=0,
        description="Seconds that it goes on serving after SIGTERM, /readyz at 503, so that balancers notice.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe message logged.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="One JSON object a line, or text; auto is text on a terminal."
    )

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        return tuple(key.strip() for key in value.split(",") if key.strip()) if isinstance(value, str) else value

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, key in enumerate(keys, 1):
            if not _KEY.fullmatch(key.get_secret_value()):
                raise ValueError(f"key {number} is not 16 to 256 letters, digits, or signs of - . _ ~ + / =")
        return keys


def read_settings(**overrides: Any) -> Settings:
    """Read the environment; an override that is not None wins over it.

    Raises:
        UsageError: A value is out of range or of the wrong kind; it names the variable.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        source = f"--{name.replace('_', '-')}" if name in given else f"{ENV_PREFIX}{name.upper()}"
        got = None if name == "api_keys" else repr(first.get("input"))  # a key is shown to nobody
        raise UsageError(f"{source} cannot be used: {first['msg']}", got=got, hint=_description(name)) from error


def settings_table() -> str:
    """The settings as a Markdown table, for the documentation; a default that is worked out in the description's words."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        meaning, _, worked_out = (field.description or "").partition(" Default: ")
        default = f"`{field.default}`" if field.default or field.default == 0 else ""
        rows.append(f"| `{ENV_PREFIX}{name.upper()}` | {worked_out.rstrip('.') or default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _description(name: str) -> str | None:
    field = Settings.model_fields.get(name)
    return field.description if field else None
