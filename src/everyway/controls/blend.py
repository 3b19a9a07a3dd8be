"""Blends: one result out of any number of pictures, texts and embeddings, each with its weight.

| mix | what the network sees |
|---|---|
| attention | all of them at every context layer: the sum of what each makes, by their shares |
| layer | one of them at each context layer, drawn with its share as its probability |
| model | one of them at each step, as often as its share says |
| tokens | those of one kind as one, their tokens side by side, each times its weight |

Contexts are named by their kind and number: "image", "image:2", "text".  Weights are made to sum to
1, the shares; one of 0 takes its context out.
Source: Xu et al., "Versatile Diffusion: Text, Images and Variations All in One Diffusion Model",
2022, arXiv 2211.08332, section 3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from everyway.contracts import Context, Contexts, Noise, Query, kind_of
from everyway.controls.asking import Change
from everyway.errors import UsageError
from everyway.nets.multiflow import layer_level

Weights = Mapping[str, float]
"""Name of a context -> its weight, 0 or more."""
EARLY = 1e-6
"""A time this much above the start of a turn is in it: times of a grid are rounded."""


def shares(weights: Weights) -> dict[str, float]:
    """The weights above 0, made to sum to 1.  Raises UsageError where there is none."""
    total = sum(weights.values())
    if total <= 0:
        raise UsageError(f"the weights of {', '.join(weights)} are all 0; give one of them more")
    return {name: weight / total for name, weight in weights.items() if weight > 0}


def attention_level(weights: Weights) -> Change:
    """The network mixes them itself."""
    own = shares(weights)
    return _changing(weights, lambda contexts, query: _weighted(contexts, own))


def layer_level_drawn(weights: Weights, layers: int, noise: Noise) -> Change:
    """Drawn anew for every query.  layers: how many context layers of a kind the network has."""
    own = shares(weights)

    def drawn(contexts: Contexts, query: Query) -> Contexts:
        uniforms = noise.uniform("mix", (query.batch, layers))
        return layer_level(_weighted(contexts, own), uniforms)

    return _changing(weights, drawn)


def model_level(turns: Sequence[Sequence[str]], clock: str) -> Change:
    """The contexts whose turn it is, alone: a context that is a function of time.

    turns: what is given together, mostly one context; equally long turns, from t = 1 of the clock
    down to 0, in the order of `alternating` or any other.
    """

    def chosen(contexts: Contexts, query: Query) -> Contexts:
        passed = (1 - float(query.times[clock][0])) * len(turns)
        turn = turns[min(int(passed + EARLY), len(turns) - 1)]
        return {kind_of(name): contexts[name] for name in turn}

    return _changing({name for turn in turns for name in turn}, chosen)


def alternating(weights: Weights, count: int) -> tuple[str, ...]:
    """Whose turn it is, `count` times: each as often as its share says, as evenly as can be."""
    own, made = shares(weights), []
    credit = dict.fromkeys(own, 0.0)
    for _ in range(count):
        credit = {name: credit[name] + share for name, share in own.items()}
        made.append(max(credit, key=lambda name: round(credit[name], 9)))
        credit[made[-1]] -= 1
    return tuple(made)


def token_level(weights: Weights) -> Change:
    """Contexts of one kind become one, and kinds mix at the attention level.

    Tokens are multiplied by their weight over the largest of their kind, which is the kind's own.
    """
    used = {name: weight for name, weight in weights.items() if weight > 0}
    kinds = {kind: [*names] for kind, names in groupby(sorted(used, key=kind_of), kind_of)}
    largest = {kind: max(used[name] for name in names) for kind, names in kinds.items()}
    own = shares(largest)

    def joined(contexts: Contexts, query: Query) -> Contexts:
        made = {
            kind: side_by_side([(contexts[n], used[n] / largest[kind]) for n in names])
            for kind, names in kinds.items()
        }
        return made if len(made) == 1 else _weighted(made, own)

    return _changing(weights, joined)


def side_by_side(parts: Sequence[tuple[Context, float]]) -> Context:
    """One context of all tokens, each times its number.

    Raises UsageError for contexts of labels, and for those with a bias.
    """
    for context, _ in parts:
        if not context.tokens.is_floating_point() or context.bias is not None:
            raise UsageError("only contexts of plain tokens stand side by side; choose another mix")
    masks = [_seen(context) for context, _ in parts]
    return Context(
        tokens=torch.cat([context.tokens * weight for context, weight in parts], 1),
        mask=None if all(c.mask is None for c, _ in parts) else torch.cat(masks, 1),
    )


def _seen(context: Context) -> Tensor:
    if context.mask is not None:
        return context.mask
    return torch.ones(context.tokens.shape[:2], dtype=torch.bool, device=context.tokens.device)


def _weighted(contexts: Contexts, own: Mapping[str, float]) -> Contexts:
    return {name: _of_weight(contexts[name], share) for name, share in own.items()}


def _of_weight(context: Context, share: float) -> Context:
    weight = torch.full((len(context.tokens),), share, dtype=torch.float64)
    return replace(context, weight=weight.to(context.tokens.device))


def _changing(blended: Collection[str], make: Callable[[Contexts, Query], Contexts]) -> Change:
    """A change of the blended contexts of a query, with its others as they are."""

    def change(query: Query) -> Query:
        rest = {name: c for name, c in query.contexts.items() if name not in blended}
        return replace(query, contexts=rest | make(query.contexts, query))

    return change
