"""Pictures and texts as Versatile Diffusion is given them: CLIP's state of every token, projected.

Every state of a sample is divided by the norm of one of them, the class token's of a picture and
the end mark's of a text, so that this one has length 1.

Shapes: B samples, N patches, L text tokens, D width of the space that CLIP's two encoders share.
Sources: Xu et al., "Versatile Diffusion", 2022, arXiv 2211.08332; Radford et al., "Learning
Transferable Visual Models From Natural Language Supervision", 2021, arXiv 2103.00020 (L/14: 256
patches, 77 tokens, 768).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from everyway.codecs.encoders import CLIP_L14_TEXT, CLIP_L14_VISION, configured, prepared
from everyway.codecs.published_tokens import ClipTokens


class ImageContext(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> (B, 1 + N, D), the class token first.

    vision: the settings of a CLIPVisionConfig.
    """

    def __init__(self, vision: Mapping[str, Any] = CLIP_L14_VISION) -> None:
        super().__init__()
        self.model = CLIPVisionModelWithProjection(configured(CLIPVisionConfig, vision))
        self.side, self.patch = vision["image_size"], vision["patch_size"]

    def encode(self, raw: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: (B, 1, H, W) in [0, 1], 1 is kept; what is not kept is not seen, and has no tokens
        of its own either."""
        pixels = prepared(raw.float(), self.side)
        return self.states(pixels, None if mask is None else self.token_weights(mask))

    def token_weights(self, mask: Tensor) -> Tensor | None:
        """(B, 1 + N, 1): how much of each patch is kept, and first how much of all; None where that
        is everything."""
        size = (self.side, self.side)
        mask = F.interpolate(mask.float().clamp(0, 1), size, mode="bilinear", align_corners=False)
        if bool((mask == 1).all()):
            return None
        patches = F.avg_pool2d(mask, self.patch).flatten(1)
        return torch.cat([mask.flatten(1).mean(1, keepdim=True), patches], 1)[..., None]

    def states(self, pixels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Of prepared pixels (B, 3, side, side).  weights: of tokens, twice: as they go in, with
        their positions, and as they come out."""
        tower = self.model.vision_model
        h = tower.embeddings(pixels.to(self.model.dtype))
        h = h if weights is None else h * weights.to(h)
        h = tower.encoder(inputs_embeds=tower.pre_layrnorm(h)).last_hidden_state
        made = self.projected(h)
        return made if weights is None else made * weights.to(made)

    def projected(self, hidden: Tensor) -> Tensor:
        """Of the last hidden states, before their norm."""
        made = self.model.visual_projection(self.model.vision_model.post_layernorm(hidden))
        return made / made[:, :1].norm(dim=-1, keepdim=True)


class TextContext(nn.Module):
    """Sentences -> (B, length, D); the padding after a sentence is encoded as well.

    tokenizer: the JSON of CLIP's tokenizer.  text: the settings of a CLIPTextConfig.
    Raises UsageError where their vocabularies differ.
    """

    def __init__(
        self, tokenizer: str, text: Mapping[str, Any] = CLIP_L14_TEXT, length: int = 77
    ) -> None:
        super().__init__()
        self.tokens = ClipTokens(tokenizer, length).of(text["vocab_size"])
        self.model = CLIPTextModelWithProjection(configured(CLIPTextConfig, text))

    def encode(self, raw: Sequence[str]) -> Tensor:
        return self.states(self.tokens.encode(raw))

    def states(self, ids: Tensor) -> Tensor:
        """(B, length, D) of ids; the end mark is the first of the largest id."""
        ids = ids.to(self.model.device)
        hidden = self.model.text_model(input_ids=ids).last_hidden_state
        return self.projected(hidden, ids.argmax(1))

    def projected(self, hidden: Tensor, end: Tensor) -> Tensor:
        """Of the last hidden states, after their norm.  end: (B,), the place of each end mark."""
        made = self.model.text_projection(hidden)
        return made / made[torch.arange(len(made)), end].norm(dim=-1)[:, None, None]
