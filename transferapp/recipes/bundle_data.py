"""The images that a bundle was fitted on, found again."""

from __future__ import annotations

import os

from transferapp.bundle.format import Bundle
from transferapp.data.names import printable
from transferapp.data.options import Source
from transferapp.errors import DataError, UsageError


def sources_of(bundle: Bundle, hint: str) -> list[Source]:
    """Return the places of the images that a bundle was fitted on.

    Args:
        bundle: A bundle that `fit` or `update` wrote.
        hint: Hint of the error.

    Raises:
        DataError: The bundle does not say, or there is nothing at one of the places.
    """
    try:
        sources = [Source.from_json(values) for values in bundle.manifest["data"]["sources"]]
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        raise DataError(f"{bundle.path} does not say which images it was made from", hint=hint) from error
    for source in sources:
        if not source.data.startswith("tfds:") and not os.path.lexists(source.data):
            raise DataError(
                f"The images that {bundle.path} was made from are no longer at {printable(source.data)}",
                expected="the same place as then, seen from the folder that the command runs in",
                hint=hint,
            )
    return sources
