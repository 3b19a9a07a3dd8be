"""Codecs fitted to a folder of pictures with captions, each sized to what the folder holds.

They are those of `train.fitted`, of closed form: cells of the pictures, thumbnails, and a vector a
word that says what the word looks like; of image tokens the means of clusters of cells.  Nothing is
trained; a few thousand pictures take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everyway.checkpoints import codec_folder
from everyway.codecs.cell_vq import CellVQ
from everyway.codecs.image_vae import psnr
from everyway.codecs.image_vq import use_of
from everyway.codecs.pca import PCA, CellPCA, ThumbnailPCA
from everyway.data.folder import Folder
from everyway.data.sample import to_tensor
from everyway.train import fitted_text
from everyway.train.sources import sample_at
from everyway.train.suited import SHOWS

FINE = 28.0
"""dB of pictures that were not fitted, beyond which a cell takes no more numbers."""
FINER = 40.0
"""The same of the numbers of a cell by which its token is chosen, whose errors add to its own."""
SAMPLE, FITTED = 600, 3000
"""Pictures that sizes are chosen by, and that codecs are fitted to, spread evenly over a folder."""
LOOKED_AT = 32
"""Pictures whose size in pixels is looked at."""
LOOKED_THROUGH = 20_000
"""Cells that are looked through for different ones."""
THUMBNAIL, TOLD, EMBEDDED = 12, 0.99, 64
"""Most pixels a side of a thumbnail, the part of its variance that is kept, in so many numbers."""

PARTS = ("image", "image_embed", "text")


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a preset has room for.

    side: of its pictures, in pixels.  grids: cells a side, the fewest first: a transformer's time
    is that of its tokens.  channels: numbers of a cell.  length: tokens of a caption, its end mark
    among them.  codes: of image tokens.
    """

    side: int
    grids: tuple[int, ...]
    channels: int
    length: int
    codes: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A codec.  settings: as plain data.  metadata: what is measured of it."""

    codec: nn.Module
    settings: Mapping[str, Any]
    metadata: Mapping[str, Any]


@torch.no_grad()
def fit(path: str, room: Room, count: int, parts: Sequence[str] = PARTS) -> dict[str, Fitted]:
    """The codecs of a folder by name, those of `parts`: image, image_embed, text and image_vq.

    count: of its pictures that are looked at; a tenth of them is kept to measure on.
    Raises FolderError where the folder has no pair of picture and caption, and where no caption is
    short enough.
    """
    side = side_of(path, room)
    data = Folder(path, side, captioned=True)
    count = min(count, len(data))
    numbers = [int(k * len(data) / count) for k in range(count)]
    pictures = to_tensor([sample_at(data, k, count).image for k in range(count)])
    captions = [data.captions(k) for k in range(len(data))]
    shown = [captions[k] for k in numbers]
    image = _image(pictures, side, room)
    makers: dict[str, Callable[[], Fitted]] = {
        "image": lambda: image,
        "image_embed": lambda: _embed(pictures, side),
        "text": lambda: _text(captions, shown, image.codec.encode(pictures), room),
        "image_vq": lambda: _tokens(pictures, side, room),
    }
    return {part: makers[part]() for part in parts}


def write(codecs: Mapping[str, Fitted], out: Path) -> None:
    """Each as NAME.safetensors, .json and, the last of them, .facts.json.  Raises StoreError."""
    for name, made in codecs.items():
        codec_folder.write(out, name, made.codec, made.settings, made.metadata)


def side_of(path: str, room: Room) -> int:
    """In pixels: the middle one of the shorter sides of some pictures, and no more than there is
    room for."""
    data = Folder(path, captioned=True)
    count = min(LOOKED_AT, len(data))
    sides = sorted(min(sample_at(data, k, count).image.shape[:2]) for k in range(count))
    return min(room.side, sides[count // 2])


# -- pictures -----------------------------------------------------------------------------------


def _image(pictures: Tensor, side: int, room: Room) -> Fitted:
    """In as few cells as show unseen pictures at FINE, and in as few numbers a cell."""
    fitted, unseen = _parted(pictures)
    for grid in room.grids:
        settings = _cells(side, grid)
        quality = _quality(fitted, unseen, settings, room.channels)
        if quality[-1] >= FINE:
            break
    settings["channels"] = _channels(quality, FINE)
    codec = CellPCA(**settings)
    codec.fit(pictures)
    metadata = {"psnr_db": round(float(quality[settings["channels"] - 1]), 2)}
    return Fitted(codec=codec, settings={"kind": "CellPCA", **settings}, metadata=metadata)


def _tokens(pictures: Tensor, side: int, room: Room) -> Fitted:
    """In as few cells as show unseen pictures at SHOWS, each the nearest of so many codes as there
    are different cells, and as there is room for."""
    fitted, unseen = _parted(pictures)
    for grid in room.grids:
        settings = {**_cells(side, grid), "power": 0.0}
        quality = _quality(fitted, unseen, settings, room.channels)
        settings["channels"] = _channels(quality, FINER)
        settings["codes"] = _different(fitted, settings, room.codes)
        codec = CellVQ(**settings)
        codec.cluster(fitted)
        codes = codec.encode(unseen)
        shown = float(psnr(codec.decode(codes), codec.cells.resized(unseen)))
        if shown >= SHOWS:
            break
    metadata = {"psnr_db": round(shown, 2), **use_of(codes, codec.classes)}
    return Fitted(codec=codec, settings={"kind": "CellVQ", **settings}, metadata=metadata)


def _parted(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Those that are fitted to, and every tenth, or the last of fewer, to measure on."""
    unseen = torch.arange(len(pictures)) % 10 == min(10, len(pictures)) - 1
    return pictures[~unseen] if len(pictures) > 1 else pictures, pictures[unseen]


