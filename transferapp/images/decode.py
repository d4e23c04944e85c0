"""The decoder: `decode_image` runs the steps of the package in their order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from PIL import ExifTags, Image

from transferapp.errors import ImageError, ResourceError, TransferAppError
from transferapp.images.color import SAMPLE_BITS, to_rgb
from transferapp.images.formats import identify, read_header, reader_for, unsupported_layout
from transferapp.images.safety import (
    DiskError,
    ImageLimits,
    Stream,
    broken,
    check_effort,
    check_size,
    opened,
    printable,
    unreadable,
)

NOTES = {
    "first_frame": "the image is animated or has several pages; the first one was used",
    "exif_rotated": "the image was turned as its orientation tag says",
    "alpha_composited": "transparent parts were laid on white, or on gray if the rest is white",
    "alpha_ignored": "every pixel is marked as transparent; the colors were used as if they were opaque",
    "converted_from_cmyk": "the image was in CMYK",
    "icc_converted": "the embedded color profile was converted to sRGB",
    "icc_ignored": "the embedded color profile is broken or does not fit, and was left out",
    "scaled_16_bit": "samples of more than 8 bits were scaled to 8",
    "clipped_16_bit": "samples above the depth of the training images were clipped to white",
    "scaled_float": "floating-point samples from 0 to 1 were scaled to 8 bits",
    "trailing_data": "something follows the image in the file; it was not read",
    "single_color": "every pixel has the same color; the image may be blank or read wrongly",
}
"""Codes in `DecodedImage.notes`, each with a sentence for people."""

_DEFAULT_LIMITS = ImageLimits()
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image.

    Attributes:
        image: Mode "RGB", 8 bits, upright, pixels loaded, no file held open. Smaller than the original where
            `min_short_side` allowed it.
        format: One of `FORMATS`, or "HEIF".
        original_size: (width, height) of the image as it is shown: after the orientation tag, before any reduction.
        notes: Codes of `NOTES`, in the order of that table: what was done to the image.
        peak: Largest of its 16-bit samples, before scaling; None for an image without such samples.
    """

    image: Image.Image
    format: str
    original_size: tuple[int, int]
    notes: tuple[str, ...]
    peak: int | None = None


def decode_image(
    source: Path | bytes,
    *,
    limits: ImageLimits = _DEFAULT_LIMITS,
    min_short_side: int | None = None,
    sample_bits: int = 16,
    subject: str | None = None,
) -> DecodedImage:
    """Decode one image of any supported format.

    Args:
        source: A file, or its bytes.
        limits: Limits that are checked before pixels are decoded.
        min_short_side: The shorter side, in pixels, that the caller needs. A JPEG at least twice as large is decoded at a
            half, quarter or eighth of its size, never below this; that is several times faster. None decodes every pixel.
        sample_bits: Depth of the samples in 16-bit files, one of `SAMPLE_BITS`: 2**sample_bits - 1 becomes white, and what is
            above is clipped. Detectors of 12 bits are often saved like this, which would look nearly black.
        subject: Name of the image in error messages. Default: the path, or "The image" for bytes.

    Returns:
        The image in 8-bit RGB: first frame, upright, in sRGB, on `BACKGROUND` or gray where it was transparent.

    Raises:
        ImageError: The image cannot be used. `code` is `empty_file`, `too_many_bytes`, `unsupported_format`,
            `too_many_pixels`, `aspect_ratio`, `too_small`, `truncated`, `undecodable` or `unreadable`.
        ResourceError: There was not enough memory for an image within the limits.
        ValueError: `min_short_side` is below 1, or `sample_bits` is not a known depth.
    """
    if sample_bits not in SAMPLE_BITS:
        raise ValueError(f"sample_bits must be one of {SAMPLE_BITS}, got {sample_bits}")
    if min_short_side is not None and min_short_side < 1:
        raise ValueError(f"min_short_side must be at least 1, got {min_short_side}")
    if subject is None:
        subject = str(source) if isinstance(source, Path) else "The image"
    subject = printable(subject)
    form = ""
    with opened(source, limits, subject) as stream:
        try:
            form = identify(stream, subject)
            return _decode(stream, form, limits, min_short_side, sample_bits, subject)
        except TransferAppError:
            raise
        except DiskError as error:
            raise unreadable(subject, error.reason) from error
        except Image.DecompressionBombError as error:
            raise ImageError(
                f"{subject} has too many pixels",
                got=printable(str(error)),
                hint="Make it smaller",
                code="too_many_pixels",
            ) from error
        except MemoryError as error:
            raise ResourceError(
                f"{subject} needs more memory to decode than there is",
                hint="Free some memory, or lower max_pixels so that such images are refused",
            ) from error
        except Exception as error:  # decoders raise almost anything for bad bytes
            raise broken(stream, form, error, subject) from error


def _decode(
    stream: Stream, form: str, limits: ImageLimits, min_short_side: int | None, sample_bits: int, subject: str
) -> DecodedImage:
    """Check the header, then decode and make RGB. May raise whatever the decoders raise."""
    header = read_header(stream, form, subject)
    if header.size is not None and min(header.size) > 0:
        check_size(header.size, limits, subject)
    reader = reader_for(form)
    assert reader is not None  # `identify` has checked it
    stream.seek(0)
    try:
        source = reader(cast("IO[bytes]", stream), "")
    except SyntaxError as error:
        if header.layout and "unknown pixel mode" in str(error):
            raise unsupported_layout(header.layout, subject) from error
        raise
    check_size(source.size, limits, subject)
    check_effort(source, stream, subject)

    original_size = source.size
    turned_by_pillow = _orientation(source) if form == "TIFF" else 1  # its load() turns the image, and unsets the tag
    if min_short_side is not None and form == "JPEG":
        # One bound for both sides is right whatever the orientation. Without a mode, draft keeps gray and CMYK as they are.
        source.draft(None, (min_short_side, min_short_side))
    source.load()

    converted = to_rgb(source, header.png_bits, sample_bits, subject)
    image, notes = converted.image, converted.notes
    orientation = _orientation(source)  # not before: a PNG would decode its pixels to look for the tag
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
        if orientation in _SIDEWAYS:
            original_size = original_size[1], original_size[0]
    several = header.several or (form != "GIF" and getattr(source, "is_animated", False))
    if image is source and (several or form not in ("JPEG", "PNG", "BMP", "TIFF")):
        image = image.copy()  # these readers would keep their decoder, and the whole file, alive
    image.info.clear()

    notes |= {"first_frame"} if several else set()
    notes |= {"exif_rotated"} if orientation in _TURNS or turned_by_pillow in _TURNS else set()
    ending = _ENDINGS.get(form, b"")
    if stream.peek_at(max(0, stream.size - len(ending)), len(ending)) != ending:
        notes.add("trailing_data")
    if image.getcolors(1) is not None:  # it stops at the second color
        notes.add("single_color")
    return DecodedImage(image, form, original_size, tuple(code for code in NOTES if code in notes), converted.peak)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none or it cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DiskError:
        raise
    except Exception:
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1
