"""What all pages for people share: the template environment, the style, thumbnails, and the words for numbers.

Every page stands alone: style and images are in it, there is no script, and its own Content-Security-Policy forbids
everything else. Names of classes and files come from outside and are escaped by the templates.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageOps

from transferapp.data.audit import DATASET_LIMITS
from transferapp.data.dataset import Record
from transferapp.errors import ImageError
from transferapp.evaluation.report import charts
from transferapp.images import decode_image

CLUSTERS_SHOWN = 24
"""Groups of copies that a page shows as images ..."""
MEMBERS_SHOWN = 4
"""... and images of each."""
THUMBNAIL_SIDE = 112

_JOINT = re.compile(r"(?<=[_/.-])(?=\w)")
_OPTION = re.compile(r"(--[a-z][a-z-]*)")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Thumbnail:
    """An image to show in the report.

    Attributes:
        name: The file, as people are told of it.
        data_uri: From `thumbnail`.
        label: Its true class.
        predicted: What the classifier said, where that is shown.
        score: How sure it was, in [0, 1].
    """

    name: str
    data_uri: str
    label: str
    predicted: str | None
    score: float | None


def page_environment() -> Environment:
    """Where the templates are, and the filters that they use."""
    # autoescape=True, not select_autoescape: that goes by the file's ending and would leave a .j2 unescaped.
    environment = Environment(
        loader=PackageLoader("transferapp.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=charts.percent,
        span=charts.span,
        decimal=charts.decimal,
        significant=charts.significant,
        points=charts.points,
        plural=plural,
        day=day,
        csp_hash=csp_hash,
        sentence=sentence,
        breakable=breakable,
        options=options,
    )
    environment.globals.update(charts=charts, clusters_shown=CLUSTERS_SHOWN, members_shown=MEMBERS_SHOWN)
    return environment


def harmless(page: str) -> str:
    """The page without what HTML and UTF-8 cannot hold: control characters in file names, and bytes that were no text."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", page).encode("utf-8", "replace").decode("utf-8")


def thumbnails(records: Sequence[Record], names: Sequence[str], size: int = THUMBNAIL_SIDE) -> dict[str, str]:
    """Thumbnails of some images, by name; those that can no longer be read are left out."""
    wanted = {record.name: record for record in records}
    found = {}
    for name in dict.fromkeys(names):
        with contextlib.suppress(ImageError, KeyError):
            decoded = decode_image(wanted[name].path, limits=DATASET_LIMITS, min_short_side=2 * size)
            found[name] = thumbnail(decoded.image, size)
    return found


def names_shown(findings: Mapping[str, Any], leaks: Mapping[str, Any] | None = None) -> list[str]:
    """The images that a page shows of an audit's findings, and of what the test shares with what was learned from."""
    return list(_names_shown(findings, leaks))


def _names_shown(findings: Mapping[str, Any], leaks: Mapping[str, Any] | None) -> Iterator[str]:
    for cluster in findings["clusters"][:CLUSTERS_SHOWN]:
        yield from (member["name"] for member in cluster["members"][:MEMBERS_SHOWN])
    for source in (findings["similar"] or (), leaks["similar"] if leaks else ()):
        for pair in source[:CLUSTERS_SHOWN]:
            yield from (pair["first"]["name"], pair["second"]["name"])


def thumbnail(image: Image.Image, size: int = THUMBNAIL_SIDE) -> str:
    """The middle square of an RGB image as a small JPEG.

    Args:
        image: The image, in mode RGB.
        size: Its side in pixels.

    Returns:
        A `data:` URI.
    """
    small = ImageOps.fit(image, (size, size), method=Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def plural(count: int, noun: str) -> str:
    """A count and its noun: `1 image`, `2 images`, `2 classes`."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"


def sentence(text: str) -> str:
    """With a capital first letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".") if text else ""


def day(created: str) -> str:
    """A date as people write it; as it is if it is not ISO 8601."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{when.day} {when:%B %Y, %H:%M} {when.tzname() or ''}".strip()


def breakable(text: str) -> Markup:
    """Escaped, and free to wrap after the characters that join words in names of classes and files."""
    return Markup("<wbr>").join(_JOINT.split(text))


def options(text: str) -> Markup:
    """Escaped, and command-line options such as `--size` kept in one piece."""
    parts = _OPTION.split(text)  # every second part is an option
    return Markup("").join(
        Markup('<span class="option">{}</span>').format(part) if index % 2 else part for index, part in enumerate(parts)
    )


def csp_hash(style: str) -> str:
    """The source expression by which a Content-Security-Policy admits just this style sheet."""
    return "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
