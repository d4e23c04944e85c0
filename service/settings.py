"""Settings of the service: each is an environment variable `TRANSFERAPP_<NAME>`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from transferapp.errors import UsageError
from transferapp.images import ImageLimits
from transferapp.system.threads import cpu_cores

ENV_PREFIX = "TRANSFERAPP_"

_KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}")
"""Characters that RFC 6750 allows in a header; 16 of them are too many to guess."""

_ROOT_PATH = re.compile(r"(/[\w.~-]+)*", re.ASCII)
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@\s]+")


class Settings(BaseSettings):
    """All settings. Immutable; keyword arguments win over the environment."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore")

    models: Path = Field(Path("models"), description="Bundle to serve, or folder of bundles.")
    default_model: str | None = Field(
        None, description="Model that answers requests without a model name. Default: the first by name at the start."
    )
    watch_seconds: float = Field(1.0, ge=0, description="Seconds between two checks for new bundles; 0: no checks.")
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 for any free port.")
    root_path: str = Field(
        "", description="Prefix of all paths, such as `/images`, where a proxy in front keeps its prefix in requests."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins of other sites whose pages may use the API, separated by commas; `*`: all. Empty: none.",
    )
    workers: int = Field(
        default_factory=cpu_cores, ge=1, le=256, description="Images predicted at once. Default: one per core."
    )
    threads: int = Field(
        default_factory=cpu_cores, ge=1, description="Cores that the networks use in total. Default: all."
    )
    queue_size: int = Field(
        32, ge=0, le=100_000, description="Images that may wait for a worker; beyond it 503 (`overloaded`)."
    )
    request_timeout: float = Field(
        30.0, gt=0, description="Seconds for waiting and prediction of an image; then 503 (`timeout`)."
    )
    max_files: int = Field(16, ge=1, le=1000, description="Images in one request; beyond it 422.")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Accepted API keys, separated by commas; empty: no key is needed."
    )
    rate_limit: float = Field(
        0.0, ge=0, description="Images per second and key (per address without keys); beyond it 429. 0: no limit."
    )
    rate_burst: int = Field(20, ge=1, description="Images accepted at once before `rate_limit` applies.")
    precision: Literal["f32", "bf16"] | None = Field(
        None, description="Arithmetic of the network. Default: the one the bundle was checked with."
    )
    max_body_bytes: int = Field(20_000_000, ge=1, description="Largest request body in bytes; beyond it 413.")
    max_buffered_bytes: int = Field(
        400_000_000, ge=1, description="Bytes of all request bodies held in memory together; beyond it 503."
    )
    max_pixels: int = Field(
        ImageLimits().max_pixels,
        ge=ImageLimits().min_side ** 2,
        description="Largest number of pixels of an image, by its header; beyond it 413.",
    )
    header_seconds: float = Field(8.0, gt=0, description="Seconds for the headers of a request to arrive.")
    body_seconds: float = Field(
        8.0, gt=0, description="Seconds for a body to arrive, plus the seconds earned by `body_min_rate`."
    )
    body_min_rate: int = Field(
        10_000, ge=1, description="Bytes per second: each this many received earn the body one more second."
    )
    keep_alive_seconds: int = Field(5, ge=1, description="Seconds an idle connection stays open.")
    drain_seconds: int = Field(30, ge=0, description="Seconds for requests in flight to finish after SIGTERM.")
    drain_notice_seconds: float = Field(
        0.0,
        ge=0,
        description="Seconds of normal service after SIGTERM with /readyz at 503, for load balancers to notice.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level to log.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="One JSON object per line, or text; auto is text on a terminal."
    )

    @field_validator("port", mode="before")
    @classmethod
    def _ignore_service_link(cls, value: object) -> object:
        return cls.model_fields["port"].default if is_service_link(value) else value

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, path: str) -> str:
        path = path.rstrip("/")
        if not _ROOT_PATH.fullmatch(path):
            raise ValueError("it must begin with / and have letters, digits and signs of - . _ ~ / only")
        return path

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        origins = tuple(origin.lower().removesuffix("/") for origin in origins)
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not `*` or a scheme, a host and perhaps a port")
        return origins

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, key in enumerate(keys, 1):
            if not _KEY.fullmatch(key.get_secret_value()):
                raise ValueError(f"key {number} is not 16 to 256 letters, digits, or signs of - . _ ~ + / =")
        return keys


def is_service_link(value: object) -> bool:
    """Return whether a port is an address such as tcp://10.96.0.12:8000.

    Kubernetes sets TRANSFERAPP_PORT to one in every container beside a Service that is named transferapp.
    """
    return isinstance(value, str) and "://" in value


def read_settings(**overrides: Any) -> Settings:
    """Read the environment; an override that is not None wins over it.

    Raises:
        UsageError: A value is out of range or of the wrong type; the message names the variable.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        source = f"--{name.replace('_', '-')}" if name in given else f"{ENV_PREFIX}{name.upper()}"
        field = Settings.model_fields.get(name)
        raise UsageError(
            f"{source} cannot be used: {first['msg']}",
            got=None if name == "api_keys" else repr(first.get("input")),  # keys are secret
            hint=field.description if field else None,
        ) from error


def settings_table() -> str:
    """Return the settings as a Markdown table for the documentation."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        meaning, _, computed = (field.description or "").partition(" Default: ")
        default = f"`{field.default}`" if field.default or field.default == 0 else ""
        rows.append(f"| `{ENV_PREFIX}{name.upper()}` | {computed.rstrip('.') or default} | {meaning} |")
    return "\n".join(rows) + "\n"
