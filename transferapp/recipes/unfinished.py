"""Unfinished runs, which the same command continues and no other one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transferapp.errors import DataError


def require_same(subject: str, before: Mapping[str, Any], now: Mapping[str, Any], *, expected: str, hint: str) -> None:
    """Refuse to continue a run with another identity.

    Args:
        subject: Beginning of the error message, which the differences follow.
        before, now: Everything that the results depend on, as JSON values, when the run began and now.
        expected, hint: Of the error.

    Raises:
        DataError: They differ; the message names each difference, and the code is `run_differs`.
    """
    differences = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise DataError(f"{subject}: {'; '.join(differences)}", expected=expected, hint=hint, code="run_differs")
