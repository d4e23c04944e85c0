"""Every error a person may meet, and what each entry point makes of it.

The tree::

    TransferAppError            exit 1
    ├── UsageError              exit 2   an argument or setting makes no sense
    ├── DataError               exit 3   the folder of images cannot be used as it is
    │   └── ImageError          exit 3   one image cannot be decoded; `code` says why
    ├── BundleError             exit 4   a model bundle is missing, damaged or foreign
    ├── ResourceError           exit 5   disk, memory, or a download that cannot be made
    │   └── WeightsError        exit 5   pretrained weights are not here and cannot be fetched
    └── TrainingError           exit 6   optimization diverged or gave no usable model

Each carries a stable machine-readable ``code`` and a message in four parts: what happened, what was expected, what came
instead, and how to mend it. The command line prints the message and exits with ``exit_code``; the service turns ``code``
into an RFC 9457 problem document. Neither shows a traceback.
"""

from __future__ import annotations


class TransferAppError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: One sentence: what happened, naming the file or setting.
        expected: What would have been accepted. Optional.
        got: What came instead. Optional.
        hint: How to mend it. Optional.
        code: Stable snake_case identifier; defaults to the class's own.
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
    """An argument, flag or configuration value is not acceptable."""

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
    """The machine ran out of disk or memory, or something could not be downloaded."""

    exit_code = 5
    default_code = "resources"


class WeightsError(ResourceError):
    """Pretrained weights are neither embedded nor cached, and could not be downloaded."""

    default_code = "weights_unavailable"


class TrainingError(TransferAppError):
    """Training diverged or ended without a usable model."""

    exit_code = 6
    default_code = "training"
