"""Bytes in, one upright 8-bit RGB image out: the only decoder in the program.

Dataset folders and HTTP uploads come through `decode_image`, so an image is read, refused or repaired in one way wherever
it enters. Everything after it (`views`, features, training, serving) sees plain RGB.

The order of the steps is the defense, and each step is a module:

1. `source`: the bytes are opened, and what is no file, empty or too large is refused;
2. `sniff`: the content, never the name, chooses one reader from `FORMATS`; no other reader of Pillow's is ever tried;
3. `headers`, `limits`, `effort`: the size is judged before a pixel is decoded, and what a small file could do with a few
   bytes (giant tiles, thousands of progressive scans, runs without end) is refused there too;
4. `decode`: only then are pixels decoded and turned;
5. `modes`, `profiles`: they are made 8-bit RGB, in sRGB, on a background;
6. `verdict`: whatever a decoder made of bad bytes leaves as an `ImageError` with a stable code.

Nothing here changes Pillow's settings, so images can be decoded in many threads at once.
"""

from transferapp.images.decode import NOTES, DecodedImage, decode_image
from transferapp.images.effort import MAX_JPEG_SCANS, MAX_RLE_PIXELS
from transferapp.images.headers import MAX_GIF_BLOCKS, MAX_TIFF_PIECES, MAX_TIFF_TILE
from transferapp.images.limits import ImageLimits
from transferapp.images.modes import BACKGROUND
from transferapp.images.profiles import MAX_PROFILE_BYTES
from transferapp.images.sniff import FORMATS

__all__ = [
    "BACKGROUND",
    "FORMATS",
    "MAX_GIF_BLOCKS",
    "MAX_JPEG_SCANS",
    "MAX_PROFILE_BYTES",
    "MAX_RLE_PIXELS",
    "MAX_TIFF_PIECES",
    "MAX_TIFF_TILE",
    "NOTES",
    "DecodedImage",
    "ImageLimits",
    "decode_image",
]
