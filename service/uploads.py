"""Images in a request body: the field of a form, the body itself, or base64 in a JSON object.

Uploads stay in memory and their names are ignored. Size and speed of the body are limited before (`middleware.body_limits`).
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.problems import PROBLEMS, RequestError
from service.schemas import FormParameters, JsonImage

Document = TypeVar("Document", bound=BaseModel)

FIELD = "file"
"""Form field with the image; repeated for several."""

LIST_FIELD = "files"
"""Form field for clients that always expect a list of answers, even for one image."""

OTHER_PARTS = 16
"""Largest number of form parts other than images. Browsers send one per field; hundreds are an attack on the parser."""

_LARGE_JSON = 65_536
"""Bytes of JSON from which it is parsed in a thread, so that the event loop continues to answer."""

# Bounded, since a body may be 20 MB of blanks.
_ADDRESS = re.compile(rb"\s{0,20}https?://", re.IGNORECASE)
_DATA_URL = re.compile(rb"\s{0,20}data:[^,]{0,200};base64,", re.IGNORECASE)
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True)
class Upload:
    """Content of a request body.

    Attributes:
        images: The bytes of each image, in order. They may be empty or not an image: the decoder reports it.
        many: Whether the answer is a list.
        views: Number of crops named in the body.
        top_k: Number of classes named in the body.
        model: Model named in the body.
        label: Class named in the body.
    """

    images: list[bytes]
    many: bool = False
    views: int | None = None
    top_k: int | None = None
    model: str | None = None
    label: str | None = None


async def read_upload(request: Request, max_files: int, parameters: Sequence[str]) -> Upload:
    """Read the body of a request, which must be unread.

    Args:
        request: The request.
        max_files: Largest number of images.
        parameters: Fields of a form that are read beside images, of those of `FormParameters`; others are ignored.

    Raises:
        RequestError: The content type is not accepted, the body is malformed, has no image or too many, or is over a limit.
        ClientDisconnect: The client left.
    """
    header = request.headers.get("content-type", "")
    _check_encoding(request)
    kind = header.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, header, max_files, parameters)
    if kind == "application/json":
        document = await read_json(request, JsonImage)
        return Upload([from_base64(document.image)], views=document.views, top_k=document.top_k)
    # Many clients send no type with raw bytes. RFC 9110 (8.3) then allows to judge by the bytes, as is done here anyway.
    if kind.startswith("image/") or kind in ("", "application/octet-stream"):
        body = await request.body()
        _check_address(body)
        return Upload([body])
    raise RequestError(
        "The body's content type is not accepted",
        code="unsupported_media_type",
        expected="multipart/form-data, image/*, application/octet-stream, application/json or none",
        got=_shown(kind),
    )


async def read_json(request: Request, schema: type[Document]) -> Document:
    """Read a body that is a JSON object.

    Raises:
        RequestError: The body is compressed, not JSON, or not as the schema says.
        ClientDisconnect: The client left.
    """
    _check_encoding(request)
    body = await request.body()

    def parse() -> Document:
        # The encoding is that of a byte-order mark, if there is one.
        return schema.model_validate_json(body.decode(json.detect_encoding(body), "replace"))

    try:
        return await asyncio.to_thread(parse) if len(body) > _LARGE_JSON else parse()
    except ValidationError as error:
        raise _invalid(error) from error


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise RequestError(
            "The body is compressed",
            code="unsupported_media_type",
            expected="no Content-Encoding",
            got=_shown(encoding),
            hint="Send the image as it is; image formats are compressed already",
        )


def from_base64(text: str) -> bytes:
    """Decode base64: standard or URL-safe, with or without padding and line breaks, or in a data URL.

    Raises:
        RequestError: It is not base64, or an address.
    """
    encoded = text.encode()
    _check_address(encoded)
    if match := _DATA_URL.match(encoded):
        encoded = encoded[match.end() :]
    # Spaces inside stay, and are refused: they may have been plus signs.
    encoded = encoded.strip().translate(_URL_SAFE, b"\r\n\t").rstrip(b"=")
    try:
        return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    except ValueError as error:
        raise RequestError(
            "image: not base64", code="invalid_request", hint="Encode the file's bytes in base64"
        ) from error


def _check_address(image: bytes) -> None:
    """Refuse an address in place of an image."""
    if _ADDRESS.match(image):
        raise RequestError(
            "An address was sent instead of an image",
            code="missing_file",
            hint="Nothing is downloaded: send the bytes of the image itself",
        )


def _invalid(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_context=False)[0]
    message = _shown(first["msg"], 160)
    if first["type"] == "json_invalid":
        return RequestError(f"The body is not JSON: {message}", code="malformed_body")
    name = next((part for part in reversed(first["loc"]) if isinstance(part, str)), "the body")
    code = name if name in PROBLEMS else "missing_file" if name == "image" else "invalid_request"
    return RequestError(f"{_shown(name)}: {message}", code=code)


class _FormParser(MultiPartParser):
    """Starlette's parser, without files on disk, which notices whether the form was complete."""

    spool_max_size = 0  # never moved to disk; the body's own limit bounds it
    complete = False

    def on_end(self) -> None:
        self.complete = True


