"""Encodings of text without a mark, guessed from the few words of a table or an archive.

Detectors for whole documents need sentences and fail on lists of short names, so the candidates are ranked here by the share of
common characters in the text that each of them gives.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

WORD_ENDS = re.compile(rb"[\0-\x2f:;<=>?]+")
"""Bytes between words; none of them is a part of a character in any of the encodings."""

MAX_WORDS = 20_000
"""Words that a guess is made from."""

LEGACY = ("cp1252", "cp1250", "cp1254", "cp1251", "cp1253", "gb18030", "cp932", "big5", "cp949")
"""Encodings of tables that are tried after UTF-8. The first one wins a tie."""

LEGACY_ZIP = ("cp437", "cp850", "cp866", "gb18030", "cp932", "big5", "cp949", "cp1252", "cp1250", "cp1251")
"""Encodings of the names in a zip without its flag for UTF-8."""

NAMES = {
    "cp1252": "Windows-1252 (Western European)",
    "cp1250": "Windows-1250 (Central European)",
    "cp1251": "Windows-1251 (Cyrillic)",
    "cp1253": "Windows-1253 (Greek)",
    "cp1254": "Windows-1254 (Turkish)",
    "gb18030": "GBK (Chinese, simplified)",
    "cp932": "Shift-JIS (Japanese)",
    "big5": "Big5 (Chinese, traditional)",
    "cp949": "EUC-KR (Korean)",
    "cp437": "code page 437 (DOS)",
    "cp850": "code page 850 (DOS)",
    "cp866": "code page 866 (DOS, Cyrillic)",
}

MIN_PLAUSIBILITY = 0.6
"""Mean weight of characters below which bytes are not taken for text; text has 0.9 and more."""

_WESTERN = "äöüßéèêëàâáãåæçíîïñóôõøúûÄÖÜÉÈÀÁÅÆÇÍÑÓÔÕØÚ"
_CENTRAL = "áéíóúýäöüôßąćęłńóśźżčďěňřšťůžőűľĺŕăâîşţđÁÉÍÓÚÝÄÖÜĄĆĘŁŃŚŹŻČĎĚŇŘŠŤŮŽŐŰĽŞŢĐ"
_TURKISH = "çğışöüÇĞİŞÖÜâî"
_CYRILLIC = "".join(map(chr, range(0x410, 0x450))) + "ёЁіІїЇєЄґҐўЎ"
_GREEK = "".join(map(chr, range(0x391, 0x3CF))) + "ΆΈΉΊΌΎΏ"
_SYLLABLES = (
    "이다의는에을를가고하지기로사리어자인나시대정스도서부수조아해일보여주신전만상원장동그과들제소공구한은무성마세국비유안경"
    "라양미거우생오화간물선치바계방문관연등금식호개모설분적강고새토끼말소돼닭꽃나무장백합차트럭버배추당근감참외박병음불량품악옹곰펭귄코끼"
)
_FREQUENT = {"cp1251": "оеаинтсрвлк", "cp866": "оеаинтсрвлк", "cp1253": "αοιετσνηυρςάίόήέύώ"}
"""Most frequent letters, by which Greek and Cyrillic are told apart."""
_ASIAN = ("gb18030", "cp932", "big5", "cp949")
_LATIN = ("cp1252", "cp1250", "cp1254", "cp437", "cp850")
_ASCII_LETTER = re.compile("[A-Za-z]")


def guess_encoding(words: Iterable[bytes], candidates: Sequence[str]) -> list[str]:
    """Rank encodings, the most likely one first.

    Args:
        words: Pieces of the text; only those with bytes beyond ASCII matter.
        candidates: Names of encodings; earlier ones are preferred in a tie.

    Returns:
        The candidates in which all words are valid, and plausible except in the first.
    """
    wanted = sorted({word for word in words if not word.isascii()})[:MAX_WORDS]
    scores: dict[str, float] = {}
    for encoding in candidates:
        try:
            texts = [word.decode(encoding) for word in wanted]
        except UnicodeDecodeError:
            continue
        score = _plausibility(texts, encoding)
        if score >= MIN_PLAUSIBILITY or encoding == candidates[0]:
            scores[encoding] = score
    return sorted(scores, key=lambda encoding: -round(scores[encoding], 6))


def describe_guess(name: str, encoding: str) -> str:
    """Return the sentence for people on a guessed encoding.

    Args:
        name: Name of the file.
        encoding: One of `NAMES`.
    """
    return (
        f"{name} does not say its encoding and is not UTF-8: read as {NAMES[encoding]}, a guess. If class names look wrong, "
        "name the encoding with --encoding"
    )


def _plausibility(texts: Sequence[str], encoding: str) -> float:
    """Return the mean weight of the characters beyond ASCII: about 1 for text, about 0 for noise."""
    common = _common(encoding)
    asian, latin = encoding in _ASIAN, encoding in _LATIN
    total, count = 0.0, 0
    for text in texts:
        mixed = _ASCII_LETTER.search(text) is not None
        for index, character in enumerate(text):
            if character.isascii():
                continue
            before, after = text[index - 1 : index], text[index + 1 : index + 2]
            weight = common.get(character, 0.3 if character.isalpha() and not asian else 0.0)
            if not latin:
                # Other scripts and Latin letters do not share a word; there, half of a character was taken for a letter.
                weight *= 0.3 if _ASCII_LETTER.match(before) or _ASCII_LETTER.match(after) else 1
            elif not mixed:
                weight *= 0.5  # hardly a word is all accents
            if not asian and character.isupper() and before.islower():
                weight *= 0.3  # as in "рЕЗЙ"
            total, count = total + weight, count + 1
    return total / max(count, 1)


@functools.cache
def _common(encoding: str) -> dict[str, float]:
    """Return the weights of the characters that text in an encoding mostly consists of."""
    if encoding == "gb18030":  # the first level of GB 2312
        return _grid(encoding, range(0xB0, 0xD8), range(0xA1, 0xFF))
    if encoding == "big5":
        return _grid(encoding, range(0xA4, 0xC7), (*range(0x40, 0x7F), *range(0xA1, 0xFF)))
    if encoding == "cp932":  # kana, and the first level of JIS X 0208
        kanji = _grid(encoding, range(0x88, 0x99), (*range(0x40, 0x7F), *range(0x80, 0xFD)))
        return kanji | dict.fromkeys(map(chr, (*range(0x3041, 0x3097), *range(0x30A1, 0x30FD))), 1.1)
    if encoding == "cp949":
        # Its syllables share their bytes with common Chinese characters, so some of the most frequent ones must be there.
        return _grid(encoding, range(0xB0, 0xC9), range(0xA1, 0xFF), 0.9) | dict.fromkeys(_SYLLABLES, 1.5)
    letters = {"cp1250": _CENTRAL, "cp1254": _TURKISH, "cp1253": _GREEK, "cp1251": _CYRILLIC, "cp866": _CYRILLIC}
    weights = dict.fromkeys(letters.get(encoding, _WESTERN), 1.0)
    if encoding == "cp1250":
        weights |= dict.fromkeys("ţŢđĐ", 0.8)  # Turkish, which is met more often, has "ş" and "ğ" there
    return weights | dict.fromkeys(_FREQUENT.get(encoding, ""), 1.1)


def _grid(encoding: str, first: Iterable[int], second: Sequence[int], weight: float = 1.0) -> dict[str, float]:
    pairs = (bytes((a, b)).decode(encoding, "ignore") for a in first for b in second)
    return dict.fromkeys((text for text in pairs if len(text) == 1), weight)
