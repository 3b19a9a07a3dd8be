"""A cache of encoded samples: codecs run once, a system trains on what they made.

One safetensors file holds, for every modality, a float16 tensor (N, V, ...) with V variants of
sample i (captions in several languages; one variant for pictures); tokens are int16.  What a
condition is told stands under `told.NAME`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from everyway.contracts import Bundle
from everyway.errors import EverywayError
from everyway.whole import whole


class CacheError(EverywayError, OSError):
    """A cache that cannot be read; the message is one line."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """states: modality -> (N, V, ...).  facts: what made them (data, seed, codec hash)."""

    states: dict[str, Tensor]
    facts: dict[str, str]

    def __len__(self) -> int:
        return next(iter(self.states.values())).shape[0]

    def batch(self, size: int, generator: torch.Generator) -> Bundle:
        """`size` samples with a random variant each, as float32 or int64 clean states."""
        rows = torch.randint(len(self), (size,), generator=generator)
        out = {}
        share = torch.rand(size, generator=generator)  # one variant a sample, whatever is read
        for name, table in self.states.items():
            chosen = table[rows, (share * table.shape[1]).long()]
            out[name] = chosen.float() if chosen.is_floating_point() else chosen.long()
        return out

    def save(self, path: Path) -> None:
        """Written whole or not at all."""
        with whole(path) as temporary:
            save_file(self.states, temporary, metadata={"facts": json.dumps(self.facts)})


def load(path: Path) -> Latents:
    """What `save` wrote.  Raises CacheError where it is damaged or truncated."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            states = {k: file.get_tensor(k) for k in file.keys()}
    except (SafetensorError, ValueError):
        states = {}
    if not states:
        raise CacheError(f"{path} is damaged or truncated; delete it, and it is made anew")
    return Latents(states=states, facts=facts)


def encode_all(
    encode: Callable[[list], dict[str, Tensor]],
    samples: Iterable,
    n: int,
    facts: dict[str, str],
    chunk: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Latents:
    """The first `n` of `samples` through `encode` (list of samples -> modality -> (B, V, ...))."""
    states: dict[str, Tensor] = {}
    done = 0
    for part in _chunks(islice(samples, n), chunk):
        for name, value in encode(part).items():
            if name not in states:
                kind = torch.float16 if value.is_floating_point() else torch.int16
                states[name] = torch.empty(n, *value.shape[1:], dtype=kind)
            states[name][done : done + len(part)] = value.to(states[name].dtype)
        done += len(part)
        if progress:
            progress(done)
    return Latents(states={k: v[:done] for k, v in states.items()}, facts=facts)


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
