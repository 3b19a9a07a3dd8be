"""Contrastive encoders (transformers' CLIP): the image embedding, and the states of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PretrainedConfig,
)

from everyway.codecs.whiten import Whiten
from everyway.errors import UsageError

T = TypeVar("T", bound=PretrainedConfig)
SMALL_VISION = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
    "projection_dim": 64,
}
SMALL_TEXT = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
    "projection_dim": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
CLIP_B32_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "projection_dim": 512,
    "hidden_act": "quick_gelu",
}
CLIP_L14_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
CLIP_L14_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "pad_token_id": 49407,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of pixels in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)


def configured(kind: type[T], settings: Mapping[str, Any]) -> T:
    """A config of transformers; ValueError in one line for settings that it cannot have."""
    try:
        return kind(**settings)
    except Exception as error:  # transformers has errors of its own
        raise UsageError(" ".join(str(error).split())) from None


class ImageEmbedding(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> one whitened vector (B, 1, projection_dim).

    vision: the settings of a CLIPVisionConfig.  The projected feature is not normalised (Bao et
    al. 2023, arXiv 2303.06555).  A generated embedding is not decoded.
    """

    def __init__(self, vision: Mapping[str, Any] = SMALL_VISION) -> None:
        super().__init__()
        self.model = CLIPVisionModelWithProjection(configured(CLIPVisionConfig, vision))
        self.side = vision["image_size"]
        self.whiten = Whiten(vision["projection_dim"])

    def features(self, images: Tensor) -> Tensor:
        """(B, projection_dim), before whitening."""
        return self.model(pixel_values=prepared(images, self.side)).image_embeds

    def encode(self, raw: Tensor) -> Tensor:
        return self.whiten(self.features(raw.float()))[:, None]

    def decode(self, state: Tensor) -> Tensor:
        return self.whiten.inverse(state)


class TextStates(nn.Module):
    """Token ids (B, L) -> CLIP's last hidden states (B, L, hidden_size), after its final norm.

    text: the settings of a CLIPTextConfig, vocab_size among them.
    """

    def __init__(self, text: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = CLIPTextModel(configured(CLIPTextConfig, text))

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids.to(self.model.device)).last_hidden_state


class WordStates(nn.Module):
    """Token ids (B, L) -> (B, L, hidden_size): a vector for each token, whatever stands around it.

    text: its hidden_size and vocab_size.
    """

    def __init__(self, text: Mapping[str, Any]) -> None:
        super().__init__()
        self.table = nn.Embedding(text["vocab_size"], text["hidden_size"])

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids.to(self.table.weight.device))


class Contrastive(nn.Module):
    """Both encoders with the text's projection and the temperature, for training them together.

    The image tower lives on in an `ImageEmbedding`; the text tower has then done its work
    (docs/decisions/0007).
    """

    def __init__(self, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        super().__init__()
        self.image = ImageEmbedding(vision)
        self.text = TextStates(text)
        self.project = nn.Linear(text["hidden_size"], vision["projection_dim"], bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.6593))  # log(1 / 0.07)

    def forward(self, images: Tensor, ids: Tensor, end: int) -> Tensor:
        """The symmetric cross entropy of matching each picture to its text within the batch."""
        a = F.normalize(self.image.features(images), dim=-1)
        b = F.normalize(self.sentence(ids, end), dim=-1)
        scores = a @ b.T * self.log_scale.clamp(max=4.6052).exp()
        wanted = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, wanted) + F.cross_entropy(scores.T, wanted)) / 2

    def sentence(self, ids: Tensor, end: int) -> Tensor:
        """(B, projection_dim): the projected state of each text's end mark."""
        at = (ids == end).int().argmax(1)
        return self.project(self.text(ids)[torch.arange(len(ids)), at])


def prepared(images: Tensor, side: int) -> Tensor:
    """Pictures in [-1, 1] resized (bicubic) to `side` and normalised with CLIP's mean and std."""
    if images.shape[-1] != side:
        images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return ((images.clamp(-1, 1) + 1) / 2 - mean) / std