def check_count(subject: str, count: int, max_files: int) -> None:
    """Raise the error for more images than a request may have."""
    if count > max_files:
        limit = {"max_files": max_files}
        raise RequestError(subject, code="too_many_files", expected=f"at most {max_files}", got=f"{count}", limit=limit)


async def _read_form(request: Request, header: str, max_files: int, parameters: Sequence[str]) -> Upload:
    # A part without a file name is text to the parser. As Latin-1 its bytes are restored exactly.
    headers = Headers({"content-type": f"{header}; charset=latin-1"})
    parser = _FormParser(headers, request.stream(), max_part_size=sys.maxsize)  # the body's own limit is smaller
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise _malformed(str(error.__cause__ or error.message)) from error
    if not parser.complete:
        raise _malformed("it ends before its closing boundary")
    if sum(name not in (FIELD, LIST_FIELD) for name, _ in form.multi_items()) > OTHER_PARTS:
        raise _malformed(f"it has more than {OTHER_PARTS} parts besides images")
    form = FormData([(name, value) for name, value in form.multi_items() if _is_filled_in(value)])
    values = [value for name, value in form.multi_items() if name in (FIELD, LIST_FIELD)]
    check_count("The form has too many images", len(values), max_files)
    if not values:
        names = ", ".join(map(_shown, form)) or "no fields"
        raise RequestError(f"The form has no field `{FIELD}`", code="missing_file", expected=f"`{FIELD}`", got=names)
    images = [await _content(value) for value in values]
    many = LIST_FIELD in form or len(images) > 1
    if not many:
        _check_address(images[0])
    return Upload(images, many, **await _read_parameters(request, form, parameters))


async def _read_parameters(request: Request, form: FormData, names: Sequence[str]) -> dict[str, Any]:
    """Read parameters in fields as the query is read; a field may not contradict the address."""
    given = {}
    for name in names:
        fields = [(await _content(value)).decode("utf-8", "replace") for value in form.getlist(name)]
        address = request.query_params.getlist(name)
        if name == "model" and "name" in request.path_params:
            address.append(request.path_params["name"])
        if fields and len({*fields, *address}) > 1:
            raise RequestError(
                f"{name}: the request has several values",
                code="invalid_request",
                expected="one value",
                got=", ".join(_shown(value) for value in [*address, *fields][:5]),
                hint=f"Give {name} once, in the form or in the address",
            )
        if fields:
            given[name] = fields[0]
    try:
        return FormParameters.model_validate(given).model_dump()
    except ValidationError as error:
        raise _invalid(error) from error


def _is_filled_in(value: UploadFile | str) -> bool:
    """Return whether a field is more than an input that was left empty, which browsers send without a name of a file."""
    return bool(value.filename or value.size) if isinstance(value, UploadFile) else bool(value)


async def _content(value: UploadFile | str) -> bytes:
    return await value.read() if isinstance(value, UploadFile) else value.encode("latin-1")


def _malformed(reason: str) -> RequestError:
    return RequestError(f"The form cannot be read: {_shown(reason, 160)}", code="malformed_body")


def _shown(text: str, length: int = 60) -> str:
    """Return text of a client fit for a message: short, on one line."""
    return "".join(c if c.isprintable() else "?" for c in text[:length])
