"""Built-in scenes put together on the training's device, in place of a cache of latents.

The CPU's processes write down, once, what stands where and what is said of it: a hundred bytes a
scene.  The device holds that and the sprites, and draws and encodes each batch as it is needed:
the pictures are bit for bit those that the data draws.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everyway.contracts import Bundle, flat
from everyway.system import System
from everyway.train import sources
from everyway.train.config import ConfigError, TrainConfig
from everyway.train.devices import PartialState

CHUNK = 2000
"""Scenes that a process writes down at once."""
OBJECTS = 2
"""Of a scene, at most."""


class Composed:
    """Scenes as `SystemLearner` reads latents, on one device.

    records: as `write_down` returns them.  sprites: of the scenes, as the data's `sprites()`.
    conditioning: what the conditions read of each variant of a caption, (V, ...).
    complete, lacking: as of `Latents`.
    """

    lacking: Mapping[str, range] = MappingProxyType({})

    def __init__(
        self,
        records: dict[str, Tensor],
        sprites: Sequence[np.ndarray],
        size: int,
        codecs: dict[str, Any],
        conditioning: Bundle,
        device: torch.device,
        complete: float = 1.0,
    ) -> None:
        self.complete = complete
        self.records = {name: value.to(device) for name, value in records.items()}
        self.atlas = _atlas(sprites).to(device)
        self.size, self.conditioning = size, {k: v.to(device) for k, v in conditioning.items()}
        self.codecs = {name: deepcopy(codec).to(device) for name, codec in codecs.items()}

    def __len__(self) -> int:
        return len(self.records["colour"])

    @torch.no_grad()
    def rows(self, index: Tensor, share: Tensor) -> Bundle:
        """Clean states of scenes `index` (B,), and what conditions read, on the device.

        share: (B,) in [0, 1), which of its captions a scene has.
        """
        ids = self.records["ids"]
        index, variant = (v.to(ids.device) for v in (index, (share * ids.shape[1]).long()))
        pictures = self.pictures(index).movedim(-1, 1).float() / 127.5 - 1
        made = {n: codec.encode(pictures) for n, codec in self.codecs.items() if n != "text"}
        made["text"] = self.codecs["text"].latent(ids[index, variant].long())
        return made | {name: value[variant] for name, value in self.conditioning.items()}

    @torch.no_grad()
    def pictures(self, index: Tensor) -> Tensor:
        """(B, size, size, 3) uint8, as the data draws them."""
        own = {name: self.records[name][index].int() for name in ("colour", "sprite", "corner")}
        along = torch.arange(self.size, device=index.device)
        canvas = own["colour"][:, None, None].expand(-1, self.size, self.size, -1)
        extent = self.atlas.shape[1]
        for slot in range(OBJECTS):
            which = own["sprite"][:, slot]
            x, y = (along - own["corner"][:, slot, axis, None] for axis in (0, 1))
            inside = _within(y, extent)[:, :, None] & _within(x, extent)[:, None]
            inside &= (which >= 0)[:, None, None]
            y, x = (v.clamp(0, extent - 1) for v in (y, x))
            over = self.atlas[which.clamp_min(0)[:, None, None], y[:, :, None], x[:, None]].int()
            over = over * inside[..., None]
            under = ((255 - over[..., 3:]) * canvas + 127) // 255  # as `emoji.paste`
            canvas = (over[..., :3] + under).clamp_max(255)
        return canvas.to(torch.uint8)


def composed(
    system: System, config: TrainConfig, note: Callable[[str], None] = lambda line: None
) -> Composed:
    """config.source.cache scenes of the training's data, on its device.

    Raises ConfigError where the data has no scenes, or the system no codec of whole words.
    """
    state, data = PartialState(), sources.data_of(system, config)
    codecs = {name: m.codec for name, m in system.modalities.items()}
    if not hasattr(data, "placed") or not hasattr(codecs.get("text"), "ids"):
        raise ConfigError(
            f"compose is for systems that read words and data of scenes, not {config.source.data!r}"
            "; leave it out"
        )
    count = config.source.cache
    processes = max(1, (os.cpu_count() or 1) // state.num_processes)
    records = write_down(data, codecs["text"].ids, count, processes)
    note(f"wrote down {count:,} scenes")
    conditioning = flat(system.contexts({"text": data.described(0)[1]}))  # its language alone
    sprites = [*data.sprites().values()]
    complete = getattr(data, "complete", 1.0)
    return Composed(records, sprites, data.size, codecs, conditioning, state.device, complete)


def write_down(
    data: Any, read: Callable[[Sequence[str]], Tensor], count: int, processes: int = 1
) -> dict[str, Tensor]:
    """The first `count` scenes of `data` as numbers.

    read: captions -> ids (B, L).
    Returns colour (N, 3), of the background; sprite (N, 2), its number among `data.sprites()`, or
    -1; corner (N, 2, 2), its left and upper edge; ids (N, V, L), of each caption.
    """
    parts = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    if min(processes, len(parts)) == 1:
        made = [_written(data, read, part) for part in parts]
    else:
        fresh = multiprocessing.get_context("spawn")  # a fork would share the device's driver
        with ProcessPoolExecutor(min(processes, len(parts)), fresh) as pool:
            made = [*pool.map(partial(_written, data, read), parts)]
    return {k: torch.from_numpy(np.concatenate([m[k] for m in made])) for k in made[0]}


def _written(
    data: Any, read: Callable[[Sequence[str]], Tensor], numbers: range
) -> dict[str, np.ndarray]:
    number_of = {key: number for number, key in enumerate(data.sprites())}
    colour = np.empty((len(numbers), 3), np.uint8)
    sprite = np.full((len(numbers), OBJECTS), -1, np.int16)
    corner = np.zeros((len(numbers), OBJECTS, 2), np.int16)
    captions: list[str] = []
    for row, index in enumerate(numbers):
        scene, said = data.described(index)
        colour[row], placed = data.placed(scene, index)
        for slot, (key, *at) in enumerate(placed):
            sprite[row, slot], corner[row, slot] = number_of[key], at
        captions += said
    ids = read(captions).numpy().astype(np.int16).reshape(len(numbers), len(said), -1)
    return {"colour": colour, "sprite": sprite, "corner": corner, "ids": ids}


def _atlas(sprites: Sequence[np.ndarray]) -> Tensor:
    """(N, E, E, 4) uint8: each sprite in the upper left of a square that is clear elsewhere."""
    extent = max(max(sprite.shape[:2]) for sprite in sprites)
    atlas = np.zeros((len(sprites), extent, extent, 4), np.uint8)
    for cell, sprite in zip(atlas, sprites):
        cell[: sprite.shape[0], : sprite.shape[1]] = sprite
    return torch.from_numpy(atlas)


def _within(at: Tensor, extent: int) -> Tensor:
    return (at >= 0) & (at < extent)
