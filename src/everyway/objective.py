"""The one training objective: every modality corrupted at its clock's own time, one network call.

With independent times per clock this single loss trains every marginal, conditional and joint
distribution (Bao et al., "One Transformer Fits All Distributions in Multi-Modal Diffusion at
Scale", 2023, arXiv 2303.06555).  How the times are drawn is in `process/times.py`: independently,
or, as small models need it, mostly on the lines that tasks sample on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from everyway.contracts import Bundle, Contexts, Noise, Times, contexts_in, like_rows, rows
from everyway.system import System


def corrupt(system: System, x0: Bundle, times: Times, noise: Noise) -> tuple[Bundle, Bundle]:
    """(x_t, draws) of every modality of x0 at its clock's time.  times: clock -> (B,) in [0, 1]."""
    draws, x_t = {}, {}
    for name, clean in x0.items():
        process = system.modalities[name].process
        draws[name] = process.draw(noise, name, tuple(clean.shape)).to(clean.device)
        x_t[name] = process.corrupt(clean, draws[name], times[system.clocks[name]])
    return x_t, draws


def contexts_of(
    system: System,
    batch: Bundle,
    noise: Noise,
    drop: float | Mapping[str, float],
    samples: int,
    lacking: Mapping[str, Tensor] | None = None,
) -> Contexts:
    """What the network is given of a batch, a share `drop` of the samples their null.

    batch: clean states, and contexts as `contracts.flat` has them.  What the data does not hold
    (the kind of data of UniDiffuser v1) is the null for all of them.
    drop: of every condition, or of each by its name, none where it is not named; each is dropped
    independently of the others.
    lacking: raw data -> (B,) bool, the samples that have none of it, whose contexts are the null.
    """
    device = next(iter(batch.values())).device
    given, out = contexts_in(batch), {}
    for name, condition in system.conditions.items():
        share = drop.get(name, 0.0) if isinstance(drop, Mapping) else drop
        none = (lacking or {}).get(condition.source)
        if name in given and not share and none is None:
            out[name] = given[name]
            continue
        null = condition.null().context().expand(samples).to(device)
        out[name] = null
        if name in given:
            lost = torch.zeros(samples, dtype=torch.bool, device=device) if none is None else none
            if share:
                lost = lost | (noise.uniform(f"drop:{name}", (samples,)).to(device) < share)
            out[name] = given[name].where(~lost, null)
    return out


def losses(
    system: System,
    x0: Bundle,
    times: Times,
    noise: Noise,
    contexts: Contexts | None = None,
    lacking: Mapping[str, Tensor] | None = None,
    min_snr: float = 0.0,
) -> dict[str, Tensor]:
    """Per-sample, per-modality losses: modality -> (B,) float32.

    times: clock -> (B,), moved to times that the processes have.  At a time of exactly 0 a state
    is given and there is nothing to learn: its loss is 0.
    lacking: raw data -> (B,) bool, the samples that have none of it.  It is absent, at time 1, and
    its loss is 0, so that a picture without a caption, or the other way, teaches what it is alone.
    min_snr: gamma of min-SNR weights (`GaussianProcess.min_snr`); 0 weighs all times alike.
    """
    own = system.modalities.items()
    lost = {name: lacking[m.source] for name, m in own if m.source in (lacking or {})}
    for name, none in lost.items():
        clock = system.clocks[name]
        times = times | {clock: times[clock].masked_fill(none, 1.0)}
        x0 = x0 | {name: x0[name].masked_fill(like_rows(none, x0[name]), 0)}
    times = system.existing(times)
    x_t, draws = corrupt(system, x0, times, noise)
    found = _found(system, x0, x_t, draws, times, contexts or {}, min_snr)
    return found | {name: found[name].masked_fill(none, 0.0) for name, none in lost.items()}


def flow_losses(
    system: System,
    x0: Bundle,
    times: Times,
    noise: Noise,
    flows: Mapping[str, tuple[Tensor, Contexts]],
    min_snr: float = 0.0,
) -> dict[str, dict[str, Tensor]]:
    """Losses where each sample is of one flow, a task whose states and contexts are all that the
    network is given: task -> modality -> (samples of it,) float32.

    flows: task -> (its samples (B,) bool, contexts of all samples).
    """
    times = system.existing(times)
    x_t, draws = corrupt(system, x0, times, noise)
    out = {}
    for name, (own, contexts) in flows.items():
        task = system.tasks[name]
        made = [m for m in x0 if system.clocks[m] in task.generated]
        states = [{m: x[m] for m in made} for x in (x0, x_t, draws)]
        given = {c: contexts[c] for c in task.given_contexts}
        clocks = {c: times[c] for c in task.generated}
        parts = (rows(part, own) for part in (*states, clocks, given))
        out[name] = _found(system, *parts, min_snr=min_snr)
    return out


def _found(
    system: System,
    x0: Bundle,
    x_t: Bundle,
    draws: Bundle,
    times: Times,
    contexts: Contexts,
    min_snr: float = 0.0,
) -> dict[str, Tensor]:
    raw = system.network(system.shown(x_t, times), times, contexts)
    out = {}
    for name, clean in x0.items():
        t = times[system.clocks[name]]
        process: Any = system.modalities[name].process
        loss = process.loss(raw[name].float(), clean, draws[name], t)
        if min_snr:
            loss = loss * process.min_snr(t, min_snr).to(loss)
        out[name] = torch.where(t > 0, loss, torch.zeros_like(loss))
    return out


def total(system: System, per_modality: dict[str, Tensor], weights: Tensor | None = None) -> Tensor:
    """The weighted sum of mean losses that is minimised, a scalar.

    weights: (B,) of the samples, where their times were not drawn uniformly.
    """
    scale = 1.0 if weights is None else weights.to(next(iter(per_modality.values())))
    modalities = system.modalities
    return sum(modalities[k].weight * (scale * v).mean() for k, v in per_modality.items())
