"""The picture in a request, kept in memory: a form with a field `file`, or the picture itself as the body.

The form is parsed as it arrives and only the bytes of `file` are kept, so an upload never touches the disk and its name
is never used. How large a body may be, and how slow, is settled before it gets here (`limits`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.problems import Refusal

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "file"
MAX_PARTS = 16
"""Parts in one form. A browser sends one a field; hundreds are an attack on the parser."""


async def read_picture(request: Request) -> bytes:
    """The bytes of the picture that a request brings. They may be none, or no picture: the decoder says so.

    Raises:
        Refusal: The content type is another, the form is malformed or has no `file`, or the body is over a limit.
        ClientDisconnect: The client left in the middle.
    """
    header = request.headers.get("content-type", "")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(
            "The body is compressed",
            code="unsupported_media_type",
            expected="no Content-Encoding",
            got=_shown(request.headers["content-encoding"]),
            hint="Send the picture as it is; pictures are compressed already",
        )
    kind = header.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, header)
    # Many clients name no type when they are given bytes. RFC 9110 (8.3) lets the bytes speak then, which they do anyway.
    if kind.startswith("image/") or kind in ("", "application/octet-stream"):
        return b"".join([chunk async for chunk in request.stream()])
    raise Refusal(
        "The body's content type is not accepted",
        code="unsupported_media_type",
        expected="multipart/form-data, image/*, application/octet-stream or none",
        got=_shown(kind),
    )


async def _read_form(request: Request, header: str) -> bytes:
    _, options = parse_options_header(header)
    form = _Form()
    try:
        parser = MultipartParser(options.get(b"boundary", b""), form.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
    except FormParserError as error:
        raise _malformed(str(error)) from error
    if not form.ended:
        raise _malformed("it ends before its closing boundary")
    if form.picture is None:
        names = ", ".join(_shown(name) for name in form.names) or "no fields"
        raise Refusal(f"The form has no field `{FIELD}`", code="missing_file", expected=f"`{FIELD}`", got=names)
    return bytes(form.picture)


class _Form:
    """Collects one form's field `file` from the parser's events."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.picture: bytearray | None = None
        self.ended = False
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
        if len(self.names) == MAX_PARTS:
            raise Refusal(
                "The form has too many parts",
                code="malformed_body",
                limit={"parts": MAX_PARTS},
                hint=f"Send one field, `{FIELD}`",
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
        self._collecting = name == FIELD
        if not self._collecting:
            return
        if self.picture is not None:
            raise Refusal(
                f"The form has the field `{FIELD}` more than once",
                code="too_many_files",
            )
        self.picture = bytearray()

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._collecting and self.picture is not None:
            self.picture += data[start:end]

    def part_end(self) -> None:
        self._collecting = False

    def end(self) -> None:
        self.ended = True


def _malformed(reason: str) -> Refusal:
    return Refusal(f"The form cannot be read: {_shown(reason, 160)}", code="malformed_body")


def _shown(text: str, length: int = 60) -> str:
    """What a client sent, fit for a message: short, on one line."""
    return "".join(c if c.isprintable() else "?" for c in text[:length])
