"""`everyway train distill`: a student that draws in a few steps what its teacher draws in many.

One step of the student is several deterministic steps of its guided teacher, so the student needs
no guidance: it asks its network once a step.  It starts as a copy of the teacher and learns every
task of the system on an equal share of the samples, each at one of the times that it will be asked
at.  A student can be the teacher of the next, with half as many steps.

Sources: Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022,
arXiv 2202.00512; with guidance, Meng et al., "On Distillation of Guided Diffusion Models", 2023,
arXiv 2210.03142.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from everyway import library, objective
from everyway.contracts import (
    Bundle,
    Contexts,
    Denoise,
    Query,
    Times,
    expand_times,
    placed,
    rows,
)
from everyway.guidance import Guided
from everyway.process.categorical import categorical
from everyway.process.config import gaussian, named
from everyway.process.gaussian import GaussianProcess
from everyway.process.training_times import Uniform
from everyway.settings import ConfigError, FileName, Settings
from everyway.system import System
from everyway.tasks import Task, times_for
from everyway.train import sources
from everyway.train.config import TrainConfig
from everyway.train.devices import PartialState
from everyway.train.latents import Latents
from everyway.train.learner import Share
from everyway.train.systems import SystemLearner


class Training(Settings):
    """teacher: a model of Gaussian states, by name or folder.  student_steps: the student's, over a
    whole run.  teacher_steps: the teacher's, a multiple of them.  guidance: of the teacher; None is
    its own.
    """

    teacher: FileName = "mini"
    student_steps: int = Field(4, ge=1)
    teacher_steps: int = Field(16, ge=2)
    guidance: float | None = None
    times: ClassVar[Uniform] = Uniform()  # unread: its times are those of the student's steps
    drop: ClassVar[float] = 0.0

    @model_validator(mode="after")
    def _whole(self) -> Training:
        if self.teacher_steps % self.student_steps or self.each == 1:
            raise ConfigError(
                f"teacher_steps is {self.teacher_steps}; give a multiple of student_steps, "
                f"{2 * self.student_steps} or more"
            )
        return self

    @property
    def each(self) -> int:
        """The teacher's steps in one of the student's."""
        return self.teacher_steps // self.student_steps

    @property
    def init(self) -> str:
        """What the student starts from."""
        return self.teacher

    @property
    def preset(self) -> str:
        """The student's name."""
        return f"{Path(self.teacher).name}-{self.student_steps}"

    def learner(self, config: TrainConfig, note: sources.Note) -> Student:
        device = PartialState().device
        teacher = library.load(self.teacher, device=str(device), dtype="fp32", memory="full").system
        if self.guidance is not None:
            teacher = replace(teacher, guidance=self.guidance)
        student = untaught(teacher, self.student_steps)
        return Student(student, sources.cached(student, config, note), config, teacher)


TRAININGS: dict[str, dict[str, Any]] = {
    "distill": dict(
        data="lattice", steps=4000, lr=1e-3, weight_decay=0.0, cooldown=0.4, ema=0.99,
        out="runs/student",
    ),
}  # fmt: skip


