"""A cache of encoded samples: codecs run once, a system trains on what they made.

A folder of shards, each a sealed file with a tensor (n, V, ...) of every modality: V variants of a
sample (captions; one variant for pictures), as float16 and int16 where their numbers fit.  What
conditions read stands under `context.NAME`.  Several processes encode shards in turn, and a shard
that is there is not encoded again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from everyway.contracts import Bundle
from everyway.errors import EverywayError
from everyway.train import sealed

SHARD = 1024
"""Samples in a shard."""
CHUNK = 64
"""Samples that are encoded together."""


class CacheError(EverywayError, OSError):
    """A cache that cannot be written or read; the message is one line."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """shards: of SHARD samples each, but the last: modality -> (n, V, ...).

    lacking: raw data -> the last samples, that have none of it, and another's in its place.
    complete: the share of a sample's captions, at their front, that state everything.  A text that
    leaves things unsaid is a condition; as something to be made it would be one of many.
    """

    shards: Sequence[dict[str, Tensor]]
    complete: float = 1.0
    lacking: Mapping[str, range] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(next(iter(shard.values()))) for shard in self.shards)

    def lack(self, index: Tensor) -> dict[str, Tensor]:
        """Raw data -> (B,) bool, which of the samples `index` (B,) have none of it."""
        return {k: (index >= own.start) & (index < own.stop) for k, own in self.lacking.items()}

    def rows(self, index: Tensor, share: Tensor) -> Bundle:
        """Samples `index` (B,) as float32 or int64 clean states.

        share: (B,) in [0, 1), which of its variants a sample is read in, the same for every name.
        """
        return {name: self._read(name, index.tolist(), share) for name in self.shards[0]}

    def _read(self, name: str, index: list[int], share: Tensor) -> Tensor:
        tables = [self.shards[i // SHARD][name] for i in index]
        variants = [int(u * len(table[0])) for u, table in zip(share.tolist(), tables)]
        chosen = [table[i % SHARD, v] for i, v, table in zip(index, variants, tables)]
        return torch.stack([x.float() if x.is_floating_point() else x.long() for x in chosen])


def encode(
    folder: Path,
    samples: Callable[[int], object],
    make: Callable[[list], dict[str, Tensor]],
    count: int,
    *,
    rank: int = 0,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Latents:
    """`count` samples through `make` (list of samples -> modality -> (B, V, ...)), into `folder`.

    rank, processes: this process makes every `processes`-th shard, then waits for the others'.
    progress: is told (number of the last sample made, count).
    Raises CacheError where a shard cannot be written or is damaged.
    """
    paths = [folder / f"{n:05d}.safetensors" for n in range(-(-count // SHARD))]
    for n, path in enumerate(paths):
        if n % processes == rank and not path.exists():
            shard = range(n * SHARD, min((n + 1) * SHARD, count))
            _write(path, _encoded(samples, make, shard))
            if progress:
                progress(shard.stop, count)
        elif n % processes == rank:
            _check(path)
    while not all(path.exists() for path in paths):
        time.sleep(0.2)  # the launcher ends this process if one that makes them ended
    return Latents(shards=[_opened(path) for path in paths])


def _encoded(
    samples: Callable[[int], object], make: Callable[[list], dict[str, Tensor]], shard: range
) -> dict[str, Tensor]:
    made: dict[str, list[Tensor]] = {}
    for start in range(shard.start, shard.stop, CHUNK):
        chunk = [samples(i) for i in range(start, min(start + CHUNK, shard.stop))]
        for name, value in make(chunk).items():
            made.setdefault(name, []).append(value.cpu())
    return {name: _small(name, torch.cat(values)) for name, values in made.items()}


def _small(name: str, value: Tensor) -> Tensor:
    """In 16 bits where every number fits, else in 32."""
    if value.dtype == torch.bool:
        return value
    if not value.isfinite().all():
        raise CacheError(f"the codec of {name} gives numbers that are not finite; mend it first")
    floats = value.is_floating_point()
    small, wide = (torch.float16, torch.float32) if floats else (torch.int16, torch.int32)
    most = torch.finfo(small).max if floats else torch.iinfo(small).max
    return value.to(small if value.numel() == 0 or value.abs().max() <= most else wide)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        sealed.write(path, tensors, {})
    except OSError as error:
        raise CacheError(f"the cache {path} was not written: {error}") from None


def _check(path: Path) -> None:
    try:
        sealed.verify(path)
    except OSError as error:
        raise CacheError(f"{error}; delete it, and it is made anew") from None


def _opened(path: Path) -> dict[str, Tensor]:
    try:
        return sealed.read(path)[0]
    except sealed.Damaged as error:
        raise CacheError(f"{error}; delete it, and it is made anew") from None
