"""Template environment, filters and thumbnails of all HTML pages.

Every page is self-contained: it embeds style and images, and its Content-Security-Policy forbids scripts and everything else.
Names of classes and files come from outside, and the templates escape them.
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

from transferapp.data.dataset import Record
from transferapp.errors import ImageError
from transferapp.evaluation.report import charts, wording
from transferapp.images.views import PADDING

CLUSTERS_SHOWN = 24
"""Groups of duplicates that a page shows."""

MEMBERS_SHOWN = 4
"""Images of each group that a page shows."""

THUMBNAIL_SIDE = 112

_JOINT = re.compile(r"(?<=[_/.-])(?=\w)")
_OPTION = re.compile(r"(--[a-z][a-z-]*)")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Thumbnail:
    """An image to show in the report.

    Attributes:
        name: Name of the file.
        data_uri: From `thumbnail`.
        label: True class.
        predicted: Predicted class, where it is shown.
        score: Probability of the predicted class, in [0, 1].
    """

    name: str
    data_uri: str
    label: str
    predicted: str | None
    score: float | None


def page_environment() -> Environment:
    """Return the environment of the templates, with their filters."""
    # select_autoescape goes by the file extension and would leave a .j2 unescaped.
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
        plural=wording.counted,
        day=day,
        csp_hash=csp_hash,
        sentence=wording.sentence,
        breakable=breakable,
        options=options,
    )
    environment.globals.update(charts=charts, clusters_shown=CLUSTERS_SHOWN, members_shown=MEMBERS_SHOWN)
    return environment


def harmless(page: str) -> str:
    """Replace what HTML and UTF-8 cannot hold: control characters in file names, and bytes that are not text."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", page).encode("utf-8", "replace").decode("utf-8")


def thumbnails(records: Sequence[Record], names: Sequence[str], size: int = THUMBNAIL_SIDE) -> dict[str, str]:
    """Return thumbnails of some images by name; unreadable ones are left out."""
    wanted = {record.name: record for record in records}
    found = {}
    for name in dict.fromkeys(names):
        with contextlib.suppress(ImageError, KeyError):
            decoded = wanted[name].decode(2 * size)
            found[name] = thumbnail(decoded.image, size)
    return found


def names_shown(findings: Mapping[str, Any], leaks: Mapping[str, Any] | None = None) -> list[str]:
    """Return the names of images that a page shows: duplicates, similar pairs, and overlap of test and training images."""
    return list(_names_shown(findings, leaks))


def _names_shown(findings: Mapping[str, Any], leaks: Mapping[str, Any] | None) -> Iterator[str]:
    for cluster in findings["clusters"][:CLUSTERS_SHOWN]:
        yield from (member["name"] for member in cluster["members"][:MEMBERS_SHOWN])
    for source in (findings["similar"] or (), leaks["similar"] if leaks else ()):
        for pair in source[:CLUSTERS_SHOWN]:
            yield from (pair["first"]["name"], pair["second"]["name"])


def thumbnail(image: Image.Image, size: int = THUMBNAIL_SIDE, *, whole: bool = False) -> str:
    """Return the middle square of an image as a small JPEG.

    Args:
        image: Image in mode RGB.
        size: Side of the thumbnail in pixels.
        whole: Whether to show the whole image on gray instead.

    Returns:
        A `data:` URI.
    """
    if whole:
        small = ImageOps.pad(image, (size, size), method=Image.Resampling.LANCZOS, color=(PADDING,) * 3)
    else:
        small = ImageOps.fit(image, (size, size), method=Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def day(created: str) -> str:
    """Format an ISO 8601 date for people; other text is returned unchanged."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{when.day} {when:%B %Y, %H:%M} {when.tzname() or ''}".strip()


def breakable(text: str) -> Markup:
    """Escape a name and let it wrap after characters that join words."""
    return Markup("<wbr>").join(_JOINT.split(text))


def options(text: str) -> Markup:
    """Escape a text and keep command-line options such as `--size` in one piece."""
    parts = _OPTION.split(text)  # every second part is an option
    return Markup("").join(
        Markup('<span class="option">{}</span>').format(part) if index % 2 else part for index, part in enumerate(parts)
    )


def csp_hash(style: str) -> str:
    """Return the source expression with which a Content-Security-Policy admits exactly this style sheet."""
    return "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
