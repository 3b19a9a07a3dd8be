"""A text as a network of latents is conditioned on it: CLIP's state of every token, as it is.

B sentences, L tokens, D width.
Source: Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models", 2022,
arXiv 2209.12152 (CLIP L/14, 77 tokens of 768).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from everyway.codecs.encoders import CLIP_L14_TEXT, TextStates
from everyway.codecs.published_tokens import ClipTokens


class ClipStates(nn.Module):
    """Sentences -> (B, length, D), the last hidden states after the final norm, padding and all.

    tokenizer: the JSON of CLIP's tokenizer.  text: the settings of a CLIPTextConfig.
    Raises UsageError where their vocabularies differ.
    """

    def __init__(
        self, tokenizer: str, text: Mapping[str, Any] = CLIP_L14_TEXT, length: int = 77
    ) -> None:
        super().__init__()
        self.tokens = ClipTokens(tokenizer, length).of(text["vocab_size"])
        self.states = TextStates(text)
        self.dim = text["hidden_size"]

    def encode(self, raw: Sequence[str]) -> Tensor:
        return self.states(self.tokens.encode(raw))
