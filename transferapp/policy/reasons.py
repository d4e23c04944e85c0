"""Reasons: the steps of a decision's argument, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reason:
    """One step of a decision's argument. The card, the report and `--json` render it; nothing parses its text.

    Attributes:
        topic: Subject of the step in a word, such as `size` or `cut`.
        text: One sentence for people.
        values: Numbers and names that the sentence contains.
    """

    topic: str
    text: str
    values: Mapping[str, float | int | str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {"topic": self.topic, "text": self.text, "values": dict(self.values)}
