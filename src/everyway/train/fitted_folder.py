"""Codecs fitted to a folder of pictures with captions, each sized to what the folder holds.

They are those of `train.fitted`, linear and of closed form: cells of the pictures, thumbnails, and
a vector a word that says what the word looks like.  Nothing is trained; a few thousand pictures
take seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everyway.checkpoints import codec_folder
from everyway.codecs.pca import PCA, CellPCA, ThumbnailPCA
from everyway.data.folder import Folder
from everyway.data.sample import to_tensor
from everyway.train import fitted_text
from everyway.train.sources import sample_at

FINE = 28.0
"""dB of pictures that were not fitted, beyond which a cell takes no more numbers."""
SAMPLE, FITTED = 600, 3000
"""Pictures that sizes are chosen by, and that codecs are fitted to, spread evenly over a folder."""
LOOKED_AT = 32
"""Pictures whose size in pixels is looked at."""
THUMBNAIL, TOLD, EMBEDDED = 12, 0.99, 64
"""Most pixels a side of a thumbnail, the part of its variance that is kept, in so many numbers."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a preset has room for.

    side: of its pictures, in pixels.  grids: cells a side, the fewest first: a transformer's time
    is that of its tokens.  channels: numbers of a cell.  length: tokens of a caption, its end mark
    among them.
    """

    side: int
    grids: tuple[int, ...]
    channels: int
    length: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A codec.  settings: as plain data.  metadata: what is measured of it."""

    codec: nn.Module
    settings: Mapping[str, Any]
    metadata: Mapping[str, Any]


@torch.no_grad()
def fit(path: str, room: Room, count: int) -> dict[str, Fitted]:
    """The codecs of a folder by modality: image, image_embed and text.

    count: of its pictures that are looked at; a tenth of them is kept to measure on.
    Raises FolderError where the folder has no pair of picture and caption, and where no caption is
    short enough.
    """
    side = min(room.side, _side(Folder(path, captioned=True)))
    data = Folder(path, side, captioned=True)
    count = min(count, len(data))
    numbers = [int(k * len(data) / count) for k in range(count)]
    pictures = to_tensor([sample_at(data, k, count).image for k in range(count)])
    image = _image(pictures, side, room)
    captions = [data.captions(k) for k in range(len(data))]
    text = _text(captions, [captions[k] for k in numbers], image.codec.encode(pictures), room)
    return {"image": image, "image_embed": _embed(pictures, side), "text": text}


def write(codecs: Mapping[str, Fitted], out: Path) -> None:
    """Each as NAME.safetensors, .json and, the last of them, .facts.json.  Raises StoreError."""
    for name, made in codecs.items():
        codec_folder.write(out, name, made.codec, made.settings, made.metadata)


def _side(data: Folder) -> int:
    """The middle one of the shorter sides of some pictures, in pixels."""
    count = min(LOOKED_AT, len(data))
    sides = sorted(min(sample_at(data, k, count).image.shape[:2]) for k in range(count))
    return sides[count // 2]


# -- pictures -----------------------------------------------------------------------------------


def _image(pictures: Tensor, side: int, room: Room) -> Fitted:
    """In as few cells as show unseen pictures at FINE, and in as few numbers a cell."""
    unseen = torch.arange(len(pictures)) % 10 == min(10, len(pictures)) - 1  # one at least
    for grid in room.grids:
        cell = max(1, round(side / grid))
        settings = {"cell": cell, "side": grid * cell}
        widest = CellPCA(**settings, channels=min(room.channels, 3 * cell**2))
        cells = widest.cells(pictures)
        widest.pca.fit(cells[~unseen if len(pictures) > 1 else unseen].flatten(0, 2))
        quality = psnr_by_channels(widest.pca, cells[unseen].flatten(0, 2))
        if quality[-1] >= FINE:
            break
    fine = quality >= min(FINE, float(quality[-1]))
    settings["channels"] = int(fine.float().argmax()) + 1
    codec = CellPCA(**settings)
    codec.pca.fit(cells.flatten(0, 2))
    metadata = {"psnr_db": round(float(quality[settings["channels"] - 1]), 2)}
    return Fitted(codec=codec, settings={"kind": "CellPCA", **settings}, metadata=metadata)


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
    """Modality -> a line on its codec."""
    image, embed, text = (codecs[name] for name in ("image", "image_embed", "text"))
    side, cell = image.settings["side"], image.settings["cell"]
    grid = side // cell
    quality = image.metadata["psnr_db"]
    shown = f"{side}x{side} pixels in {grid}x{grid} cells of {image.settings['channels']} numbers"
    said = text.metadata
    words = f"{said['words']} {said['unit']}, {text.settings['length'] - 1} a caption at most"
    if said["too_long"]:
        words = f"{words}; {said['too_long']} captions are longer and left out"
    return {
        "image": f"{shown}, {quality:.1f} dB on pictures it was not fitted to",
        "embed": f"{embed.settings['channels']} numbers of a thumbnail",
        "text": words,
    }
