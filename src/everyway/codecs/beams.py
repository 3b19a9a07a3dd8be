"""Beam search over a language model that continues a prefix of embeddings.

Beams are ranked by the mean log-probability of their tokens, the end mark included.  A finished
beam is kept as it is and competes with the others by its own mean.
Source: the captions of Bao et al., 2023, arXiv 2303.06555 (5 beams, at most 67 tokens).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """tokens: up to and with the end mark, if it was reached.  score: mean log-probability."""

    tokens: list[int]
    score: float


@torch.inference_mode()
def beam_search(
    decoder: nn.Module, prefix: Tensor, beams: int, longest: int, end: int
) -> list[Hypothesis]:
    """The `beams` best continuations of one prefix (1, N, D), best first.

    decoder: a GPT2LMHeadModel of V tokens.  longest: most new tokens.
    """
    cache = DynamicCache()
    log_p = _next(decoder, cache, inputs_embeds=prefix)  # (1, V)
    totals, tokens = log_p[0].topk(beams)
    tokens = tokens[:, None]  # (beams, read so far)
    lengths, done = torch.ones_like(totals), tokens[:, 0] == end
    cache.batch_repeat_interleave(beams)
    while tokens.shape[1] < longest and not bool(done.all()):
        log_p = _next(decoder, cache, input_ids=tokens[:, -1:])  # (beams, V)
        log_p[done] = -torch.inf  # a finished beam goes on in one way only, at no cost
        log_p[done, 0] = 0.0
        lengths = lengths + (~done).to(lengths)
        means = (totals[:, None] + log_p) / lengths[:, None]
        best, places = means.flatten().topk(beams)
        source, chosen = places // log_p.shape[1], places % log_p.shape[1]
        lengths = lengths[source]
        totals = best * lengths
        tokens = torch.cat([tokens[source], chosen[:, None]], 1)
        done = done[source] | (chosen == end)
        cache.reorder_cache(source)
    scores = totals / lengths
    return [
        Hypothesis(tokens=tokens[i, : int(lengths[i])].tolist(), score=float(scores[i]))
        for i in scores.argsort(descending=True).tolist()
    ]


def _next(decoder: nn.Module, cache: DynamicCache, **inputs: Tensor) -> Tensor:
    """Log-probabilities (beams, V) of the token after what was read, float32."""
    logits = decoder(**inputs, past_key_values=cache, use_cache=True).logits[:, -1]
    return logits.float().log_softmax(-1)
