"""How eDiff-I reads a text: the states of T5, and those of CLIP with their summary.

B sentences, L tokens, D width.
Sources: Balaji et al., "eDiff-I", 2022, arXiv 2211.01324 (T5-XXL, 113 tokens of 4096; CLIP L/14, 77
tokens of 768 and one summary); Raffel et al., "Exploring the Limits of Transfer Learning with a
Unified Text-to-Text Transformer", 2020, arXiv 1910.10683.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)

from everyway.codecs.encoders import CLIP_L14_TEXT, ImageEmbedding, configured
from everyway.codecs.published_tokens import ClipTokens
from everyway.codecs.text_tokens import phrase_tokens, tokenizer_of
from everyway.contracts import Context
from everyway.errors import UsageError

T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
"""The encoder of T5 v1.1 XXL: 4,762,310,656 parameters."""
END, PAD = "</s>", "<pad>"


class T5Tokens:
    """Sentences -> ids (B, length): the tokens, an end mark, padding; longer ones are cut.

    spec: the JSON of T5's tokenizer.
    """

    def __init__(self, spec: str, length: int) -> None:
        self.tokenizer, self.length = tokenizer_of(spec), length
        found = [self.tokenizer.token_to_id(mark) for mark in (END, PAD)]
        if None in found:
            raise UsageError(f"the tokenizer has no {END} or {PAD}; give that of a T5")
        self.end, self.pad = found

    def encode(self, texts: Sequence[str]) -> Tensor:
        out = torch.full((len(texts), self.length), self.pad, dtype=torch.long)
        for row, text in zip(out, texts, strict=True):
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids[: self.length - 1]
            row[: len(ids) + 1] = torch.tensor([*ids, self.end])
        return out

    def places(self, text: str, phrase: str) -> Tensor:
        """(length,) bool, True where `encode` has the tokens of a phrase of the text."""
        found = phrase_tokens(self.tokenizer, text, phrase)
        out = torch.zeros(self.length, dtype=torch.bool)
        out[[k for k in found if k < self.length - 1]] = True
        return out


class T5States(nn.Module):
    """Sentences -> a context (B, length, d_model) of T5's last states, its padding masked.

    tokenizer: the JSON of T5's tokenizer.  text: the settings of a T5Config.
    """

    def __init__(self, tokenizer: str, text: Mapping[str, Any] = T5_XXL, length: int = 113) -> None:
        super().__init__()
        self.tokens = T5Tokens(tokenizer, length)
        _fits(self.tokens, text)
        self.model = T5EncoderModel(configured(T5Config, text))

    def encode(self, raw: Sequence[str]) -> Context:
        ids = self.tokens.encode(raw).to(self.model.device)
        mask = ids != self.tokens.pad
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return Context(tokens=states, mask=mask)


class ClipSentence(nn.Module):
    """Sentences -> (B, 1 + length, D): CLIP's projected state of the end mark, which sums the
    sentence up, and the last states of all tokens, padding and all.

    tokenizer: the JSON of CLIP's tokenizer.  text: the settings of a CLIPTextConfig whose
    projection is as wide as its states.
    """

    def __init__(
        self, tokenizer: str, text: Mapping[str, Any] = CLIP_L14_TEXT, length: int = 77
    ) -> None:
        super().__init__()
        config = configured(CLIPTextConfig, text)
        if config.projection_dim != config.hidden_size:
            raise UsageError(
                f"the states are {config.hidden_size} wide and their summary "
                f"{config.projection_dim}; give a text encoder where both are the same"
            )
        self.tokens = ClipTokens(tokenizer, length)
        _fits(self.tokens, text)
        self.model = CLIPTextModelWithProjection(config)

    def encode(self, raw: Sequence[str]) -> Tensor:
        made = self.model(input_ids=self.tokens.encode(raw).to(self.model.device))
        return torch.cat([made.text_embeds[:, None], made.last_hidden_state], 1)


def _fits(tokens: T5Tokens | ClipTokens, text: Mapping[str, Any]) -> None:
    """UsageError for more tokens than the text network has vectors (it may have more)."""
    count = tokens.tokenizer.get_vocab_size()
    if count > text["vocab_size"]:
        raise UsageError(
            f"the tokenizer has {count} tokens and the text network {text['vocab_size']}; give the "
            "tokenizer that was published with it"
        )


def filled(codec: T5States | ClipSentence | ImageEmbedding, folder: str | Path) -> None:
    """Takes the weights that transformers keeps in `folder`, those of a whole CLIP as well.

    Raises UsageError where there are none, or some are missing.
    """
    kind: type[PreTrainedModel] = type(codec.model)
    try:
        made, report = kind.from_pretrained(
            folder, config=codec.model.config, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{folder} holds no {kind.__name__}: {str(error).splitlines()[0]}"
        ) from None
    if missing := sorted(report["missing_keys"]):
        raise UsageError(f"{folder} holds no whole {kind.__name__}; it lacks {missing[0]}")
    codec.model.load_state_dict(made.state_dict())
