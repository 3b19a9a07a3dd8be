"""A text as what a network is conditioned on: CLIP's state of every token, each of length 1.

B sentences, L tokens, D width.
Sources: Gu et al., "Vector Quantized Diffusion Model for Text-to-Image Synthesis", 2021,
arXiv 2111.14822; Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", 2021, arXiv 2103.00020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from everyway.codecs.encoders import TextStates
from everyway.codecs.published_tokens import ClipTokens

CLIP_B32_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "projection_dim": 512,
    "hidden_act": "quick_gelu",
    "pad_token_id": 49407,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
"""63,165,952 parameters, 63,428,096 with the projection."""


class ClipText(nn.Module):
    """Sentences -> (B, length, D), in lower case; the padding after a sentence is encoded as well.

    The authors ran it in half precision, whose features differ a little.

    tokenizer: the JSON of CLIP's tokenizer.  text: the settings of a CLIPTextConfig.
    projection: width of the projection into the space that CLIP shares with pictures, which the
    published files hold and nothing here reads; 0 is none.
    """

    def __init__(
        self,
        tokenizer: str,
        text: Mapping[str, Any] = CLIP_B32_TEXT,
        length: int = 77,
        projection: int = 0,
    ) -> None:
        super().__init__()
        self.tokens = ClipTokens(tokenizer, length, pad=0).of(text["vocab_size"])
        self.states = TextStates(text)
        self.text_projection = None
        if projection:
            width = text["hidden_size"]
            self.text_projection = nn.Parameter(torch.randn(width, projection) * width**-0.5)

    def encode(self, raw: Sequence[str]) -> Tensor:
        return self.latent(self.tokens.encode([text.lower() for text in raw]))

    def latent(self, ids: Tensor) -> Tensor:
        """(B, L) ids -> (B, L, D)."""
        states = self.states(ids)
        return states / states.norm(dim=-1, keepdim=True)
