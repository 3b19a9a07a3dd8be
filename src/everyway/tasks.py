"""The whole theory as one table: which states are generated, given or absent.

| task           | image time | text time |
|----------------|------------|-----------|
| text to image  | t          | 0         |
| image to text  | 0          | t         |
| joint          | t          | t         |
| image alone    | t          | 1         |
| text alone     | 1          | t         |

A number between 0 and 1 in place of 0 is a condition that is itself noisy.
Source: Bao et al., "One Transformer Fits All Distributions in Multi-Modal Diffusion at Scale",
2023, arXiv 2303.06555.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from everyway.contracts import Times


@dataclass(frozen=True)
class Role:
    """What a clock does in a task.  kind: "generate", "given" or "absent".

    level: for a given state, the time it is held at; 0 is exactly clean, in (0, 1) it is noisy.
    """

    kind: str
    level: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("generate", "given", "absent"):
            raise ValueError(f"role {self.kind!r} is unknown; use generate, given or absent")
        if not 0.0 <= self.level < 1.0:
            raise ValueError(f"given noise level {self.level} is outside [0, 1); 1 means absent")

    def time(self, t: Tensor) -> Tensor:
        """The clock's time (B,) when the generated clocks are at t (B,)."""
        if self.kind == "generate":
            return t
        return torch.full_like(t, 1.0 if self.kind == "absent" else self.level)


GENERATE = Role("generate")
GIVEN = Role("given")
ABSENT = Role("absent")


def given_noisy(level: float) -> Role:
    """A condition that is itself at time `level` in [0, 1)."""
    return Role("given", level)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Roles of the clocks, and which contexts are told.

    roles: clock -> Role.  contexts: context name -> True (given) or False (null).
    """

    name: str
    roles: Mapping[str, Role]
    contexts: Mapping[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.generated:
            raise ValueError(
                f"task {self.name!r} generates nothing; give one clock the role GENERATE"
            )

    @property
    def generated(self) -> tuple[str, ...]:
        return tuple(clock for clock, role in self.roles.items() if role.kind == "generate")

    @property
    def given(self) -> tuple[str, ...]:
        return tuple(clock for clock, role in self.roles.items() if role.kind == "given")

    def replace(self, **roles: Role) -> Task:
        """The same task with some clocks' roles changed."""
        unknown = set(roles) - set(self.roles)
        if unknown:
            raise ValueError(
                f"task {self.name!r} has no clock {sorted(unknown)}; it has {[*self.roles]}"
            )
        return Task(name=self.name, roles={**self.roles, **roles}, contexts=self.contexts)


def times_for(task: Task, t: Tensor) -> Times:
    """One row of the table: clock -> (B,) float64, with generated clocks at t (B,)."""
    t = t.to(torch.float64)
    return {clock: role.time(t) for clock, role in task.roles.items()}


TEXT_TO_IMAGE = Task(name="text-to-image", roles={"image": GENERATE, "text": GIVEN})
IMAGE_TO_TEXT = Task(name="image-to-text", roles={"image": GIVEN, "text": GENERATE})
JOINT = Task(name="joint", roles={"image": GENERATE, "text": GENERATE})
IMAGE_ALONE = Task(name="image", roles={"image": GENERATE, "text": ABSENT})
TEXT_ALONE = Task(name="text", roles={"image": ABSENT, "text": GENERATE})

TASKS = {t.name: t for t in (TEXT_TO_IMAGE, IMAGE_TO_TEXT, JOINT, IMAGE_ALONE, TEXT_ALONE)}


def drawing(told: str, nulls: bool = True) -> dict[str, Task]:
    """The tasks of a system of pictures alone, whose network is told "text", "label" or "".

    nulls: whether it has a null, without which it draws nothing untold.
    """
    alone = Task(name="image", roles={"image": GENERATE}, contexts={told: False} if told else {})
    if not told:
        return {"image": alone}
    name = {"text": "text-to-image", "label": "class-to-image"}[told]
    made = {name: Task(name=name, roles={"image": GENERATE}, contexts={told: True})}
    return made | {"image": alone} if nulls else made


def named_task(name: str) -> Task:
    """The task of that name; ValueError lists the names there are."""
    if name not in TASKS:
        raise ValueError(f"task {name!r} is unknown; choose one of {', '.join(TASKS)}")
    return TASKS[name]