def untaught(teacher: System, steps: int) -> System:
    """A copy of the teacher's network, sampled in `steps` plain steps without guidance.

    A network that sees no noise at t = 1 is shown it there as it is after its first step.
    Raises ConfigError for a teacher of tokens, or one that is made of several systems.
    """
    if teacher.tokens or teacher.systems:
        raise ConfigError(f"a {teacher.name} cannot be a teacher; give one of Gaussian states")
    sampling: dict[str, Any] = {"sampler": "ddim", "guidance": 1.0, "steps": steps}
    config, modalities = {**teacher.config, **sampling}, teacher.modalities
    process: Any = next(iter(modalities.values())).process
    if getattr(process.parameterisation, "faded", False):
        least = process.parameterisation.scale_in(*process.schedule.alpha_sigma(1 - 1 / steps))
        config["schedule"] = {**named(config["schedule"]), "floor": float(least)}
        process = gaussian(config["schedule"])
        modalities = {
            name: replace(m, process=categorical(process, m.codec))
            for name, m in modalities.items()
        }
    return replace(
        teacher,
        network=deepcopy(teacher.network).requires_grad_(True),
        modalities=modalities,
        config=config,
        placement=None,
        **sampling,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """The samples of a batch on one task, each at the start of one of the student's steps.

    index: (B,) which of the batch they are.  start, stop: (B,) the run's times.
    draws: modality -> its noise (B, ...).
    """

    task: Task
    index: Tensor
    query: Query
    start: Tensor
    stop: Tensor
    draws: Bundle


class Student(SystemLearner):
    """The network of `system`, taught by `teacher`, which is neither trained nor averaged."""

    def __init__(
        self, system: System, latents: Latents, config: TrainConfig, teacher: System
    ) -> None:
        super().__init__(system, latents, config)
        self.teacher = teacher

    def compare(self, weights: Mapping[str, Tensor]) -> None:
        """Nothing: it starts from its teacher, which does not draw in so few steps."""

    def batch(self, share: Share) -> list[Example]:
        source, noise, steps = share.generator("samples"), share.noise(), self.system.steps
        tasks = [*self.system.tasks.values()]
        which = torch.randint(len(tasks), (share.size,), generator=source)[share.rows]
        made = torch.tensor(["text" in task.generated for task in tasks])[which]
        encoded = self.encoded(share, source, made)
        x0 = {k: v for k, v in encoded.items() if k in self.system.modalities}
        cell = torch.randint(steps, (share.size,), generator=source)[share.rows].double()
        ends = torch.stack([cell + 1, cell]).to(share.device) / steps
        processes = self.teacher.processes
        draws = {k: processes[k].draw(noise, k, tuple(x.shape)).to(x) for k, x in x0.items()}
        conditions = objective.contexts_of(self.system, encoded, noise, 0.0, share.count)
        made = []
        for number, task in enumerate(tasks):
            index = (which == number).nonzero()[:, 0].to(share.device)
            if len(index):
                own = rows((x0, draws, conditions), index)
                made.append(stage(self.system, task, index, *own, *ends[:, index]))
        return made

    def forward(self, batch: list[Example]) -> tuple[Tensor, dict[str, Tensor]]:
        some, processes = batch[0].query.states, self.system.processes
        count = sum(len(part.index) for part in batch)
        losses = {name: x.new_zeros(count) for name, x in some.items()}
        for part, taught in zip(batch, aims(self.teacher, batch, self.config.model.each)):
            states, times = part.query.states, part.query.times
            raw = self.network(self.system.shown(states, times), times, part.query.contexts)
            for name, aim in taught.items():
                t = times[self.system.clocks[name]]
                draw = noise_in(processes[name], states[name], aim, t)
                loss = processes[name].loss(raw[name], aim, draw, t)
                losses[name] = losses[name].index_add(0, part.index, loss)
        return objective.total(self.system, losses), losses


def stage(
    system: System,
    task: Task,
    index: Tensor,
    clean: Bundle,
    draws: Bundle,
    conditions: Contexts,
    start: Tensor,
    stop: Tensor,
) -> Example:
    """The states of `clean` (B, ...) as `task` has them at the run's time `start` (B,)."""
    times, states = times_for(task, start), {}
    for name, clock in system.clocks.items():
        process, role = system.processes[name], task.roles.get(clock)
        if role and role.kind == "absent":
            states[name] = process.prior(draws[name])
        elif role:
            states[name] = process.corrupt(clean[name], draws[name], times[clock])
    nulls = placed(system.null_contexts(len(index)), index.device)
    lost = {name for name, weight in task.contexts.items() if not weight}
    contexts = {name: nulls[name] if name in lost else given for name, given in conditions.items()}
    keep = tuple(name for name in states if system.clocks[name] in task.generated)
    query = Query(states=states, times=times, contexts=contexts, keep=keep)
    return Example(task=task, index=index, query=query, start=start, stop=stop, draws=draws)


def aims(teacher: System, parts: Sequence[Example], steps: int) -> list[Bundle]:
    """Of every part: modality -> the clean estimate that leads in one step where `steps` of the
    guided teacher lead.  The teacher is asked once a step for all of them.
    """
    denoise = teacher.denoiser(rows_a_call=0)
    guides = [_guide(teacher, denoise, part) for part in parts]
    queries = [part.query for part in parts]
    for k in range(1, steps + 1):
        asked = [q for guide, query in zip(guides, queries) for q in guide.asks(query)]
        answers = iter(denoise(asked))
        for i, (part, guide) in enumerate(zip(parts, guides)):
            times = times_for(part.task, torch.lerp(part.start, part.stop, k / steps))
            queries[i] = _moved(teacher, queries[i], guide.answer(queries[i], answers), times)
    return [_aim(teacher, part.query, query) for part, query in zip(parts, queries)]


def _guide(teacher: System, denoise: Denoise, part: Example) -> Guided:
    """What is left out is replaced by the noise of the stage, the same in all its steps."""
    return Guided(
        denoise=denoise,
        task=part.task,
        clocks=teacher.clocks,
        w=teacher.guidance,
        absent_noise=lambda name, shape: teacher.processes[name].prior(part.draws[name]),
        null_contexts=teacher.null_contexts(len(part.index)),
        processes=teacher.processes,
    )


def _moved(system: System, query: Query, clean: Bundle, times: Times) -> Query:
    """After a deterministic step (DDIM) to `times`."""
    states = dict(query.states)
    for name, x0 in clean.items():
        process, clock = system.processes[name], system.clocks[name]
        draw = noise_in(process, states[name], x0, query.times[clock])
        states[name] = process.corrupt(x0, draw, times[clock])
    return replace(query, states=states, times=times)


def _aim(system: System, begin: Query, end: Query) -> Bundle:
    """modality -> the clean estimate that leads from one to the other in one step."""
    return {
        name: leading(
            system.processes[name],
            *((query.states[name], query.times[system.clocks[name]]) for query in (begin, end)),
        )
        for name in begin.keep
    }


def noise_in(process: GaussianProcess, x_t: Tensor, clean: Tensor, t: Tensor) -> Tensor:
    """The noise of x_t (B, ...) at t (B,) above 0, by a clean estimate."""
    alpha, sigma = _coefficients(process, t, x_t)
    return (x_t - alpha * clean) / sigma


def leading(
    process: GaussianProcess, begin: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]
) -> Tensor:
    """The clean estimate whose one deterministic step leads from a state to another.

    begin, end: a state (B, ...) and its time (B,).
    """
    (x_t, t), (x_s, s) = begin, end
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (_coefficients(process, u, x_t) for u in (t, s))
    ratio = sigma_s / sigma_t
    return (x_s - ratio * x_t) / (alpha_s - ratio * alpha_t)


def _coefficients(process: GaussianProcess, t: Tensor, like: Tensor) -> list[Tensor]:
    return [expand_times(c, like).to(like) for c in process.schedule.alpha_sigma(t)]
