"""The text latent: states of a sentence, narrowed, and a GPT-2 that reads them as a prefix.

Source: Bao et al. 2023, arXiv 2303.06555 (77 x 64 with CLIP L/14 and GPT-2 small).  Ours is
whitened a channel over the tokens that are not padding, and padding is exactly zero; the published
one is neither, and has two vocabularies.  The states of `mini` are a vector a token, which says
what pictures that the token is said of look like (`train.looks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from everyway.codecs.beams import Hypothesis, beam_search
from everyway.codecs.encoders import TextStates, WordStates, configured
from everyway.codecs.published_tokens import CaptionTokens, ClipTokens
from everyway.codecs.text_tokens import Tokens
from everyway.codecs.whiten import Whiten
from everyway.errors import UsageError

SMALL_DECODER = {
    "n_embd": 128,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 48,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GPT2_SMALL = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50258}


class TextLatent(nn.Module):
    """Sentences <-> (B, length, dim).

    tokenizer: the JSON of a tokenizer.  text, decoder: the settings of a CLIPTextConfig (or, with
    num_hidden_layers left out, the hidden_size of a WordStates) and of a GPT2Config; their
    vocabularies are set from the tokenizer.
    reader: the JSON of GPT-2's tokenizer where texts are read in its vocabulary, as published; the
    other is CLIP's then, and both must be of the sizes that `text` and `decoder` have.
    keep_padding: the states of padding stay in the latent.  beams: 1 takes the likeliest token
    after each one read.  longest: most tokens that are read (0: `length`).
    """

    def __init__(
        self,
        tokenizer: str,
        length: int,
        dim: int,
        text: Mapping[str, Any],
        decoder: Mapping[str, Any],
        reader: str | None = None,
        keep_padding: bool = False,
        beams: int = 1,
        longest: int = 0,
    ) -> None:
        super().__init__()
        self.keep_padding, self.beams, self.longest = keep_padding, beams, longest or length
        self.tokens: Tokens | ClipTokens = Tokens(tokenizer, length)
        self.reader: Tokens | CaptionTokens = self.tokens
        if reader is not None:
            self.tokens, self.reader = ClipTokens(tokenizer, length), CaptionTokens(reader, length)
            _same_size("tokenizer", len(self.tokens), "text", text)
            _same_size("reader", len(self.reader), "decoder", decoder)
        states = TextStates if "num_hidden_layers" in text else WordStates
        self.states = states({**text, "vocab_size": len(self.tokens)})
        self.narrow = nn.Linear(text["hidden_size"], dim)
        self.whiten = Whiten(dim)
        self.widen = nn.Linear(dim, decoder["n_embd"])
        sizes = {**decoder, "vocab_size": len(self.reader)}
        self.decoder = GPT2LMHeadModel(configured(GPT2Config, sizes))

    def encode(self, raw: Sequence[str]) -> Tensor:
        """Raises PromptError for texts that cannot be read."""
        return self.latent(self.tokens.encode(raw))

    def latent(self, ids: Tensor) -> Tensor:
        """(B, length, dim) of ids (B, length); padding is zero, or what CLIP makes of it."""
        ids = ids.to(self.narrow.weight.device)
        latent = self.whiten(self.narrow(self.states(ids)))
        return latent if self.keep_padding else latent * self.tokens.mask(ids)[..., None]

    def decode(self, state: Tensor) -> list[str]:
        """The likeliest text, of several beams or token by token."""
        if self.beams > 1:
            return self.reader.decode(self._best(state))
        ids = self.decoder.generate(
            inputs_embeds=self.widen(state.to(self.widen.weight.dtype)),
            attention_mask=state.new_ones(state.shape[:2], dtype=torch.long),
            max_new_tokens=self.longest,
            do_sample=False,
            eos_token_id=self.reader.end,
            pad_token_id=self.reader.pad,
        )
        return self.reader.decode(ids)

    def hypotheses(self, state: Tensor) -> list[Hypothesis]:
        """All beams of one latent (length, dim), best first."""
        prefix = self.widen(state[None].to(self.widen.weight.dtype))
        return beam_search(self.decoder, prefix, self.beams, self.longest, self.reader.end)

    def _best(self, state: Tensor) -> Tensor:
        """(B, longest) ids of the best beam of each latent."""
        out = torch.full((len(state), self.longest), self.reader.end, dtype=torch.long)
        for row, one in zip(out, state, strict=True):
            best = self.hypotheses(one)[0].tokens
            row[: len(best)] = torch.tensor(best)
        return out

    def loss(self, latent: Tensor, ids: Tensor) -> Tensor:
        """Cross entropy of reading the reader's ids (B, length) from a latent, noise and all."""
        mask, prefix = self.reader.mask(ids), self.widen(latent)
        longest = int(mask.sum(1).max())  # nothing is read beyond the batch's last end mark
        former = self.decoder.transformer.wte(ids[:, : longest - 1])
        hidden = self.decoder.transformer(inputs_embeds=torch.cat([prefix, former], 1))
        hidden = hidden.last_hidden_state[:, prefix.shape[1] - 1 :]  # (B, longest, n_embd)
        mask, ids = mask[:, :longest], ids[:, :longest]
        return F.cross_entropy(self.decoder.lm_head(hidden[mask]), ids[mask])

    @torch.no_grad()
    def measure(self, texts: Sequence[str]) -> None:
        """Fix the whitening from `texts`."""
        ids = self.tokens.encode(texts)
        self.whiten.measure(self.narrow(self.states(ids))[self.tokens.mask(ids)])


def _same_size(name: str, tokens: int, network: str, settings: Mapping[str, Any]) -> None:
    if tokens != settings["vocab_size"]:
        raise UsageError(
            f"the {name} has {tokens} tokens and the {network} network {settings['vocab_size']}; "
            "give the tokenizer that was published with it"
        )


@torch.no_grad()
def exact_share(codec: TextLatent, texts: Sequence[str], sigma: float, seed: int = 0) -> float:
    """The share of `texts` read back exactly from their latents with noise of size `sigma`."""
    latent = codec.encode(texts)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    read = codec.decode(latent + sigma * noise)
    plain = codec.tokens.decode(codec.tokens.encode(texts))
    return sum(a == b for a, b in zip(read, plain)) / len(texts)
