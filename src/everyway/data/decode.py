"""From a picture file to RGB pixels: the one place, for training and for requests."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from everyway.data.faults import reason

FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "DIB", "JPEG2000", "PPM", "TGA",
    "QOI", "PCX", "SGI", "DDS", "ICO", "ICNS", "PSD", "SUN", "XBM", "XPM", "MSP", "IM", "BLP",
)  # fmt: skip
"""What Pillow decodes by itself.  EPS is left out, since it runs another program, and the formats
that Pillow knows by name alone."""


@cache
def suffixes() -> frozenset[str]:
    """Endings of the files that are read as pictures, in lower case."""
    return frozenset(end for end, form in Image.registered_extensions().items() if form in _known())


@cache
def _known() -> tuple[str, ...]:
    """Those of FORMATS that the Pillow at hand was built with."""
    Image.init()
    return tuple(form for form in FORMATS if form in Image.OPEN)


def read_picture(file: Path | BinaryIO | Image.Image, ground: str = "white") -> Image.Image:
    """RGB pixels of the first frame, upright, transparency on `ground`, greys of 16 bits scaled to
    8.

    file: a path, an open file, or a picture of Pillow, which stays open.
    Raises OSError for whatever cannot be read, UnidentifiedImageError where it is no picture.
    """
    try:
        with warnings.catch_warnings():
            for remark in (Image.DecompressionBombWarning, UserWarning):  # of what can be read
                warnings.simplefilter("ignore", remark)
            if isinstance(file, Image.Image):
                return _rgb(ImageOps.exif_transpose(file), ground)
            with Image.open(file, formats=_known()) as opened:
                return _rgb(ImageOps.exif_transpose(opened), ground)
    except OSError:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise OSError(f"it has more than {most} million pixels; make it smaller") from None
    except Exception as error:  # decoders raise anything where a file is broken
        raise OSError(f"it is damaged ({reason(error)})") from None


def read_size(file: BinaryIO) -> tuple[int, int]:
    """(width, height) in pixels as stored, without decoding.  Raises OSError as `read_picture`
    does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_known()) as image:
                return image.size
    except OSError:
        raise
    except Exception as error:  # decoders raise anything where a file is broken
        raise OSError(f"it is damaged ({reason(error)})") from None


MODES = {
    "1": "black and white", "L": "grey", "LA": "grey", "I": "grey of 16 bits or more",
    "F": "grey of floats", "CMYK": "CMYK", "YCbCr": "YCbCr", "LAB": "LAB",
}  # fmt: skip
"""Mode of Pillow -> what a person calls it, of those that are made RGB of 8 bits."""
NARROW = 2
"""A picture that is so many times longer than wide loses more than half to its middle square."""


def oddities(file: BinaryIO, name: str) -> Iterator[str]:
    """What `read_picture` changes of a file that it can read, and what is odd about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=_known()) as image:
            frames, mode = getattr(image, "n_frames", 1), image.mode.partition(";")[0]
            if frames > 1:
                yield f"the first of {frames} frames is read"
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                yield "it is turned upright"
            if _clear(image):
                yield "its transparency is put on white"
            if mode in MODES:
                yield f"{MODES[mode]} is read as RGB of 8 bits"
            own = Image.registered_extensions().get(Path(name).suffix.lower(), image.format)
            if own != image.format:
                yield f"it is {image.format}, whatever its name says"
            short, long = sorted(image.size)
            if long > NARROW * short:
                yield "long and narrow: its middle square alone is learned from"


def _clear(image: Image.Image) -> bool:
    """Whether it may be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info


def _rgb(image: Image.Image, ground: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey(image)
    elif _clear(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """8 bits of a picture of 16-bit integers, or of floats.

    White is 65535; of floats it is 1 or 255 where none is larger.
    """
    values = np.asarray(image)
    if image.mode == "F":
        values = np.nan_to_num(values)
        white = next((w for w in (1, 255) if values.max() <= w), 65535)
        values = values * (65535 / white)
    table = np.rint(np.arange(65536) / 257).astype(np.uint8)
    if "transparency" in image.info:
        table[image.info["transparency"]] = 255
    return Image.fromarray(table[values.clip(0, 65535).astype(np.uint16)])
