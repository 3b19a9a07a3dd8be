"""What a request needs: a tuple of stages, one sampling loop each.

Variation, the Gibbs chain and interpolation are plans, not special cases of the sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from everyway.controls.editing import EDITED, aside, rewritten
from everyway.controls.interpolation import slerp, start_states
from everyway.errors import UsageError
from everyway.guidance import branches
from everyway.request import KINDS, GenerateRequest, RequestError, known
from everyway.system import System
from everyway.tasks import PATHS, Branch, Path, Task, given_noisy

Carry = dict[str, Tensor]
"""What goes from stage to stage: clean states by modality, "context.NAME", "start.NAME", and what a
plan sets aside for itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One sampling loop.  Its given states are taken from what former stages made.

    system: which of the model's `systems` it runs on, whose the task is; "" is the model's own.
    prepare: may change what is carried before the loop (interpolation does).
    shown: whether this stage's states become results.
    enlarges: whether it draws what was made before it anew, larger: a stage of a cascade.
    begin: the time at which the loop begins, from what is carried (picture to picture).
    masked: whether only the places that the request's mask frees are drawn.
    """

    task: Task
    system: str = ""
    prepare: Callable[[Carry, System, GenerateRequest], Carry] | None = None
    shown: bool = True
    enlarges: bool = False
    begin: float = 1.0
    masked: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """The clocks whose states it may take from what is carried."""
        held = self.begin < 1 or self.masked or self.prepare
        return tuple(self.task.roles) if held else self.task.given


def plan(request: GenerateRequest, tasks: Mapping[str, Task]) -> tuple[Stage, ...]:
    """The stages of a request, out of a system's own tasks.

    Raises RequestError where the system has no such task or context, and for noise of what it is
    not given or a path of what it does not generate.
    """
    weighed = (replace(s, task=_weighed(s.task, request)) for s in _stages(request, tasks))
    stages = tuple(weighed)
    asked = {"--given-noise": request.given_noise, "a clock path": request.clock_paths}
    if not any(asked.values()):
        return stages
    if len(stages) > 1:
        what = next(name for name, value in asked.items() if value)
        raise RequestError(f"{what} is for one task, {request.kind} is several; leave it out")
    (stage,), task = stages, stages[0].task
    noisy = {clock: given_noisy(level) for clock, level in request.given_noise.items()}
    if wrong := sorted(set(noisy) - set(task.given)):
        given = ", ".join(task.given) or "nothing"
        raise RequestError(f"--given-noise {', '.join(wrong)}: {request.kind} is given {given}")
    try:
        task = task.replace(**noisy).along({c: _path(p) for c, p in request.clock_paths.items()})
    except ValueError as error:
        raise RequestError(str(error)) from None
    return (replace(stage, task=task),)


def _weighed(task: Task, request: GenerateRequest) -> Task:
    """The task with a request's weights of contexts, and with the guidance that some have of their
    own: a branch without each of these, and one without the rest of what is given."""
    weights, own = request.context_weights, request.context_guidance
    if (weights or own) and not task.contexts:
        raise RequestError(f"{task.name} is given no contexts; leave their weights out")
    for name in (*weights, *own):
        known("context", name, task.contexts)
    named = {name: 1.0 for name in request.given if name in task.contexts}
    task = replace(task, contexts={**task.contexts, **named, **weights})
    if not own:
        return task
    rest = [replace(b, without=tuple(n for n in b.without if n not in own)) for b in branches(task)]
    alone = [
        Branch(keep=task.generated, without=(name,), weight=weight)
        for name, weight in own.items()
        if task.contexts[name]
    ]
    return replace(task, guidance=(*(b for b in rest if b.without or b.absent), *alone))


def _path(asked: str | Sequence[tuple[float, float]]) -> Path:
    return PATHS[asked] if isinstance(asked, str) else Path(tuple(asked))


def _stages(request: GenerateRequest, tasks: Mapping[str, Task]) -> tuple[Stage, ...]:
    """Of a request without noise of what is given."""

    def task(name: str) -> Task:
        if name not in tasks:
            known("task", request.kind, dict.fromkeys((*KINDS, *tasks)))
            raise RequestError(f"this model cannot do {request.kind!r}; it does {', '.join(tasks)}")
        return tasks[name]

    kind = request.kind
    if kind in ("inpaint", "image-to-image"):
        named = "text-to-image" if request.text is not None else "image"
        drawn = _out_of_contexts("image", tasks) if request.contexts else task(named)
        return (Stage(task=drawn, begin=request.strength, masked=kind == "inpaint"),)
    if kind == "edit-image":
        told, drawn = task("image-to-text"), _out_of_contexts("image", tasks)
        drawn = replace(drawn, name=kind, contexts=EDITED)
        return (
            Stage(task=told, prepare=aside, shown=False),
            Stage(task=drawn, prepare=rewritten),
        )
    own = f"{kind.removeprefix('vary-')}-variation"
    if own in tasks:
        return (Stage(task=tasks[own]),)
    if kind == "vary-image":
        return (Stage(task=task("image-to-text"), shown=False), Stage(task=task("text-to-image")))
    if kind == "vary-text":
        return (Stage(task=task("text-to-image"), shown=False), Stage(task=task("image-to-text")))
    if kind == "chain":
        forth, back = Stage(task=task("text-to-image")), Stage(task=task("image-to-text"))
        return (forth, back) * request.rounds
    if kind == "interpolate":
        back, forth = task("image-to-text"), task("text-to-image")
        return (Stage(task=back, shown=False), Stage(task=forth, prepare=between))
    if request.contexts:
        return (Stage(task=_out_of_contexts(kind, tasks)),)
    return (Stage(task=task(kind)),)


def _out_of_contexts(made: str, tasks: Mapping[str, Task]) -> Task:
    """A task that makes this, the clock's name, out of contexts alone; which ones is the request's.

    Raises RequestError where there is none.
    """
    for task in tasks.values():
        if task.contexts and not task.given and task.generated == (made,):
            return task
    raise RequestError(
        f"this model makes no {made} out of contexts, so that it cannot blend any; give it one "
        f"thing: it does {', '.join(tasks)}"
    )


def cascaded(
    stages: Sequence[Stage], systems: Mapping[str, System], text: str | None
) -> tuple[Stage, ...]:
    """The stages, each that shows a picture followed by those that enlarge it, one a system.

    systems: by the name that a stage has them by.  text: of the request, which one that knows none
    of its words goes without.
    """
    larger = [
        enlarging(name, system, text if _reads(system, text) else None)
        for name, system in systems.items()
    ]
    shown = [stage.shown and "image" in stage.task.generated for stage in stages]
    return tuple(
        s for stage, show in zip(stages, shown) for s in (stage, *(larger if show else ()))
    )


def _reads(system: System, text: str | None) -> bool:
    try:
        system.reads(text or "")
    except UsageError:
        return False
    return True


def enlarging(name: str, system: System, text: str | None) -> Stage:
    """The stage that draws a picture anew with `system`, larger; with a text where it reads one."""
    read = text is not None and "text-to-image" in system.tasks
    task = system.tasks["text-to-image" if read else "image"]
    return Stage(task=task, system=name, enlarges=True)


def between(carried: Carry, system: System, request: GenerateRequest) -> Carry:
    """Interpolation of two pictures: their captions' latents and their start noises, on the sphere.

    The start noise of a picture is the deterministic flow run backwards, from data to t = 1, under
    its caption (Bao et al. 2023, arXiv 2303.06555; Song et al. 2021, arXiv 2010.02502), in as many
    steps as lead forth again.
    """
    states = {m.name: carried[m.name] for m in system.on("image")}
    text = {m.name: carried[m.name] for m in system.on("text")}
    task = system.tasks["text-to-image"]
    contexts = system.null_contexts(len(next(iter(states.values()))), request.null)
    starts = start_states(system, system.denoiser(), task, states, text, contexts, request.steps)
    weights = torch.linspace(0, 1, request.frames)
    out = {k: slerp(v[0], v[1], weights.to(v.device)) for k, v in text.items()}
    return out | {f"start.{k}": slerp(v[0], v[1], weights.to(v.device)) for k, v in starts.items()}
