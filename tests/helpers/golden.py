"""Golden files: texts for people, kept whole in one file each.

Other tests assert numbers and structure. After a change of wording, read the difference and write the files anew::

    UPDATE_GOLDEN=1 python -m pytest tests/cli tests/evaluation
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path


def check_golden(path: Path, text: str) -> None:
    """Compare a text with a golden file, or write the file where `UPDATE_GOLDEN` is set.

    Raises:
        AssertionError: They differ; the message shows the lines that do.
    """
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    expected = path.read_text(encoding="utf-8")
    difference = difflib.unified_diff(expected.splitlines(), text.splitlines(), str(path), "now", lineterm="")
    assert text == expected, "\n".join(["UPDATE_GOLDEN=1 writes it anew", *difference])
