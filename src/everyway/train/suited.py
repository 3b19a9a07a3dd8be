"""Whether codecs can show some pictures and say some captions, measured before a training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from everyway.codecs.image_vae import psnr
from everyway.contracts import Codec
from everyway.data.reading import read
from everyway.data.sample import Sample, to_tensor
from everyway.errors import UsageError
from everyway.system import System
from everyway.systems import system_module

SHOWS, SAYS = 24.0, 0.98
"""Codecs serve from this dB of pictures on, and from this share of captions that come back."""
NAMED = 3
"""How many unknown words a line names."""


@dataclass(frozen=True, kw_only=True)
class Suited:
    """How well codecs serve.

    psnr_db: of pictures through the image codec and back; None where there is none.
    exact: the share of captions that come back word by word, None where there is no text codec.
    captions: how many were tried.  unknown: words that the text codec does not know.
    """

    psnr_db: float | None = None
    exact: float | None = None
    captions: int = 0
    unknown: tuple[str, ...] = ()

    @property
    def shows(self) -> bool:
        return self.psnr_db is None or self.psnr_db >= SHOWS

    @property
    def says(self) -> bool:
        return self.exact is None or self.exact >= SAYS

    @property
    def seen(self) -> str:
        """How the image codec serves, in words."""
        if self.shows:
            return f"{self.psnr_db:.1f} dB on your pictures"
        return f"{self.psnr_db:.1f} dB on your pictures, below {SHOWS:g}"

    @property
    def said(self) -> str:
        """How the text codec serves, in words."""
        right = f"{round(self.exact * self.captions)} of {self.captions} captions come back"
        if not self.unknown:
            return right
        named, rest = ", ".join(self.unknown[:NAMED]), len(self.unknown) - NAMED
        if rest <= 0:
            return f"{right}; unknown: {named}"
        return f"{right}; unknown: {named} and {rest} more words"


@torch.no_grad()
def suited(system: System, samples: Sequence[Sample], captions: Sequence[str]) -> Suited:
    """How the codecs of a system serve pictures and captions.

    samples: whose pictures are read in the system's size, and compared in their own.
    captions: tried on the codec of a text state, or else on that of a text condition, if it has a
    `decode`.
    """
    found: dict[str, Any] = {}
    codecs = {m.source: m.codec for m in system.modalities.values() if m.decodes}
    for condition in system.conditions.values():
        if condition.source == "text" and hasattr(condition.codec, "decode"):
            codecs.setdefault("text", condition.codec)
    if "image" in codecs and samples:
        side = system_module(system.name).image_size(system.config)
        pictures = to_tensor([s.image for s in samples])
        found["psnr_db"] = _shown(codecs["image"], pictures, side)
    if "text" in codecs and captions:
        right = [_comes_back(codecs["text"], caption) for caption in captions]
        found |= {"exact": sum(right) / len(right), "captions": len(right)}
        found["unknown"] = tuple(_unknown(codecs["text"], captions))
    return Suited(**found)


def _shown(codec: Codec, pictures: Tensor, side: int) -> float:
    """dB of pictures (N, 3, H, W), in their own size.  side: in which the codec reads them."""
    read = F.interpolate(pictures, (side, side), mode="area")
    made = [codec.decode(codec.encode(part)) for part in read.split(16)]
    made = F.interpolate(torch.cat(made), pictures.shape[-2:], mode="bilinear")
    return float(psnr(made, pictures))


def _comes_back(codec: Codec, caption: str) -> bool:
    """Whether a caption comes back word by word; with a lexicon, which rephrases captions, whether
    nothing of it is left out."""
    try:
        said = codec.decode(codec.encode([caption]))[0]
    except UsageError:
        return False
    lexicon = getattr(codec, "lexicon", None)
    if lexicon is None:
        return _words(said) == _words(caption)
    reading = read(caption, lexicon)
    return reading.scene is not None and not (reading.unread or reading.more or reading.several)


def _unknown(codec: Codec, captions: Sequence[str]) -> Iterator[str]:
    """The words of captions that the codec does not know, each once."""
    tokens, lexicon = getattr(codec, "tokens", None), getattr(codec, "lexicon", None)
    if lexicon is not None:
        found = (word for caption in captions for word in read(caption, lexicon).unread)
    else:
        found = (w for caption in captions for w in _words(caption) if not _known(codec, tokens, w))
    yield from dict.fromkeys(found)


def _known(codec: Codec, tokens: Any, word: str) -> bool:
    try:
        if tokens is None:
            codec.encode([word])
            return True
        return bool((tokens.encode([word]) != getattr(tokens, "unknown", -1)).all())
    except UsageError:
        return False


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
