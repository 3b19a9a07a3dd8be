"""A small network that names what a picture shows: two slots that look, one glance at it all.

Legend: B pictures, C channels, N = 8 * 8 places of the feature map.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_SLOTS = ("first", "second")


class Classifier(nn.Module):
    """(B, 3, 64, 64) in [-1, 1] -> head -> logits.

    heads: name -> number of classes; must hold "first" and "second", whose classes agree except
    that "second" has one more, no object.  The slots share their classifier, so that an object
    learned in one is known in the other; every other head reads both slots and the whole.
    """

    def __init__(self, heads: Mapping[str, int], width: int = 32, dim: int = 192) -> None:
        super().__init__()
        self.heads, w = dict(heads), width
        self.trunk = nn.Sequential(
            *_block(3, w, kernel=5, stride=2),  # 32 x 32
            *_block(w, w),
            *_block(w, 2 * w, stride=2),  # 16 x 16
            *_block(2 * w, 2 * w),
            *_block(2 * w, 4 * w, stride=2),  # 8 x 8
            *_block(4 * w, 4 * w),
            *_block(4 * w, dim),
        )
        self.whole = nn.Sequential(
            *_block(dim, 2 * w, stride=2),  # 4 x 4
            nn.Flatten(),
            nn.Linear(2 * w * 16, dim),
            nn.ReLU(inplace=True),
        )
        self.query = nn.Linear(dim, 2 * 32)
        self.key = nn.Conv2d(dim, 32, 1)
        self.place = nn.Parameter(0.02 * torch.randn(1, 32, 64))
        self.name = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(inplace=True))
        self.classes = nn.Linear(dim, heads["first"])
        self.none = nn.Linear(3 * dim, 1)
        rest = {k: n for k, n in heads.items() if k not in _SLOTS}
        self.rest = nn.ModuleDict({k: nn.Linear(3 * dim, n) for k, n in rest.items()})

    def features(self, images: Tensor) -> Tensor:
        """(B, 3 dim): the whole and both slots, for distances between sets of pictures."""
        return self._look(images)[0]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.logits_and_look(images)[0]

    def logits_and_look(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The logits, and the log of where each slot looks (B, 2, N), which training guides."""
        features, look = self._look(images)
        slots = features.view(len(images), 3, -1)[:, 1:]
        first, second = self.classes(self.name(slots)).unbind(1)
        logits = {"first": first, "second": torch.cat([second, self.none(features)], 1)}
        return logits | {name: head(features) for name, head in self.rest.items()}, look

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.trunk(images)  # (B, C, 8, 8)
        whole = self.whole(maps)  # (B, C)
        keys = self.key(maps).flatten(2) + self.place  # (B, 32, N)
        scores = self.query(whole).view(-1, 2, 32) @ keys  # (B, 2, N)
        look = (scores * 32**-0.5).log_softmax(-1)
        slots = look.exp() @ maps.flatten(2).transpose(1, 2)  # (B, 2, C)
        return torch.cat([whole, slots.flatten(1)], 1), look


def _block(inside: int, outside: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    ]
