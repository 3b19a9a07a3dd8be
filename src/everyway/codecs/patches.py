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
from everyway.contracts import Noise

LUMA = (0.299, 0.587, 0.114)
HARD = 0.8
"""Brightness, in [-1, 1], changes by more than this at a hard edge."""
TONES = 11
SMOOTH, FINE = (5.5, 5.0, 5.0, 4.5), 0.3
"""Mean squares of the waves that say where a patch is: of the long ones, of each of the others."""
PLAIN = 0.02
"""Standard deviation of the brightness in a patch that shows nothing."""


class PatchContext(nn.Module):
    """Pictures (B, 3, side, side) in [-1, 1] -> tokens (B, (side / patch)^2, width), row by row.

    Of each token `channels` numbers are what its patch shows: the axes, whitened, of the patch's
    brightness less its mean, times `shown_gain`.  TONES are the `tone` of the whole picture, times
    `tone_gain`, and one is `constant`: all tokens share both.  The others are where the patch is
    (`places`).

    The tone of a picture is the statistics over its places, as in Huang and Belongie, "Arbitrary
    Style Transfer in Real-time with Adaptive Instance Normalization", 2017, arXiv 1703.06868.
    """

    def __init__(
        self,
        side: int = 96,
        patch: int = 8,
        channels: int = 32,
        waves: int = 8,
        shown_gain: float = 0.3,
        tone_gain: float = 0.5,
        constant: float = 2.5,
    ) -> None:
        super().__init__()
        self.side, self.patch, self.waves = side, patch, waves
        self.shown_gain, self.tone_gain, self.constant = shown_gain, tone_gain, constant
        self.count, self.parts = (side // patch) ** 2, (channels, TONES + 1, 2 * waves)
        self.width = sum(self.parts)
        self.pca = PCA(patch**2, channels)
        self.register_buffer("tone_mean", torch.zeros(TONES))
        self.register_buffer("tone_std", torch.ones(TONES))

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
        shared = F.pad(tones, (0, 1), value=self.constant)[:, None]
        where = places(self.side // self.patch, self.waves).to(raw)
        like = (len(raw), self.count, -1)
        shown = self.shown_gain * self.pca(self.patches(raw))
        tokens = torch.cat([shown, shared.expand(like), where.expand(like)], 2)
        if mask is None:
            return tokens
        seen = F.interpolate(mask.to(tokens), (self.side // self.patch,) * 2, mode="area")
        return tokens * seen.flatten(1)[..., None]

    def varied(self, tokens: Tensor, noise: Noise) -> Tensor:
        """In training what all tokens share is hidden from every fourth variation, and what patches
        show from another fourth, so that a picture without either is nothing new."""
        drawn = noise.uniform("hidden", (len(tokens), 1, 1)).to(tokens.device)
        shown, shared, where = tokens.split(self.parts, 2)
        kept = [shown * (drawn >= 0.25), shared * ((drawn < 0.25) | (drawn >= 0.5)), where]
        return torch.cat(kept, 2)


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


def places(side: int, waves: int) -> Tensor:
    """(side^2, 2 waves): where each place of a map is, by cosines along its rows and its columns.

    As positions that a transformer has learned, smooth ones are the strongest.  First of all is
    how near to the border a place is, which the others tell, too.
    """
    k, at = torch.arange(1, waves + 1), torch.arange(side)[:, None] + 0.5
    along = math.sqrt(2) * torch.cos(math.pi * at * k / side)  # mean square 1
    rows, columns = along.repeat_interleave(side, 0), along.repeat(side, 1)
    (down, ring, *fine), (across, other, *finer) = rows.T, columns.T
    border, saddle = (ring + other) / math.sqrt(2), (ring - other) / math.sqrt(2)
    smooth = torch.stack([border, down, across, saddle], 1) * torch.tensor(SMOOTH).sqrt()
    return torch.cat([smooth, torch.stack([*fine, *finer], 1) * math.sqrt(FINE)], 1)
