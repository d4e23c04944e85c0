"""Image decoding: bytes in, one upright 8-bit RGB image out.

Dataset folders and HTTP uploads come through `decode_image`, so training and serving read, refuse and repair an image in the
same way. The order of the steps is the defense:

1. `safety`: the bytes are opened; what is no file, empty or too large is refused;
2. `formats`: the content, never the name, chooses one reader; no other reader of Pillow's is tried. The size is read from the
   header, and headers that would make that reader allocate or loop are refused;
3. `safety`: the size is checked before a pixel is decoded;
4. `decode`: pixels are decoded and turned upright;
5. `color`: they become 8-bit RGB, in sRGB, on a background.

Whatever a decoder raises becomes an `ImageError` with a stable code. Nothing here changes Pillow's settings, so images can be
decoded in many threads at once.
"""

from transferapp.images.color import BACKGROUND, MAX_PROFILE_BYTES, SAMPLE_BITS
from transferapp.images.decode import NOTES, DecodedImage, decode_image
from transferapp.images.formats import FORMATS, MAX_GIF_BLOCKS, MAX_TIFF_PIECES, MAX_TIFF_TILE
from transferapp.images.safety import DATASET_LIMITS, MAX_JPEG_SCANS, MAX_RLE_PIXELS, ImageLimits

__all__ = [
    "BACKGROUND",
    "DATASET_LIMITS",
    "FORMATS",
    "MAX_GIF_BLOCKS",
    "MAX_JPEG_SCANS",
    "MAX_PROFILE_BYTES",
    "MAX_RLE_PIXELS",
    "MAX_TIFF_PIECES",
    "MAX_TIFF_TILE",
    "NOTES",
    "SAMPLE_BITS",
    "DecodedImage",
    "ImageLimits",
    "decode_image",
]
