"""Encoded bytes to an 8-bit PIL image with the channels the model wants."""

from __future__ import annotations

import struct
import warnings
import zlib
from typing import IO

import numpy as np
from PIL import Image

# What Pillow's decoders raise on broken files, besides OSError: each was met on truncated or corrupted images.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


def decode(stream: IO[bytes], channels: int) -> Image.Image:
    """Decode one image fully to mode RGB (`channels` 3) or L (1).

    Palette, grey, CMYK and alpha images are converted by Pillow, as timm does: transparency is dropped and EXIF
    orientation is not applied. 16-bit grey is scaled to 8 bits, because Pillow's own conversion clips it to white.

    Raises:
        one of `UNREADABLE` when the bytes are no image, are cut short, hold floating-point pixels, or are an image of
        more than Pillow's `Image.MAX_IMAGE_PIXELS`.
    """
    with warnings.catch_warnings():
        # Up to twice the limit Pillow only warns, and would take a gigabyte for it in every worker.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(stream)
    with image:
        image.load()
        if image.mode == "F":
            raise ValueError("floating-point pixels have no fixed range; convert the image to 8 or 16 bits")
        if image.mode.startswith("I"):
            deep = np.asarray(image).astype(np.int64).clip(0, 65535)
            image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
        elif image.mode in ("P", "PA") and "transparency" in image.info:
            # Straight to RGB works too, but makes Pillow warn about every such file.
            image = image.convert("RGBA")
        return image.convert("RGB" if channels == 3 else "L")
