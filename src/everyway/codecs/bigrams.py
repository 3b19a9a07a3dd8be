"""Bigrams of captions: which token follows which, and what that says of tokens that are uncertain.

The tokens of a sentence are the hidden states of a Markov chain; what a network says of each place
is the observation there.

Shapes: B sentences, L tokens of a sentence, V vocabulary, P different pairs of tokens.
Sources: Witten and Bell, "The Zero-Frequency Problem", 1991 (how much probability pairs get that
were never seen); Rabiner, "A Tutorial on Hidden Markov Models", 1989 (forward-backward algorithm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from everyway.codecs.text_tokens import Tokens

LEAST = 1e-12
"""How likely every token is at least at every place, so that no sentence is impossible."""


class Bigrams(nn.Module):
    """How often each token followed which in captions.

    A sentence begins after a start, whose number is V; after its end mark there is only padding.

    tokens: the tokenizer of the captions.  pairs: P, how many different pairs were seen.
    """

    def __init__(self, tokens: Tokens, pairs: int) -> None:
        super().__init__()
        self.start, self.end, self.pad = len(tokens), tokens.end, tokens.pad
        self.register_buffer("pairs", torch.zeros(2, pairs, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(pairs, dtype=torch.int32))

    @staticmethod
    def counted(tokens: Tokens, texts: Sequence[str]) -> Bigrams:
        """Those of some texts.  Raises PromptError for a text that `tokens` cannot read."""
        ids = tokens.encode(texts)
        before = torch.cat([torch.full_like(ids[:, :1], len(tokens)), ids[:, :-1]], 1)
        seen = torch.stack([before, ids])[:, ids != tokens.pad]
        pairs, counts = seen.unique(dim=1, return_counts=True)
        made = Bigrams(tokens, len(counts))
        made.pairs.copy_(pairs)
        made.counts.copy_(counts)
        return made

    def marginals(self, scores: Tensor) -> Tensor:
        """(B, L, V) float64: how likely each token is at each place, given all places of its
        sentence and the bigrams.

        scores: (B, L, V), logits of the tokens of each place by itself.
        Computed sentence by sentence, so that the bits of one do not depend on the batch.
        """
        likely = scores.double().softmax(-1) + LEAST
        follow = self.transitions()
        return torch.stack([follow.marginals(own) for own in likely])

    def transitions(self) -> Transitions:
        """The probabilities of what follows what.

        A token that was followed n times, by d different tokens, leaves d / (n + d) to tokens in
        general (Witten and Bell).  One that was never followed leaves all, an end mark and padding
        nothing.
        """
        before, after = self.pairs.long()
        seen = self.counts.double()
        followed = seen.new_zeros(self.start + 1).index_add(0, before, seen)
        others = before.bincount(minlength=self.start + 1).to(seen)  # different followers
        total = (followed + others).clamp_min(1)
        rest = torch.where(others > 0, others / total, 1.0)
        rest[[self.end, self.pad]] = 0.0
        alone = seen.new_zeros(self.start).index_add(0, after, seen)
        closed = before.new_tensor([[self.end, self.pad], [self.pad, self.pad]])
        return Transitions(
            before=torch.cat([before, closed[0]]),
            after=torch.cat([after, closed[1]]),
            share=torch.cat([seen / total[before], seen.new_ones(2)]),
            rest=rest,
            alone=alone / alone.sum(),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Transitions:
    """p(b | a) = share of the pair (a, b), if it was seen, + rest[a] alone[b].

    before, after: the tokens of each pair, (P + 2,) with those of end mark and padding.
    share: (P + 2,).  rest: (V + 1,), the last of them of the start.  alone: (V,), how frequent each
    token is.
    """

    before: Tensor
    after: Tensor
    share: Tensor
    rest: Tensor
    alone: Tensor

    def marginals(self, likely: Tensor) -> Tensor:
        """The forward-backward algorithm: likely (L, V), how likely each token is at each place by
        itself -> (L, V), how likely it is in its sentence."""
        state = torch.zeros_like(self.rest)
        state[-1] = 1.0  # the start
        ahead = []
        for own in likely:
            state = self._to_next(state)
            state[:-1] *= own / (state[:-1] @ own)
            ahead.append(state[:-1])
        behind, out = torch.ones_like(self.alone), []
        for own, state in zip(likely.flip(0), reversed(ahead)):
            both = state * behind
            out.append(both / both.sum())
            behind = self._from_next(behind * own)[:-1]
            behind = behind / behind.max()
        return torch.stack(out[::-1])

    def _to_next(self, state: Tensor) -> Tensor:
        """state (V + 1,), how likely each token is -> (V + 1,), how likely each is to be next."""
        out = torch.zeros_like(state).index_add(0, self.after, state[self.before] * self.share)
        out[:-1] += (state @ self.rest) * self.alone
        return out

    def _from_next(self, likely: Tensor) -> Tensor:
        """likely (V,) of the next place -> (V + 1,), how likely it is after each token."""
        out = self.rest * (self.alone @ likely)
        return out.index_add(0, self.before, self.share * likely[self.after])
