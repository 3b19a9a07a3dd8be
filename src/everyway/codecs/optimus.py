"""Optimus: BERT reads a sentence into one vector, GPT-2 writes a sentence from it.

The vector is given to GPT-2 twice: added to the embedding of every token, and as one position
before the first, whose key and value, one and the same vector, each layer has of its own.

Shapes: B sentences, N tokens, D width of the latent.
Sources: Li et al., "Optimus: Organizing Sentences via Pre-trained Modeling of a Latent Space",
2020, arXiv 2004.04092; Xu et al., "Versatile Diffusion", 2022, arXiv 2211.08332.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, DynamicCache, GPT2Config, GPT2LMHeadModel

from everyway.codecs.encoders import configured
from everyway.codecs.published_tokens import SentenceTokens, WordPieces
from everyway.data.cleaning import without_repeats

BERT_BASE = {"vocab_size": 28996}
GPT2_SMALL = {"vocab_size": 50260}
"""What their configs have beside transformers' own values."""


class Optimus(nn.Module):
    """Sentences <-> (B, 1, D).

    word_pieces: the JSON of BERT's tokenizer.  reader: that of GPT-2's.  encoder, decoder: the
    settings of a BertConfig and of a GPT2Config.  dim: D.  longest: most tokens of a sentence that
    is written, its two marks among them.
    temperature: of drawing the next token; 0 takes the likeliest.
    """

    def __init__(
        self,
        word_pieces: str,
        reader: str,
        encoder: Mapping[str, Any] = BERT_BASE,
        decoder: Mapping[str, Any] = GPT2_SMALL,
        dim: int = 768,
        longest: int = 30,
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        self.longest, self.temperature = longest, temperature
        self.tokens = WordPieces(word_pieces, encoder["vocab_size"])
        self.written = SentenceTokens(reader, decoder["vocab_size"])
        for name, part in parts(encoder, decoder, dim).items():
            self.add_module(name, part)

    def encode(self, raw: Sequence[str]) -> Tensor:
        """The means of the latents."""
        return self.posterior(self.tokens.encode(raw).to(self.encoder.device))[0][:, None]

    def posterior(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, D) of ids (B, N), of which 0 is padding."""
        pooled = self.encoder(ids, attention_mask=(ids > 0).long()).pooler_output
        mean, logvar = self.moments(pooled).chunk(2, -1)
        return mean, logvar

    @torch.no_grad()
    def decode(self, state: Tensor) -> list[str]:
        """Sentences that say nothing twice in a row, as the release cleaned them."""
        said = self.written.decode(self.draw(state[:, 0], self.temperature))
        return [without_repeats(sentence) for sentence in said]

    def draw(
        self, latent: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B, up to longest) ids of latents (B, D), the first the begin mark; after a row's end
        mark they mean nothing."""
        latent, (begin, end) = latent.to(self.memory.weight), self.written.marks
        ids = torch.full((len(latent), 1), begin, device=latent.device)
        while ids.shape[1] < self.longest - 1 and not (ids == end).any(1).all():
            scores = self.logits(latent, ids)[:, -1]
            if temperature:
                chances = (scores.float() / temperature).softmax(-1)
                following = torch.multinomial(chances, 1, generator=generator)
            else:
                following = scores.argmax(-1, keepdim=True)
            ids = torch.cat([ids, following], 1)
        ended = (ids == end).any(1, keepdim=True)
        return torch.cat([ids, ids.new_full((len(ids), 1), end)], 1) if not ended.all() else ids

    def logits(self, latent: Tensor, ids: Tensor) -> Tensor:
        """(B, N, V) of what follows each of ids (B, N), of latents (B, D)."""
        return self.decoder.lm_head(self.hidden(latent, ids))

    def hidden(
        self, latent: Tensor, ids: Tensor, everywhere: bool = True, memory: bool = True
    ) -> Tensor:
        """GPT-2's last states (B, N, width).  everywhere, memory: the two ways of the latent, each
        of which can be closed to see what it is for."""
        writer = self.decoder.transformer
        given = writer.wte(ids)
        if everywhere:
            given = given + self.everywhere(latent)[:, None]
        if not memory:
            return writer(inputs_embeds=given).last_hidden_state
        places = torch.arange(1, 1 + ids.shape[1], device=ids.device)[None]
        past = remembered(
            self.memory(latent), self.decoder.config
        )  # by its place: its name has changed in transformers
        return writer(None, past, inputs_embeds=given, position_ids=places).last_hidden_state


def remembered(memory: Tensor, config: GPT2Config) -> DynamicCache:
    """Vectors of all layers (B, layers x width) as one past position of GPT-2, in every layer as
    key and value alike."""
    cache = DynamicCache()
    for layer, vector in enumerate(memory.chunk(config.n_layer, -1)):
        heads = vector.unflatten(-1, (config.n_head, -1))[:, :, None]  # (B, heads, 1, Dh)
        cache.update(heads, heads, layer)
    return cache


def parts(encoder: Mapping[str, Any], decoder: Mapping[str, Any], dim: int) -> dict[str, nn.Module]:
    """What an `Optimus` of these settings is made of, by name."""
    reads, writes = configured(BertConfig, encoder), configured(GPT2Config, decoder)
    return {
        "encoder": BertModel(reads),
        "moments": nn.Linear(reads.hidden_size, 2 * dim, bias=False),
        "decoder": GPT2LMHeadModel(writes),
        "memory": nn.Linear(dim, writes.n_layer * writes.n_embd, bias=False),
        "everywhere": nn.Linear(dim, writes.n_embd, bias=False),
    }
