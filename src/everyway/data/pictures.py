"""The one crop: what a model sees of a picture that is not square, in training and in requests."""

from __future__ import annotations

from PIL import Image, ImageOps


def square(
    image: Image.Image, side: int, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The middle of a picture, side x side pixels; what is left and right of it, or above and
    below, is cut off alike."""
    return ImageOps.fit(image, (side, side), resample)


MUCH = 0.25
"""The part of a picture's area beyond which a crop is reported: for 3:2, but not for 4:3."""


def loses_much(width: int, height: int) -> bool:
    """Whether the square in the middle of a picture leaves out more than MUCH of it."""
    return 1 - min(width, height) / max(width, height) > MUCH
