"""Images in a request body: the field of a form, the body itself, or base64 in a JSON object.

Uploads stay in memory and their names are ignored. Size and speed of the body are limited before (`middleware.body_limits`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import sys
from dataclasses import dataclass

from pydantic import ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.problems import PROBLEMS, RequestError
from service.schemas import JsonImage

FIELD = "file"
"""Form field with the image; repeated for several."""

LIST_FIELD = "files"
"""Form field for clients that always expect a list of answers, even for one image."""

OTHER_PARTS = 16
"""Largest number of form parts other than images. Browsers send one per field; hundreds are an attack on the parser."""

_LARGE_JSON = 65_536
"""Bytes of JSON from which it is parsed in a thread, so that the event loop continues to answer."""


@dataclass(frozen=True)
class Upload:
    """Content of a request body.

    Attributes:
        images: The bytes of each image, in order. They may be empty or not an image: the decoder reports it.
        many: Whether the answer is a list.
        views: Number of crops named in the body.
        top_k: Number of classes named in the body.
    """

    images: list[bytes]
    many: bool = False
    views: int | None = None
    top_k: int | None = None


async def read_upload(request: Request, max_files: int) -> Upload:
    """Read the body of a request, which must be unread.

    Raises:
        RequestError: The content type is not accepted, the body is malformed, has no image or too many, or is over a limit.
        ClientDisconnect: The client left.
    """
    header = request.headers.get("content-type", "")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise RequestError(
            "The body is compressed",
            code="unsupported_media_type",
            expected="no Content-Encoding",
            got=_shown(encoding),
            hint="Send the image as it is; image formats are compressed already",
        )
    kind = header.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, header, max_files)
    if kind == "application/json":
        body = await request.body()
        return await asyncio.to_thread(_read_json, body) if len(body) > _LARGE_JSON else _read_json(body)
    # Many clients send no type with raw bytes. RFC 9110 (8.3) then allows to judge by the bytes, as is done here anyway.
    if kind.startswith("image/") or kind in ("", "application/octet-stream"):
        return Upload([await request.body()])
    raise RequestError(
        "The body's content type is not accepted",
        code="unsupported_media_type",
        expected="multipart/form-data, image/*, application/octet-stream, application/json or none",
        got=_shown(kind),
    )


def _read_json(body: bytes) -> Upload:
    try:
        document = JsonImage.model_validate_json(body)
        image = base64.b64decode(document.image, validate=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise RequestError(f"The body is not JSON: {_shown(first['msg'], 160)}", code="malformed_body") from error
        name = str(first["loc"][0]) if first["loc"] else "the body"
        code = name if name in PROBLEMS else "missing_file" if name == "image" else "invalid_request"
        raise RequestError(f"{_shown(name)}: {_shown(first['msg'], 160)}", code=code) from error
    except (binascii.Error, ValueError) as error:  # ValueError: characters that are not ASCII
        raise RequestError(
            "image: not base64", code="invalid_request", hint="Encode the file's bytes in base64, without line breaks"
        ) from error
    return Upload([image], views=document.views, top_k=document.top_k)


class _FormParser(MultiPartParser):
    """Starlette's parser, without files on disk, which notices whether the form was complete."""

    spool_max_size = 0  # never moved to disk; the body's own limit bounds it
    complete = False

    def on_end(self) -> None:
        self.complete = True


async def _read_form(request: Request, header: str, max_files: int) -> Upload:
    # A part without a file name is text to the parser. As Latin-1 its bytes are restored exactly.
    headers = Headers({"content-type": f"{header}; charset=latin-1"})
    parser = _FormParser(headers, request.stream(), max_part_size=sys.maxsize)  # the body's own limit is smaller
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise _malformed(str(error.__cause__ or error.message)) from error
    if not parser.complete:
        raise _malformed("it ends before its closing boundary")
    parts = form.multi_items()
    values = [value for name, value in parts if name in (FIELD, LIST_FIELD)]
    if len(parts) - len(values) > OTHER_PARTS:
        raise _malformed(f"it has more than {OTHER_PARTS} parts besides images")
    if len(values) > max_files:
        raise RequestError(
            "The form has too many images",
            code="too_many_files",
            expected=f"at most {max_files}",
            got=f"{len(values)}",
            limit={"max_files": max_files},
        )
    if not values:
        names = ", ".join(_shown(name) for name, _ in parts) or "no fields"
        raise RequestError(f"The form has no field `{FIELD}`", code="missing_file", expected=f"`{FIELD}`", got=names)
    images = [await value.read() if isinstance(value, UploadFile) else value.encode("latin-1") for value in values]
    return Upload(images, many=LIST_FIELD in form or len(images) > 1)


def _malformed(reason: str) -> RequestError:
    return RequestError(f"The form cannot be read: {_shown(reason, 160)}", code="malformed_body")


def _shown(text: str, length: int = 60) -> str:
    """Return text of a client fit for a message: short, on one line."""
    return "".join(c if c.isprintable() else "?" for c in text[:length])
