"""How what was made goes out: pictures with their facts, and, where that is asked for, with an
invisible watermark and a note of their provenance."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from everyway.apps.server.config import ServerConfig
from everyway.apps.server.scheduler import Filter
from everyway.record import MADE_BY_A_MODEL, png_info
from everyway.settings import ConfigError

if TYPE_CHECKING:
    from everyway.generate import Result

MARKED = 256
"""Least side of a picture that holds a watermark."""
METHOD = "dwtDct"
"""Of the watermark, in the words of the package invisible-watermark."""
FILES = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def stamp_of(config: ServerConfig) -> Callable[[Result], Result] | None:
    """What is done to every result of a server; None where that is nothing.

    Raises ConfigError where the watermark's package is not installed.
    """
    if not config.watermark and not config.provenance:
        return None
    if config.watermark:
        _package()

    def stamped(result: Result) -> Result:
        metadata, outputs = dict(result.metadata), dict(result.outputs)
        picture = result.image
        if picture is not None and config.provenance:
            metadata["provenance"] = MADE_BY_A_MODEL
        if picture is not None and config.watermark and min(picture.size) >= MARKED:
            metadata["watermark"] = config.watermark
            outputs["image"] = watermarked(picture, config.watermark)
        return replace(result, metadata=metadata, outputs=outputs)

    return stamped


@cache
def _package() -> Any:
    try:
        return import_module("imwatermark")
    except ImportError:
        raise ConfigError(
            "a watermark needs its package: pip install 'everyway[watermark]'"
        ) from None


def watermarked(picture: Image.Image, text: str) -> Image.Image:
    """With an invisible text, in the frequencies of its colours; MARKED pixels a side or more."""
    encoder = _package().WatermarkEncoder()
    encoder.set_watermark("bytes", text.encode())
    pixels = np.asarray(picture.convert("RGB"))[:, :, ::-1]  # its order is blue, green, red
    return Image.fromarray(np.ascontiguousarray(encoder.encode(pixels, METHOD)[:, :, ::-1]))


def watermark(picture: Image.Image, length: int) -> str:
    """The invisible text of so many bytes that is read in a picture, which may be none."""
    decoder = _package().WatermarkDecoder("bytes", 8 * length)
    pixels = np.ascontiguousarray(np.asarray(picture.convert("RGB"))[:, :, ::-1])
    return decoder.decode(pixels, METHOD).decode(errors="replace")


def filter_of(config: ServerConfig) -> Filter | None:
    """The function that `content_filter` names; ConfigError where there is none."""
    if not config.content_filter:
        return None
    module, _, name = config.content_filter.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ConfigError(
            f"there is no function {config.content_filter!r}; give MODULE:FUNCTION"
        ) from None


def picture_bytes(picture: Image.Image, row: Mapping[str, Any] | None, form: str = "png") -> bytes:
    """A picture's file.  row: of its result, whose facts a PNG carries."""
    facts = {"pnginfo": png_info(picture, row)} if row and form == "png" else {}
    quality = {} if form == "png" else {"quality": 95}
    file = io.BytesIO()
    picture.save(file, FILES[form], **facts, **quality)
    return file.getvalue()


def encoded(content: bytes) -> str:
    """base64."""
    return base64.b64encode(content).decode()


def shown(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs as JSON has them: a picture as a PNG in base64, an array as lists."""
    return {name: _shown(value) for name, value in outputs.items()}


def _shown(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return encoded(picture_bytes(value, None))
    return value.tolist() if hasattr(value, "tolist") else value
