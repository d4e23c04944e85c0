"""Standard output and standard error that are closed, full, a pipe without a reader, or limited to ASCII.

No pipe may end a command in a traceback, and no file name may reach the terminal as a control sequence.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
import unicodedata
from typing import Any

SPELLED_OUT = "transferapp-spelled-out"
"""Error handler with which a stream spells in ASCII what its encoding cannot represent."""

_SPELLINGS = {
    "→": "->", "▶": ">", "·": "-", "•": "-", "±": "+/-", "×": "x", "–": "-", "−": "-", "█": "#", "…": "...",
    "’": "'", "“": '"', "”": '"', "\N{NO-BREAK SPACE}": " ",
}  # fmt: skip
_JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_SPELLINGS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in characters), error.end


codecs.register_error(SPELLED_OUT, _spell_out)


def prepare_streams() -> None:
    """Make later prints safe: a closed stream discards them, and a narrow encoding spells them in ASCII."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  # stays open until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SPELLED_OUT)


def printable(text: str) -> str:
    r"""Return a text in one line, with control characters and direction marks escaped as `\x1b`, `\n`.

    Names of files and classes come from outside and can contain them.
    """
    return "".join(_escaped(c) if _is_harmful(c) else c for c in text)


def _is_harmful(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def print_json(document: Any, indent: int | None = 2) -> None:
    """Print one JSON document to standard output, escaped to ASCII where the stream cannot represent it."""
    text = json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # also for file names that are not text: JSON writes their bytes as `\udcff`
        text = json.dumps(document, indent=indent, allow_nan=False)
    print(text, flush=True)


class ProgressStream(io.TextIOWrapper):
    """A text stream for progress that discards its text once its reader has gone."""

    _gone = False

    def write(self, text: str, /) -> int:
        try:
            return len(text) if self._gone else super().write(text)
        except OSError:
            self._gone = True
            return len(text)

    def flush(self) -> None:
        try:
            if not self._gone:
                super().flush()
        except OSError:
            self._gone = True
