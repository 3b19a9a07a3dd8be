"""Looking inside: what attention reads at which noise, and when in a run a prompt decides.

Both are the analyses of Balaji et al., "eDiff-I: Text-to-Image Diffusion Models with an Ensemble of
Expert Denoisers", 2022, arXiv 2211.01324: early in a run attention is to the text, late to what is
drawn already; and another prompt in the last steps changes nothing.

B samples, H heads, N queries, M keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from everyway.contracts import Bundle, Contexts
from everyway.controls.asking import Change, Changed, switching
from everyway.controls.paint import text_readers
from everyway.errors import UsageError
from everyway.guidance import guided
from everyway.nets.attention import CrossAttention, SelfAttention, attention_weights
from everyway.sampling.loop import SamplingProgress, absent_states, final, sample
from everyway.sampling.noise import PerSampleNoise
from everyway.sampling.solvers import named_sampler
from everyway.system import System

See = Callable[[nn.Module, Tensor], None]
"""(attention module, its weights (B, H, N, M), which add up to 1 over the keys)."""
Share = tuple[float, float, float]
"""(t, of the attention to the words, to the other tokens of the text): shares in [0, 1]."""


@contextmanager
def watched(network: nn.Module, see: See) -> Iterator[None]:
    """Shows the weights of every attention of a network while it runs in this thread."""
    own = get_ident()

    def seen(module: Any, given: tuple, named: dict[str, Any]) -> None:
        if get_ident() != own:  # somebody else's run
            return
        asked = inspect.signature(module.forward).bind(*given, **named).arguments
        q, k, _ = module.heads_of(*(asked[name] for name in ("x", "context") if name in asked))
        q = q[:, :, asked["read"]] if asked.get("read") is not None else q
        see(module, attention_weights(q, k, asked.get("mask"), asked.get("bias")))

    modules = [m for m in network.modules() if isinstance(m, (SelfAttention, CrossAttention))]
    handles = [m.register_forward_pre_hook(seen, with_kwargs=True) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def drawing(
    system: System,
    texts: Sequence[str],
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    change: Change | None = None,
) -> Iterator[SamplingProgress]:
    """Pictures of texts, a sample each, all in one batch.  change: of every query."""
    task, noise = system.tasks["text-to-image"], PerSampleNoise(range(seed, seed + len(texts)))
    nulls = system.null_contexts(len(texts))
    given, contexts = _read(system, texts)
    denoise = guided(
        system.denoiser(rows_a_call=0),
        task,
        system.clocks,
        system.guidance if guidance is None else guidance,
        absent_states(system.processes, noise),
        null_contexts=nulls,
        processes=system.processes,
    )
    return sample(
        Changed(denoise=denoise, change=change) if change else denoise,
        processes=system.processes,
        clocks=system.clocks,
        task=task,
        states=given,
        shapes=system.shapes(len(texts)),
        noise=noise,
        steps=steps or system.steps,
        sampler=system.sampler,
        contexts=contexts,
        device=system.device,
    )


def attention_by_noise(
    system: System,
    texts: Sequence[str],
    seed: int = 0,
    steps: int | None = None,
    ends: Callable[[], bool] = lambda: False,
) -> list[Share]:
    """How much of the picture's attention goes to the words of its text, at every step of a run.

    The mean over samples, layers, heads and places.  What is left is, in joint attention, to the
    picture itself and to times; in cross-attention to other contexts.  Without guidance, whose
    unconditional branch has no text.  Raises UsageError for a network that cannot tell.
    ends: called after every step; True ends the run there.
    """
    task, spans = system.tasks["text-to-image"], getattr(system.network, "spans", None)
    if spans is None:
        raise UsageError(f"the network of {system.name} does not say where its tokens are")
    readers = text_readers(system, task)
    words = {name: torch.stack([own(t, t) > 0 for t in texts]) for name, own in readers.items()}
    states = {n: torch.empty(s) for n, s in system.shapes(len(texts)).items()}
    where = spans(states, dict.fromkeys(task.roles, torch.zeros(len(texts))))
    seen: list[tuple[float, float]] = []

    def see(module: nn.Module, weights: Tensor) -> None:
        joint = isinstance(module, SelfAttention)
        if joint and "image" not in where:
            return  # of the places among themselves
        places = weights[:, :, where["image"]] if joint else weights
        to = {n: places[..., where[n]].mean((1, 2)).sum(-1).cpu() for n in words}  # (B,)
        said = {n: places[..., where[n]].mean((1, 2)).cpu()[words[n]].sum() for n in words}
        seen.append((float(sum(said.values())) / len(texts), float(sum(to.values()).mean())))

    out, t = [], 1.0
    with watched(system.network, see):
        for progress in drawing(system, texts, seed, steps, guidance=1.0):
            told, all_ = (sum(values) / len(seen) for values in zip(*seen))
            out.append((t, told, all_ - told))
            t = progress.t
            seen.clear()
            if ends():
                break
    return out


def pictures_after_switch(
    system: System,
    texts: Sequence[str],
    others: Sequence[str],
    share: float,
    seed: int = 0,
    steps: int | None = None,
) -> Any:
    """Pictures that follow `texts` for a share of the steps, in [0, 1], and `others` from then on:
    what the picture's codec decodes."""
    steps = steps or system.steps
    sampler, first, change = named_sampler(system.sampler), round(share * steps), None
    if first < steps:  # the first step with the other text
        picture = system.modalities["image"]
        laid = sampler.lay_steps(
            steps, sampler.grid, (1.0, sampler.t_end), picture.process.schedule
        )
        change = switching(*_read(system, others), picture.clock, laid[first].t)
    made = final(drawing(system, texts, seed, steps, change=change))
    return system.decode({"image": made.states["image"]})["image"]


def _read(system: System, texts: Sequence[str]) -> tuple[Bundle, Contexts]:
    """The states and contexts that texts are, to draw from."""
    task, raw = system.tasks["text-to-image"], {"text": list(texts)}
    nulls = system.null_contexts(len(texts))
    contexts = system.weighed(system.contexts(raw), nulls, task.contexts)
    given = {m.name for clock in task.given for m in system.on(clock)}
    return {n: x for n, x in system.encode(raw).items() if n in given}, contexts
