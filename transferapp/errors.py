"""Exceptions of transferapp, their exit codes and messages.

The tree::

    TransferAppError            exit 1
    ├── UsageError              exit 2   an argument or setting is invalid
    ├── DataError               exit 3   the images cannot be used as they are
    │   └── ImageError          exit 3   one image cannot be decoded; `code` gives the reason
    ├── BundleError             exit 4   a model bundle is missing, damaged or foreign
    ├── ResourceError           exit 5   disk, memory, or a failed download
    │   └── WeightsError        exit 5   pretrained weights are neither cached nor downloadable
    └── TrainingError           exit 6   training diverged or gave no usable model

Each has a stable machine-readable ``code`` and a message in four parts: what happened, what was expected, what was found, and a
hint. The command line prints the message and exits with ``exit_code``; the service turns ``code`` into an RFC 9457 problem
document. Neither shows a traceback.
"""

from __future__ import annotations


class TransferAppError(Exception):
    """Base of all exceptions that transferapp raises itself.

    Args:
        what: One sentence on what happened, with the file or setting.
        expected: Values that would have been accepted.
        got: Value that was found.
        hint: Advice for the user.
        code: Stable identifier in snake_case; defaults to that of the class.
    """

    exit_code = 1
    default_code = "error"

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        hint: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.got = got
        self.hint = hint
        self.code = code or self.default_code

    def __str__(self) -> str:
        text = self.what.rstrip(".")
        if self.expected:
            text += f". Expected {self.expected.rstrip('.')}"
        if self.got:
            text += f"{', got' if self.expected else '. Got'} {self.got.rstrip('.')}"
        text += "."
        if self.hint:
            text += f" {self.hint.rstrip('.')}."
        return text


class UsageError(TransferAppError):
    """An argument, option or configuration value is invalid."""

    exit_code = 2
    default_code = "usage"


class DataError(TransferAppError):
    """The images, as a collection, cannot be used as they are."""

    exit_code = 3
    default_code = "data"


class ImageError(DataError):
    """One image cannot be decoded.

    ``code`` is one of `empty_file`, `too_many_bytes`, `unsupported_format`, `truncated`, `undecodable`, `too_many_pixels`,
    `too_small`, `aspect_ratio`, `unreadable`.
    """

    default_code = "undecodable"


class BundleError(TransferAppError):
    """A bundle is missing, incomplete, altered, or written by something else."""

    exit_code = 4
    default_code = "bundle"


class ResourceError(TransferAppError):
    """The machine ran out of disk or memory, or a download failed."""

    exit_code = 5
    default_code = "resources"


class WeightsError(ResourceError):
    """Pretrained weights are neither embedded nor cached, and could not be downloaded."""

    default_code = "weights_unavailable"


class TrainingError(TransferAppError):
    """Training diverged or ended without a usable model."""

    exit_code = 6
    default_code = "training"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, or the name of its class where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
