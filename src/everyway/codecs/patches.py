"""Contexts of pictures for a small world, in three parts, as a vision transformer has them.

CLIP's tokens of patches tell what a patch shows, where it is, and, because they attend to each
other, what the whole picture is like.  The last is the same in all of them, so that it is their
strongest principal component, which `controls.focus` takes for the style.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everyway.codecs.pca import PCA

LUMA = (0.299, 0.587, 0.114)
HARD = 0.8
"""Brightness, in [-1, 1], changes by more than this at a hard edge."""
TONES = 11
PLAIN = 0.02
"""Standard deviation of the brightness in a patch that shows nothing."""


class PatchContext(nn.Module):
    """Pictures (B, 3, side, side) in [-1, 1] -> tokens (B, (side / patch)^2, width), row by row.

    Of each token `channels` numbers are what its patch shows: the axes, whitened, of the patch's
    brightness less its mean; TONES are the `tone` of the whole picture, times `tone_gain`; and the
    others are where the patch is: `waves` cosines along each side, the longest the strongest, times
    `place_gain`.

    The tone of a picture is the statistics over its places, as in Huang and Belongie, "Arbitrary
    Style Transfer in Real-time with Adaptive Instance Normalization", 2017, arXiv 1703.06868.
    """

    def __init__(
        self,
        side: int = 96,
        patch: int = 8,
        channels: int = 32,
        waves: int = 8,
        tone_gain: float = 1.5,
        place_gain: float = 5.0,
    ) -> None:
        super().__init__()
        self.side, self.patch = side, patch
        self.tone_gain, self.place_gain = tone_gain, place_gain
        self.count, self.width = (side // patch) ** 2, channels + TONES + 2 * waves
        self.pca = PCA(patch**2, channels)
        self.register_buffer("tone_mean", torch.zeros(TONES))
        self.register_buffer("tone_std", torch.ones(TONES))
        self.register_buffer("places", _places(side // patch, waves), persistent=False)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """To the patches of images (N, 3, side, side) that show something, and to their tones."""
        shown = self.patches(images).flatten(0, 1)
        self.pca.fit(shown[shown.std(1) > PLAIN])
        tones = tone(images.float())
        self.tone_mean.copy_(tones.mean(0))
        self.tone_std.copy_(tones.std(0))

    def patches(self, images: Tensor) -> Tensor:
        """(B, count, patch^2): the brightness of each patch, less its mean."""
        cut = F.unfold(brightness(images.float())[:, None], self.patch, stride=self.patch)
        return (cut - cut.mean(1, keepdim=True)).transpose(1, 2)

    def encode(self, raw: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: (B, 1, side, side) in [0, 1], 1 is seen; each token times how much of its patch is
        seen."""
        raw = raw.to(self.tone_mean.device).float()
        tones = self.tone_gain * (tone(raw) - self.tone_mean) / self.tone_std
        like = (len(raw), self.count, -1)
        parts = [
            self.pca(self.patches(raw)),
            tones[:, None].expand(like),
            self.place_gain * self.places.expand(like),
        ]
        tokens = torch.cat(parts, 2)
        if mask is None:
            return tokens
        seen = F.interpolate(mask.to(tokens), (self.side // self.patch,) * 2, mode="area")
        return tokens * seen.flatten(1)[..., None]


def brightness(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, H, W)."""
    return (images * torch.tensor(LUMA).to(images)[:, None, None]).sum(1)


def tone(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, TONES), statistics over all places.

    Of each channel mean and standard deviation; of blue and of red, less the brightness, the
    standard deviation; of the edges standard deviation, mean, and the share of hard ones.
    """
    light = brightness(images)
    down = (light[:, 1:] - light[:, :-1]).abs()[:, :, :-1]
    across = (light[:, :, 1:] - light[:, :, :-1]).abs()[:, :-1]
    edges, colours = (down + across).flatten(1), (images[:, ::2] - light[:, None]).flatten(2)
    means, stds = images.mean((2, 3)), images.std((2, 3))
    of_edges = [edges.std(1), edges.mean(1), (edges > HARD).float().mean(1)]
    return torch.cat([means, stds, colours.std(2).flip(1), torch.stack(of_edges, 1)], 1)


def _places(side: int, waves: int) -> Tensor:
    """(side^2, 2 waves): cosines along the rows, then along the columns, each of a mean square norm
    of 1.  The variance of a wave is as its length."""
    k = torch.arange(1, waves + 1)
    along = torch.cos(math.pi * (torch.arange(side)[:, None] + 0.5) * k / side) / k.sqrt()
    along = along / along.square().sum(1).mean().sqrt()
    return torch.cat([along.repeat_interleave(side, 0), along.repeat(side, 1)], 1)
