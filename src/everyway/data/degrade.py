"""What pictures lose on their way: a super-resolution network is trained on such pictures, so that
it mends those of other models and of cameras, not the output of one resize alone.

A picture is blurred, made smaller, given noise, kept as a JPEG would keep it, and made large again.
Every draw comes from a `contracts.Noise`: sample k is the same in any batch.

Sources: Zhang et al., "Designing a Practical Degradation Model for Deep Blind Image
Super-Resolution", 2021, arXiv 2103.14006; Wang et al., "Real-ESRGAN", 2021, arXiv 2107.10833.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import cos, pi, sqrt
from typing import TYPE_CHECKING

from everyway.contracts import Noise
from everyway.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

KERNELS = ("area", "bilinear", "bicubic")
"""What makes pictures smaller; a sample has one of them."""
BLOCK = 8
"""Side of a block of a JPEG in pixels."""


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """How much a picture may lose; of each kind a sample loses an amount of its own.

    factor: (least, most) by which it is made smaller along a side, from 1 up; drawn on a log scale.
    blur: at most, the standard deviation of a Gaussian, in pixels of the small picture.
    noise: at most, its standard deviation; pixels are in [-1, 1].
    jpeg: at most, the step to which the coefficients of a block are rounded, on that scale.
    level: in [0, 1], what `blur`, `noise` and `jpeg` are multiplied by; 0 is resizing alone.
    share: of the samples that lose more than their size.
    """

    factor: tuple[float, float] = (1.0, 4.0)
    blur: float = 1.0
    noise: float = 0.1
    jpeg: float = 0.2
    level: float = 1.0
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.factor[0] <= self.factor[1]:
            raise UsageError(f"factor is {self.factor}; give (least, most), from 1 up")
        for name in ("level", "share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give a number from 0 to 1")
        for name in ("blur", "noise", "jpeg"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; give a number from 0 up")


def degraded(pictures: Tensor, noise: Noise, how: Degradation) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] -> what is left of them, enlarged to the same size."""
    import torch

    batch = len(pictures)
    drawn = noise.uniform("degrade", (batch, 6)).to(pictures)
    factor, blur, grain, step, kept, kernel = drawn.unbind(1)
    lossy = how.level * (kept < how.share)
    least, most = how.factor
    factors = least * (most / least) ** factor
    grains = noise.normal("degrade:grain", tuple(pictures.shape)).to(pictures)
    rows = zip(
        pictures.split(1),
        factors.tolist(),
        (how.blur * lossy * blur).tolist(),
        (how.noise * lossy * grain).tolist(),
        (how.jpeg * lossy * step).tolist(),
        [KERNELS[int(k)] for k in (len(KERNELS) * kernel).tolist()],
        grains.split(1),
    )
    return torch.cat([_degraded(*row) for row in rows])


def _degraded(
    picture: Tensor,
    factor: float,
    blur: float,
    noise: float,
    jpeg: float,
    kernel: str,
    grain: Tensor,
) -> Tensor:
    """One picture (1, 3, H, W).  kernel: of KERNELS.  grain: standard normal, of its shape."""
    side = picture.shape[-2:]
    size = [max(1, round(pixels / factor)) for pixels in side]
    small = resized(blurred(picture, blur * factor), size, kernel)
    small = small + noise * grain[..., : size[0], : size[1]]
    return resized(blocky(small, jpeg), side).clamp(-1, 1)


def cut(pictures: Tensor, side: int, noise: Noise) -> Tensor:
    """A square patch of each picture (B, C, H, W), anywhere in it: (B, C, side, side).

    Raises UsageError for a patch that is larger than the pictures.
    """
    import torch

    room = [length - side for length in pictures.shape[-2:]]
    if min(room) < 0:
        raise UsageError(
            f"a patch of {side} pixels is larger than the pictures; give a smaller one"
        )
    corners = noise.uniform("patch", (len(pictures), 2)).cpu() * (torch.tensor(room) + 1)
    rows = zip(pictures, corners.int().tolist())
    return torch.stack([p[..., y : y + side, x : x + side] for p, (y, x) in rows])


def resized(
    pictures: Tensor, size: list[int] | tuple[int, ...], kernel: str = "bilinear"
) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), by a name in KERNELS; a smaller picture has no aliases."""
    from torch.nn.functional import interpolate

    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    return interpolate(pictures, tuple(size), mode=kernel, antialias=kernel != "area")


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    """(B, C, H, W) under a Gaussian of standard deviation `sigma` pixels; the border is continued.

    A Gaussian that is narrower than a fifth of a pixel changes nothing.
    """
    import torch
    from torch.nn.functional import conv2d, pad

    if sigma < 0.2:
        return pictures
    radius = min(round(3 * sigma) + 1, min(pictures.shape[-2:]) - 1)
    along = torch.arange(-radius, radius + 1, dtype=pictures.dtype, device=pictures.device)
    weights = torch.exp(-(along**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(pictures.shape[1], 1, 1, -1)
    padded = pad(pictures, (radius,) * 4, mode="replicate")
    rows = conv2d(padded, weights, groups=pictures.shape[1])
    return conv2d(rows, weights.mT, groups=pictures.shape[1])


def blocky(pictures: Tensor, step: float) -> Tensor:
    """(B, C, H, W) with the cosine coefficients of its 8x8 blocks rounded, as a JPEG keeps them.

    step: of the rounding at the lowest frequency, in the scale of the pixels; it is four times as
    large at the highest.  0 changes nothing.  Colours are rounded as they are, unlike in a JPEG.
    """
    import torch
    from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

    if step <= 0:
        return pictures
    height, width = pictures.shape[-2:]
    padded = pad(pictures, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    channels = pictures.shape[1]
    blocks = pixel_unshuffle(padded, BLOCK).unflatten(1, (channels, BLOCK, BLOCK))
    cosines = torch.tensor(_cosines(), dtype=pictures.dtype, device=pictures.device)
    found = torch.einsum("uy,vx,bcyxhw->bcuvhw", cosines, cosines, blocks)
    along = torch.arange(BLOCK, dtype=pictures.dtype, device=pictures.device)
    steps = step * (1 + 3 * (along[:, None] + along) / (2 * BLOCK - 2))[..., None, None]
    found = (found / steps).round() * steps
    blocks = torch.einsum("uy,vx,bcuvhw->bcyxhw", cosines, cosines, found)
    whole = pixel_shuffle(blocks.flatten(1, 3), BLOCK)
    return whole[..., :height, :width]


@cache
def _cosines() -> list[list[float]]:
    """The orthonormal cosine transform of a block's rows, (frequency, place)."""
    scale = [sqrt((1 if u == 0 else 2) / BLOCK) for u in range(BLOCK)]
    places = [(2 * x + 1) * pi / (2 * BLOCK) for x in range(BLOCK)]
    return [[scale[u] * cos(u * place) for place in places] for u in range(BLOCK)]
