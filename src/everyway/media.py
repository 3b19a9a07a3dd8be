"""What raw data is outside of a system: read, given to codecs, shown, written, previewed.

A system names its raw data ("image", "text", "label", ...); the name is also that of its medium,
unless the system's `media` says another, or brings one.  What has no medium of its own is numbers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor

from everyway.atomic import atomic_write
from everyway.data.pictures import square
from everyway.data.sample import to_tensor
from everyway.record import Row, write_png
from everyway.request import RequestError, read_image, said

NEAR = 16
"""How far a channel of a painted pixel may be from its colour, of 255."""


@dataclass(frozen=True, kw_only=True)
class Medium:
    """suffix: of the file that a value is kept in.

    in_file: whether a value is given as a file; a text and a number stand in the request itself.
    read: (what was given, its name) -> a value; RequestError for what is none.
    tensor: (values, side of a system's pictures) -> a batch for codecs to encode.
    show: one sample, as a codec decoded it -> a value.
    write: (path, value, row of its result) writes a file.
    preview: value -> what a sheet or a terminal shows of it.
    """

    suffix: str
    in_file: bool
    read: Callable[[Any, str], Any]
    tensor: Callable[[Sequence[Any], int], Any]
    show: Callable[[Any], Any]
    write: Callable[[Path, Any, Row], None]
    preview: Callable[[Any], Image.Image | str]


def read_picture(given: Any, name: str, ground: str = "white") -> Image.Image:
    """given: a file's bytes, a picture of Pillow, uint8 (H, W, 3), or (3, H, W) in [-1, 1]."""
    if isinstance(given, Tensor) and given.ndim == 3 and len(given) == 3:
        return to_picture(given)
    if isinstance(given, np.ndarray) and given.ndim == 3 and given.dtype == np.uint8:
        given = Image.fromarray(given)
    if not isinstance(given, (bytes, Image.Image)):
        what = type(given).__name__
        raise RequestError(f"a {what} like {name!r} is no picture; give a path or one of Pillow")
    return read_image(given, ground, name)


def picture_tensor(
    pictures: Sequence[Image.Image],
    side: int,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Tensor:
    """The squares in their middle: (B, 3, side, side) in [-1, 1]."""
    pixels = to_tensor([np.asarray(square(p, side, resample)) for p in pictures])
    return pixels.contiguous()  # a convolution's last bits depend on the layout in memory


def free_pixels(mask: Image.Image, side: int) -> Tensor:
    """(1, side, side) bool, True where the mask is bright."""
    return picture_tensor([mask], side, Image.Resampling.BOX)[0].mean(0, keepdim=True) > 0


def shown_pixels(mask: Image.Image, side: int) -> Tensor:
    """(1, 1, side, side) in [0, 1], how bright the mask is."""
    return picture_tensor([mask], side, Image.Resampling.BOX).mean(1, keepdim=True) / 2 + 0.5


def painted_shares(picture: Image.Image, colours: Sequence[str], side: int, name: str) -> Tensor:
    """(P, side, side) in [0, 1]: how much of each pixel of the square has each colour, "#rrggbb".

    Pixels within NEAR of a colour, a channel, have it.  Raises RequestError for one that none has.
    """
    pixels = np.asarray(picture, dtype=int)
    maps = []
    for colour in colours:
        here = (np.abs(pixels - ImageColor.getrgb(colour)) <= NEAR).all(-1)
        if not here.any():
            raise RequestError(f"nothing of {name} is {colour}; it has {_colours(picture)}")
        mask = square(Image.fromarray(here.astype(np.uint8) * 255), side, Image.Resampling.BOX)
        maps.append(torch.from_numpy(np.asarray(mask) / np.float32(255)))
    return torch.stack(maps)


def _colours(picture: Image.Image) -> str:
    """The commonest colours of a picture."""
    counted = picture.getcolors(picture.width * picture.height)
    most = [colour for _, colour in sorted(counted, reverse=True)[:6]]
    return ", ".join("#" + bytes(colour).hex() for colour in most)


def to_picture(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> an 8-bit RGB picture."""
    array = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())


def read_text(given: Any, name: str) -> str:
    if not isinstance(given, str):
        raise RequestError(f"{name} is {given!r:.40}; give a text")
    return said(given)


def read_label(given: Any, name: str) -> int | str:
    """given: a number from 0 up, or a name; the codec knows which there are."""
    if isinstance(given, bool) or not isinstance(given, (int, str)) or given in ("",):
        raise RequestError(f"{name} is {given!r:.40}; give a class by its number or name")
    if isinstance(given, int) and given < 0:
        raise RequestError(f"{name} is {given!r:.40}; the numbers of classes are from 0 up")
    return given


def read_numbers(given: Any, name: str) -> np.ndarray:
    """given: the bytes of a .npy file, or what numpy takes for an array of numbers."""
    try:
        if isinstance(given, bytes):
            given = np.load(io.BytesIO(given), allow_pickle=False)
        return np.asarray(given, dtype=np.float32)
    except (ValueError, TypeError, EOFError):
        raise RequestError(f"{name} holds no array of numbers; give a .npy file") from None


def write_text(path: Path, text: Any, row: Row) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def write_numbers(path: Path, values: np.ndarray, row: Row) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)


MEDIA = {
    "image": Medium(
        suffix=".png",
        in_file=True,
        read=read_picture,
        tensor=picture_tensor,
        show=to_picture,
        write=write_png,
        preview=lambda picture: picture,
    ),
    "text": Medium(
        suffix=".txt",
        in_file=False,
        read=read_text,
        tensor=lambda texts, side: list(texts),
        show=str,
        write=write_text,
        preview=str,
    ),
    "label": Medium(
        suffix=".txt",
        in_file=False,
        read=read_label,
        tensor=lambda labels, side: list(labels),
        show=int,
        write=write_text,
        preview=lambda label: f"class {label}",
    ),
    "numbers": Medium(
        suffix=".npy",
        in_file=True,
        read=read_numbers,
        tensor=lambda arrays, side: torch.from_numpy(np.stack(arrays)),
        show=lambda values: torch.as_tensor(values).float().cpu().numpy(),
        write=write_numbers,
        preview=lambda values: " x ".join(map(str, values.shape)) + " numbers",
    ),
}
"""Name -> medium.  One that several systems share is a row here."""


def medium(name: str, media: Mapping[str, str | Medium]) -> Medium:
    """Of raw data of that name.  media: a system's own, name -> a row of MEDIA or a medium."""
    own = media.get(name, name)
    return own if isinstance(own, Medium) else MEDIA.get(own, MEDIA["numbers"])
