"""Standard output and error as a command finds them: closed, full, a pipe whose reader has left, unable to say `é`.

Nothing that a person pipes a command into may end in a traceback, and nothing that a file name holds may reach the terminal
as a command.
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
"""The error handler by which a stream says in ASCII what its encoding cannot."""

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
    """Make every later print safe: a closed stream swallows what it is given, a narrow encoding spells it out."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  # open until the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SPELLED_OUT)


def printable(text: str) -> str:
    r"""The text in one line and without what a terminal obeys: control characters are written as `\x1b`, `\n`.

    Names of files and classes come from outside and can hold them, and the marks that turn the direction of writing too.
    """
    return "".join(_escaped(c) if _is_harmful(c) else c for c in text)


def _is_harmful(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def print_json(document: Any, indent: int | None = 2) -> None:
    """Print one JSON document to standard output: as it is where the stream can say it, escaped to ASCII where not."""
    text = json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # also for names whose bytes were no text: `\udcff` is what JSON has for them
        text = json.dumps(document, indent=indent, allow_nan=False)
    print(text, flush=True)


class Patient(io.TextIOWrapper):
    """A text stream for progress: when whoever read it has gone, the work goes on in silence."""

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
