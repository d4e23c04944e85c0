"""The images in a request, kept in memory: a form, the image itself as the body, or base64 in a JSON object.

The form is parsed as it arrives and only the bytes of its images are kept, so an upload never touches the disk and its name
is never used. How large a body may be, and how slow, is settled before it gets here (`limits`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.problems import PROBLEMS, Refusal
from service.schemas import JsonImage

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "file"
"""The field of a form that holds the image; repeated for several."""

LIST_FIELD = "files"
"""The same for clients that always want a list of answers, whether they send one image or more."""

OTHER_PARTS = 16
"""Parts of a form besides its images. A browser sends one a field; hundreds are an attack on the parser."""

_LARGE = 65_536
"""Bytes of JSON beyond which it is read in a thread, so that the event loop goes on answering."""


@dataclass(frozen=True)
class Upload:
    """What a request brought.

    Attributes:
        images: The bytes of each, in order. They may be none, or no image: the decoder says so.
        many: Whether the answer is to be a list.
        views: What the body asks for, if it does.
        top_k: Likewise.
    """

    images: list[bytes]
    many: bool = False
    views: int | None = None
    top_k: int | None = None


async def read_upload(request: Request, max_files: int) -> Upload:
    """Read the body of a request.

    Args:
        request: Whose body has not been touched.
        max_files: Most images in it.

    Raises:
        Refusal: The content type is another, the body is malformed or has no image or too many, or it is over a limit.
        ClientDisconnect: The client left in the middle.
    """
    header = request.headers.get("content-type", "")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(
            "The body is compressed",
            code="unsupported_media_type",
            expected="no Content-Encoding",
            got=_shown(request.headers["content-encoding"]),
            hint="Send the image as it is; images are compressed already",
        )
    kind = header.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, header, max_files)
    if kind == "application/json":
        body = await _read_all(request)
        return await asyncio.to_thread(_read_json, body) if len(body) > _LARGE else _read_json(body)
    # Many clients name no type when they are given bytes. RFC 9110 (8.3) lets the bytes speak then, which they do anyway.
    if kind.startswith("image/") or kind in ("", "application/octet-stream"):
        return Upload([await _read_all(request)])
    raise Refusal(
        "The body's content type is not accepted",
        code="unsupported_media_type",
        expected="multipart/form-data, image/*, application/octet-stream, application/json or none",
        got=_shown(kind),
    )


async def _read_all(request: Request) -> bytes:
    return b"".join([chunk async for chunk in request.stream()])


def _read_json(body: bytes) -> Upload:
    try:
        asked = JsonImage.model_validate_json(body)
        image = base64.b64decode(asked.image, validate=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise Refusal(f"The body is no JSON: {_shown(first['msg'], 160)}", code="malformed_body") from error
        name = str(first["loc"][0]) if first["loc"] else "the body"
        code = name if name in PROBLEMS else "missing_file" if name == "image" else "invalid_request"
        raise Refusal(f"{_shown(name)}: {_shown(first['msg'], 160)}", code=code) from error
    except (binascii.Error, ValueError) as error:  # ValueError: letters that are not ASCII
        raise Refusal(
            "image: It is not base64",
            code="invalid_request",
            hint="Encode the file's bytes in base64, without line breaks",
        ) from error
    return Upload([image], views=asked.views, top_k=asked.top_k)


async def _read_form(request: Request, header: str, max_files: int) -> Upload:
    _, options = parse_options_header(header)
    form = _Form(max_files)
    try:
        parser = MultipartParser(options.get(b"boundary", b""), form.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
    except FormParserError as error:
        raise _malformed(str(error)) from error
    if not form.ended:
        raise _malformed("it ends before its closing boundary")
    if not form.images:
        names = ", ".join(_shown(name) for name in form.names) or "no fields"
        raise Refusal(f"The form has no field `{FIELD}`", code="missing_file", expected=f"`{FIELD}`", got=names)
    return Upload([bytes(image) for image in form.images], many=form.listed or len(form.images) > 1)


class _Form:
    """Collects one form's images from the parser's events."""

    def __init__(self, max_files: int) -> None:
        self.names: list[str] = []
        self.images: list[bytearray] = []
        self.listed = False
        self.ended = False
        self._max_files = max_files
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._collecting = False

    def callbacks(self) -> MultipartCallbacks:
        """What the parser calls, by event."""
        return {
            "on_part_begin": self.part_begin,
            "on_part_data": self.part_data,
            "on_part_end": self.part_end,
            "on_header_field": self.header_field,
            "on_header_value": self.header_value,
            "on_header_end": self.header_end,
            "on_headers_finished": self.headers_finished,
            "on_end": self.end,
        }

    def part_begin(self) -> None:
        if len(self.names) - len(self.images) == OTHER_PARTS:
            raise Refusal(
                "The form has too many parts",
                code="malformed_body",
                limit={"other_parts": OTHER_PARTS},
                hint=f"Send nothing but the field `{FIELD}`",
            )
        self._disposition = b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        self.names.append(name)
        self._collecting = name in (FIELD, LIST_FIELD)
        if not self._collecting:
            return
        if len(self.images) == self._max_files:
            raise Refusal(
                "The form has too many images",
                code="too_many_files",
                expected=f"at most {self._max_files}",
                limit={"max_files": self._max_files},
            )
        self.listed = self.listed or name == LIST_FIELD
        self.images.append(bytearray())

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._collecting:
            self.images[-1] += data[start:end]

    def part_end(self) -> None:
        self._collecting = False

    def end(self) -> None:
        self.ended = True


def _malformed(reason: str) -> Refusal:
    return Refusal(f"The form cannot be read: {_shown(reason, 160)}", code="malformed_body")


def _shown(text: str, length: int = 60) -> str:
    """What a client sent, fit for a message: short, on one line."""
    return "".join(c if c.isprintable() else "?" for c in text[:length])
