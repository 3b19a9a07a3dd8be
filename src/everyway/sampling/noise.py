"""Where the randomness of sampling and training comes from: contracts.Noise in two forms."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor


def mixed_seed(seed: int, name: str) -> int:
    """One 63-bit seed from a sample's seed and what the draws are for, the same everywhere."""
    high = zlib.crc32(f"{seed}:{name}".encode())
    low = zlib.crc32(f"{name}|{seed}".encode())
    return ((high << 32) | low) & (2**63 - 1)


def _choose(weights: Tensor, counts: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Row by row; a row with nothing to choose draws nothing."""
    chosen = torch.zeros(weights.shape, dtype=torch.bool, device=weights.device)
    for row, n, generator in zip(range(len(weights)), counts.tolist(), generators, strict=True):
        if n > 0:
            places = torch.multinomial(weights[row], n, generator=generator)
            chosen[row, places] = True
    return chosen


class PerSampleNoise:
    """One CPU generator per (sample, name): sample k is the same whatever batch it comes in.

    seeds: one integer per sample; every draw's first axis must have that length.  Draws under one
    name do not move the draws under another.
    """

    def __init__(self, seeds: list[int]) -> None:
        self.seeds = [int(s) for s in seeds]
        self._generators: dict[str, list[torch.Generator]] = {}

    def _of(self, name: str, shape: tuple[int, ...]) -> list[torch.Generator]:
        if not shape or shape[0] != len(self.seeds):
            raise ValueError(
                f"noise {name!r} was asked for shape {tuple(shape)} but has {len(self.seeds)} "
                "seeds; give one seed per sample"
            )
        if name not in self._generators:
            self._generators[name] = [
                torch.Generator().manual_seed(mixed_seed(seed, name)) for seed in self.seeds
            ]
        return self._generators[name]

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 (B, ...) on the CPU."""
        return torch.stack([torch.randn(shape[1:], generator=g) for g in self._of(name, shape)])

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform float32 in [0, 1), (B, ...) on the CPU."""
        return torch.stack([torch.rand(shape[1:], generator=g) for g in self._of(name, shape)])

    def choose(self, name: str, weights: Tensor, counts: Tensor) -> Tensor:
        """counts (B,) places a row of weights (B, L), without replacement: (B, L) bool, CPU."""
        return _choose(weights.cpu(), counts, self._of(name, tuple(weights.shape)))


class StreamNoise:
    """One stream for everything, in the order of the calls; names are ignored."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 (B, ...) on the generator's device."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform float32 in [0, 1), (B, ...) on the generator's device."""
        return torch.rand(shape, generator=self.generator, device=self.generator.device)

    def choose(self, name: str, weights: Tensor, counts: Tensor) -> Tensor:
        """counts (B,) places a row of weights (B, L), without replacement: (B, L) bool."""
        weights = weights.to(self.generator.device)
        return _choose(weights, counts, [self.generator] * len(weights))
