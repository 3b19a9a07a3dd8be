"""Text latents of variational autoencoders: BERT reads a sentence, GPT-2 writes it from a latent.

Two with one interface: one vector a sentence (`VectorText`), as published, and a sequence of
vectors (`SequenceText`), which is for what one vector loses: exact words, each said once.
Sources: Li et al., "Optimus: Organizing Sentences via Pre-trained Modeling of a Latent Space",
2020, arXiv 2004.04092; Xu et al., "Versatile Diffusion", 2022, arXiv 2211.08332.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from everyway.codecs.encoders import configured
from everyway.codecs.optimus import remembered
from everyway.codecs.text_tokens import Tokens
from everyway.codecs.whiten import Whiten

SMALL_READER = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
SMALL_WRITER = {
    "n_embd": 128,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}


class TextVAE(nn.Module):
    """Sentences <-> (B, length, dim), the means of their latents, whitened.

    tokenizer: the JSON of a tokenizer, as for `Tokens`.  longest: most tokens of a sentence, its
    end mark among them.  reader, writer: the settings of a BertConfig and of a GPT2Config; their
    vocabularies are set from the tokenizer.
    """

    def __init__(
        self,
        tokenizer: str,
        longest: int,
        length: int,
        dim: int,
        reader: Mapping[str, Any],
        writer: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.length, self.dim = length, dim
        self.tokens = Tokens(tokenizer, longest)
        marks = {"vocab_size": len(self.tokens), "pad_token_id": self.tokens.pad}
        self.reader = BertModel(configured(BertConfig, {**reader, **marks}))
        ends = {"bos_token_id": self.tokens.end, "eos_token_id": self.tokens.end}
        self.writer = GPT2LMHeadModel(configured(GPT2Config, {**writer, **marks, **ends}))
        self.moments = nn.Linear(self.reader.config.hidden_size, 2 * dim, bias=False)
        self.whiten = Whiten(dim)

    def read(self, ids: Tensor) -> Tensor:
        """ids (B, N), padding 0 and not attended to -> (B, length, hidden), what moments are of."""
        raise NotImplementedError

    def written(self, latent: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, N, V) of what follows each of ids (B, N), of latents (B, length, dim)."""
        raise NotImplementedError

    def posterior(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents of ids, (B, length, dim) each."""
        mean, logvar = self.moments(self.read(ids)).chunk(2, -1)
        return mean, logvar

    def begun(self, ids: Tensor) -> Tensor:
        """ids (B, N) after the mark that begins a sentence, which is that of its end."""
        return F.pad(ids, (1, 0), value=self.tokens.end)

    def encode(self, raw: Sequence[str]) -> Tensor:
        """Raises PromptError for texts that cannot be read."""
        ids = self.tokens.encode(raw).to(self.moments.weight.device)
        return self.whiten(self.posterior(self.begun(ids))[0])

    @torch.no_grad()
    def decode(self, state: Tensor) -> list[str]:
        """The likeliest token after each one written."""
        latent = self.whiten.inverse(state.to(self.moments.weight))
        ids = self.begun(torch.empty(len(latent), 0, dtype=torch.long, device=latent.device))
        for _ in range(self.tokens.length):
            following = self.written(latent, ids)[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, following], 1)
            if (ids[:, 1:] == self.tokens.end).any(1).all():
                break
        return self.tokens.decode(ids[:, 1:])

    def losses(self, ids: Tensor, draw: Tensor, free: float) -> tuple[Tensor, Tensor]:
        """(cross entropy of each sentence, its divergence from the prior), (B,) nats each.

        ids (B, N) of `Tokens`.  draw: standard normal, as the latents.  free: nats of each number
        of a latent that cost nothing (free bits: Kingma et al., 2016, arXiv 1606.04934).
        """
        mean, logvar = self.posterior(self.begun(ids))
        latent = mean + (0.5 * logvar).exp() * draw
        logits = self.written(latent, self.begun(ids[:, :-1])).flatten(0, 1)
        wrong = F.cross_entropy(logits, ids.flatten(), reduction="none").view(ids.shape)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
        return (
            (wrong * self.tokens.mask(ids)).sum(1),
            divergence.clamp(min=free).flatten(1).sum(1),
        )

    @torch.no_grad()
    def measure(self, texts: Sequence[str]) -> None:
        """Fix the whitening from `texts`."""
        ids = self.begun(self.tokens.encode(texts))
        self.whiten.measure(self.posterior(ids)[0].flatten(0, 1))


class VectorText(TextVAE):
    """One vector of the first token's pooled state, given to GPT-2 as `optimus.Optimus` does, which
    has the published vocabularies: added to every token, and as one past position."""

    def __init__(
        self,
        tokenizer: str,
        longest: int,
        dim: int,
        reader: Mapping[str, Any] = SMALL_READER,
        writer: Mapping[str, Any] = SMALL_WRITER,
    ) -> None:
        super().__init__(tokenizer, longest, 1, dim, reader, writer)
        own = self.writer.config
        self.memory = nn.Linear(dim, own.n_layer * own.n_embd, bias=False)
        self.everywhere = nn.Linear(dim, own.n_embd, bias=False)

    def read(self, ids: Tensor) -> Tensor:
        attended = (ids != self.tokens.pad).long()
        return self.reader(ids, attention_mask=attended).pooler_output[:, None]

    def written(self, latent: Tensor, ids: Tensor) -> Tensor:
        latent, writer = latent[:, 0], self.writer.transformer
        places = torch.arange(1, 1 + ids.shape[1], device=ids.device)[None]
        past = remembered(self.memory(latent), self.writer.config)
        given = writer.wte(ids) + self.everywhere(latent)[:, None]
        states = writer(None, past, inputs_embeds=given, position_ids=places).last_hidden_state
        return self.writer.lm_head(states)


class SequenceText(TextVAE):
    """`length` vectors, of the states of as many tokens and padding; GPT-2 reads them first."""

    def __init__(
        self,
        tokenizer: str,
        longest: int,
        length: int,
        dim: int,
        reader: Mapping[str, Any] = SMALL_READER,
        writer: Mapping[str, Any] = SMALL_WRITER,
    ) -> None:
        super().__init__(tokenizer, longest, length, dim, reader, writer)
        self.widen = nn.Linear(dim, self.writer.config.n_embd)

    def read(self, ids: Tensor) -> Tensor:
        attended = (ids != self.tokens.pad).long()
        return self.reader(ids, attention_mask=attended).last_hidden_state[:, 1 : 1 + self.length]

    def written(self, latent: Tensor, ids: Tensor) -> Tensor:
        given = torch.cat([self.widen(latent), self.writer.transformer.wte(ids)], 1)
        return self.writer(inputs_embeds=given).logits[:, self.length :]