def _cells(side: int, grid: int) -> dict[str, int]:
    cell = max(1, round(side / grid))
    return {"cell": cell, "side": grid * cell}


def _quality(fitted: Tensor, unseen: Tensor, settings: Mapping[str, Any], channels: int) -> Tensor:
    """dB of unseen pictures by one number a cell, by two, and so on up to `channels`."""
    widest = CellPCA(**settings, channels=min(channels, 3 * settings["cell"] ** 2))
    widest.fit(fitted)
    return psnr_by_channels(widest.pca, widest.cells(unseen).flatten(0, 2))


def _channels(quality: Tensor, enough: float) -> int:
    """The fewest that show `enough` dB, or as much as all."""
    return int((quality >= min(enough, float(quality[-1]))).float().argmax()) + 1


def _different(pictures: Tensor, settings: Mapping[str, Any], most: int) -> int:
    """How many of their cells are different, `most` at most."""
    cells = CellPCA(settings["cell"], side=settings["side"]).cells(pictures).flatten(0, 2)
    return min(most, len(cells[:: max(1, len(cells) // LOOKED_THROUGH)].unique(dim=0)))


def psnr_by_channels(pca: PCA, vectors: Tensor) -> Tensor:
    """(channels,) dB of vectors (N, inputs) in [-1, 1] by its first axis, its first two, ..."""
    off = vectors - pca.mean
    told = (off @ pca.axes.mT).square().mean(0).cumsum(0)
    error = (off.square().sum(1).mean() - told) / (4 * vectors.shape[1])
    return -10 * torch.log10(error.clamp_min(1e-10))


def _embed(pictures: Tensor, side: int) -> Fitted:
    settings = {"side": min(THUMBNAIL, side), "channels": EMBEDDED}
    settings["channels"] = min(EMBEDDED, 3 * settings["side"] ** 2)
    widest = ThumbnailPCA(**settings)
    thumbnails = widest.thumbnails(pictures)
    widest.pca.fit(thumbnails)
    told = ((thumbnails - widest.pca.mean) @ widest.pca.axes.mT).square().mean(0).cumsum(0)
    enough = told >= TOLD * told[-1]
    settings["channels"] = int(enough.float().argmax()) + 1
    codec = ThumbnailPCA(**settings)
    codec.pca.fit(thumbnails)
    return Fitted(codec=codec, settings={"kind": "ThumbnailPCA", **settings}, metadata={})


# -- texts --------------------------------------------------------------------------------------


def _text(
    captions: Sequence[Sequence[str]],
    shown: Sequence[Sequence[str]],
    latents: Tensor,
    room: Room,
) -> Fitted:
    """captions: of every picture.  shown: of those with latents (N, D, h, w)."""
    codec, settings, metadata = fitted_text.fit(captions, shown, latents, room.length)
    return Fitted(codec=codec, settings={"kind": "TokenTable", **settings}, metadata=metadata)


def described(codecs: Mapping[str, Fitted]) -> dict[str, str]:
    """What -> a line on its codec."""
    told = {
        "image": ("image", _of_cells),
        "image_vq": ("image", _of_tokens),
        "image_embed": ("embed", _of_thumbnails),
        "text": ("text", _of_words),
    }
    return {told[part][0]: told[part][1](made) for part, made in codecs.items()}


def _of_cells(image: Fitted) -> str:
    side, grid = _grid(image)
    numbers = image.settings["channels"]
    return _shown(f"{side}x{side} pixels in {grid}x{grid} cells of {numbers} numbers", image)


def _of_tokens(image: Fitted) -> str:
    side, grid = _grid(image)
    codes, known = image.settings["codes"], image.metadata
    line = _shown(f"{side}x{side} pixels as {grid}x{grid} tokens of {codes} codes", image)
    used, perplexity = f"{known['codes_used']:.0%}", f"{known['perplexity']:.0f}"
    return f"{line}; of the codes {used} are used there, perplexity {perplexity}"


def _of_thumbnails(embed: Fitted) -> str:
    return f"{embed.settings['channels']} numbers of a thumbnail"


def _of_words(text: Fitted) -> str:
    said, most = text.metadata, text.settings["length"] - 1
    count, unit, phrases = said["words"], said["unit"], said["phrases"]
    words = f"{count} {unit}, {most} a caption at most"
    if phrases:
        words = f"{count} {unit} and {phrases} phrases, {most} a caption at most"
    if not said["too_long"]:
        return words
    return f"{words}; {said['too_long']} captions are longer and left out"


def _grid(image: Fitted) -> tuple[int, int]:
    """Pixels and cells a side."""
    return image.settings["side"], image.settings["side"] // image.settings["cell"]


def _shown(line: str, image: Fitted) -> str:
    return f"{line}, {image.metadata['psnr_db']:.1f} dB on pictures it was not fitted to"
