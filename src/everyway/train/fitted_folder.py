"""Codecs fitted to a folder of pictures with captions, each sized to what the folder holds.

They have a closed form, as those of `train.fitted`: principal components of cells and of
thumbnails, and for each word and phrase a vector that says what it looks like.  Image tokens stand
for the means of clusters of cells.  Nothing is trained; a few thousand pictures take seconds.
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
"""The dB of unseen pictures at which a cell has enough numbers."""
FINER = 40.0
"""The same for the numbers by which a cell's token is chosen, whose error comes on top."""
SAMPLE, FITTED = 600, 3000
"""Pictures by which sizes are chosen, and pictures to which codecs are fitted; both are spread
evenly over a folder."""
LOOKED_AT = 32
"""Pictures whose size in pixels is looked at."""
LOOKED_THROUGH = 20_000
"""Cells among which different ones are counted."""
THUMBNAIL, EXPLAINED, EMBEDDED = 12, 0.99, 64
"""Of a thumbnail: pixels a side at most, the part of its variance that is kept, and numbers at
most."""

PARTS = ("image", "image_embed", "text")


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a preset has room for.

    side: pixels of a picture's side, at most.  grids: how many cells a side may have, the fewest
    first, since a transformer's time grows with its tokens.  channels: numbers of a cell, at most.
    length: tokens of a caption, its end mark among them, at most.  codes: different image tokens,
    at most.
    """

    side: int
    grids: tuple[int, ...]
    channels: int
    length: int
    codes: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A codec that was fitted.  settings: what makes it again, as plain data.  metadata: what was
    measured of it."""

    codec: nn.Module
    settings: Mapping[str, Any]
    metadata: Mapping[str, Any]


@torch.no_grad()
def fit(path: str, room: Room, count: int, parts: Sequence[str] = PARTS) -> dict[str, Fitted]:
    """The codecs of a folder by name, those of `parts`: image, image_embed, text and image_vq.

    count: how many of its pictures are used, at most; a tenth of them is kept to measure on.
    Raises FolderError where the folder has no picture with a caption, and where no caption is short
    enough.
    """
    side = picture_side(path, room)
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
    """Each codec as NAME.safetensors, NAME.json and, last, NAME.facts.json in `out`.  Raises
    StoreError."""
    for name, made in codecs.items():
        codec_folder.write(out, name, made.codec, made.settings, made.metadata)


def picture_side(path: str, room: Room) -> int:
    """Pixels of a side in which pictures of a folder are read: the median of their shorter sides,
    and no more than there is room for."""
    data = Folder(path, captioned=True)
    count = min(LOOKED_AT, len(data))
    sides = sorted(min(sample_at(data, k, count).image.shape[:2]) for k in range(count))
    return min(room.side, sides[count // 2])


# -- pictures -----------------------------------------------------------------------------------


def _image(pictures: Tensor, side: int, room: Room) -> Fitted:
    """The fewest cells that show unseen pictures at FINE, with the fewest numbers a cell."""
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
    """The fewest cells that show unseen pictures at SHOWS, each as the nearest of some codes: as
    many as there are different cells, or as there is room for."""
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
    """(pictures to fit to, pictures to measure on: every tenth, or of fewer than ten the last)."""
    unseen = torch.arange(len(pictures)) % 10 == min(10, len(pictures)) - 1
    return pictures[~unseen] if len(pictures) > 1 else pictures, pictures[unseen]


def _cells(side: int, grid: int) -> dict[str, int]:
    cell = max(1, round(side / grid))
    return {"cell": cell, "side": grid * cell}


def _quality(fitted: Tensor, unseen: Tensor, settings: Mapping[str, Any], channels: int) -> Tensor:
    """(channels,) dB of unseen pictures with one number a cell, with two, and so on."""
    widest = CellPCA(**settings, channels=min(channels, 3 * settings["cell"] ** 2))
    widest.fit(fitted)
    return psnr_by_channels(widest.pca, widest.cells(unseen).flatten(0, 2))


def _channels(quality: Tensor, enough: float) -> int:
    """The fewest channels whose `quality` is `enough` dB, or that of all of them."""
    return int((quality >= min(enough, float(quality[-1]))).float().argmax()) + 1


def _different(pictures: Tensor, settings: Mapping[str, Any], most: int) -> int:
    """How many different cells the pictures have, `most` at most."""
    cells = CellPCA(settings["cell"], side=settings["side"]).cells(pictures).flatten(0, 2)
    return min(most, len(cells[:: max(1, len(cells) // LOOKED_THROUGH)].unique(dim=0)))


def psnr_by_channels(pca: PCA, vectors: Tensor) -> Tensor:
    """(channels,) dB of vectors (N, inputs) in [-1, 1] from the first axis of a PCA, from the first
    two, and so on."""
    off = vectors - pca.mean
    explained = (off @ pca.axes.mT).square().mean(0).cumsum(0)
    error = (off.square().sum(1).mean() - explained) / (4 * vectors.shape[1])
    return -10 * torch.log10(error.clamp_min(1e-10))


def _embed(pictures: Tensor, side: int) -> Fitted:
    settings = {"side": min(THUMBNAIL, side), "channels": EMBEDDED}
    settings["channels"] = min(EMBEDDED, 3 * settings["side"] ** 2)
    widest = ThumbnailPCA(**settings)
    thumbnails = widest.thumbnails(pictures)
    widest.pca.fit(thumbnails)
    off = thumbnails - widest.pca.mean
    explained = (off @ widest.pca.axes.mT).square().mean(0).cumsum(0)
    enough = explained >= EXPLAINED * explained[-1]
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
    """What a price speaks of ("image", "embed", "text") -> a line on its codec, for people."""
    lines = {
        "image": ("image", _of_cells),
        "image_vq": ("image", _of_tokens),
        "image_embed": ("embed", _of_thumbnails),
        "text": ("text", _of_words),
    }
    return {lines[part][0]: lines[part][1](made) for part, made in codecs.items()}


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
