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
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from everyway.contracts import Times
from everyway.errors import UsageError

Time = TypeVar("Time", float, Tensor)


@dataclass(frozen=True)
class Path:
    """A clock's time in a run: t = path(u), with u falling from 1 to 0 over the run.

    knots: (u, t), both rising from 0 to 1; the path is straight between them.  With a path for
    each of two clocks a run follows any curve through the square of times: one state first, one
    ahead of the other, or (the identity) both together.
    """

    knots: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        knots = tuple((float(u), float(t)) for u, t in self.knots)
        object.__setattr__(self, "knots", knots)
        rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(knots))
        if len(knots) < 2 or (knots[0], knots[-1]) != ((0.0, 0.0), (1.0, 1.0)) or not rising:
            raise ValueError(
                f"path {knots} must rise from (0, 0) to (1, 1), as in (0, 0), (0.5, 0), (1, 1)"
            )

    def __call__(self, u: Time) -> Time:
        """t of u, floats or float64 tensors of any shape."""
        if not isinstance(u, Tensor):
            return float(self(torch.tensor(u, dtype=torch.float64)))
        t = torch.zeros_like(u)
        for (u0, t0), (u1, t1) in pairwise(self.knots):
            between = t0 + (t1 - t0) * (u - u0) / (u1 - u0)
            t = torch.where(u > u0, torch.where(u < u1, between, t1), t)
        return t


FIRST = Path(((0.0, 0.0), (0.5, 0.0), (1.0, 1.0)))
"""Made in the first half of a run, and given exactly in the second."""
LAST = Path(((0.0, 0.0), (0.5, 1.0), (1.0, 1.0)))
"""Absent in the first half of a run, and made in the second."""
PATHS = {"first": FIRST, "last": LAST}


@dataclass(frozen=True)
class Role:
    """What a clock does in a task.  kind: "generate", "given" or "absent".

    level: for a given state, the time it is held at; 0 is exactly clean, in (0, 1) it is noisy.
    path: of a generated state, where it is not the run's own time.
    """

    kind: str
    level: float = 0.0
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("generate", "given", "absent"):
            raise ValueError(f"role {self.kind!r} is unknown; use generate, given or absent")
        if not 0.0 <= self.level < 1.0:
            raise UsageError(f"given noise level {self.level} is outside [0, 1); 1 means absent")
        if self.path and self.kind != "generate":
            raise ValueError(f"a {self.kind} clock has no path; generated ones have")

    def time(self, u: Time) -> Time:
        """The clock's time when the run is at u, a float or (B,)."""
        if self.kind == "generate":
            return self.path(u) if self.path else u
        held = 1.0 if self.kind == "absent" else self.level
        return torch.full_like(u, held) if isinstance(u, Tensor) else held


GENERATE = Role("generate")
GIVEN = Role("given")
ABSENT = Role("absent")


def given_noisy(level: float) -> Role:
    """A condition that is itself at time `level` in [0, 1)."""
    return Role("given", level)


def generated_along(path: Path) -> Role:
    """Generated, with a time of its own; on the straight path that is the run's."""
    return Role("generate", path=path) if any(u != t for u, t in path.knots) else GENERATE


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One unconditional query of guidance: what it leaves out, and whose answer counts.

    absent: clocks that go to t = 1.  without: contexts that become their null.
    keep: the clocks whose estimate is moved away from this one.
    weight: of this branch; None is the run's guidance.
    """

    keep: tuple[str, ...]
    absent: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """Roles of the clocks, and how much of each context the network is given.

    roles: clock -> Role; a clock that is left out is not shown to the network at all.
    contexts: context name -> weight in [0, 1]: 0 its null, 1 as given, between them blended; one
    that is left out is its null.
    guidance: the unconditional queries; None leaves them to `guidance.branches`.
    null: the name of the nulls that it has unless a request names others; "" is the first ones.
    """

    name: str
    roles: Mapping[str, Role]
    contexts: Mapping[str, float] = field(default_factory=dict)
    guidance: tuple[Branch, ...] | None = None
    null: str = ""

    def __post_init__(self) -> None:
        if not self.generated:
            raise UsageError(
                f"task {self.name!r} generates nothing; give one clock the role GENERATE"
            )
        for name, weight in self.contexts.items():
            if not 0 <= weight <= 1:
                raise UsageError(
                    f"task {self.name!r} weighs {name!r} by {weight:g}; give a number from 0 to 1"
                )
        for branch in self.guidance or ():
            known = {*self.roles, *self.contexts}
            if odd := {*branch.keep, *branch.absent, *branch.without} - known:
                raise ValueError(f"guidance of task {self.name!r} names an unknown {sorted(odd)}")

    @property
    def generated(self) -> tuple[str, ...]:
        return tuple(clock for clock, role in self.roles.items() if role.kind == "generate")

    @property
    def given(self) -> tuple[str, ...]:
        return tuple(clock for clock, role in self.roles.items() if role.kind == "given")

    @property
    def given_contexts(self) -> tuple[str, ...]:
        """The contexts of which the network is given something."""
        return tuple(name for name, weight in self.contexts.items() if weight > 0)

    def replace(self, **roles: Role) -> Task:
        """The same task with some clocks' roles changed."""
        unknown = set(roles) - set(self.roles)
        if unknown:
            raise UsageError(
                f"task {self.name!r} has no clock {sorted(unknown)}; it has {[*self.roles]}"
            )
        return replace(self, roles={**self.roles, **roles})

    def along(self, paths: Mapping[str, Path]) -> Task:
        """The same task with paths for some of its generated clocks."""
        if wrong := sorted(set(paths) - set(self.generated)):
            raise UsageError(
                f"task {self.name!r} does not generate {', '.join(wrong)}; give a path to "
                f"{', '.join(self.generated)}"
            )
        return self.replace(**{clock: generated_along(path) for clock, path in paths.items()})


def times_for(task: Task, t: Tensor) -> Times:
    """One row of the table: clock -> (B,) float64, with the run at t (B,)."""
    t = t.to(torch.float64)
    return {clock: role.time(t) for clock, role in task.roles.items()}


TEXT_TO_IMAGE = Task(name="text-to-image", roles={"image": GENERATE, "text": GIVEN})
IMAGE_TO_TEXT = Task(name="image-to-text", roles={"image": GIVEN, "text": GENERATE})
JOINT = Task(name="joint", roles={"image": GENERATE, "text": GENERATE})
IMAGE_ALONE = Task(name="image", roles={"image": GENERATE, "text": ABSENT})
TEXT_ALONE = Task(name="text", roles={"image": ABSENT, "text": GENERATE})

TASKS = {t.name: t for t in (TEXT_TO_IMAGE, IMAGE_TO_TEXT, JOINT, IMAGE_ALONE, TEXT_ALONE)}


def drawing(condition: str, nulls: bool = True) -> dict[str, Task]:
    """The tasks of a system of pictures alone, whose network is conditioned on "text", "label" or
    "".

    nulls: whether it has a null, without which it draws nothing unconditionally.
    """
    alone = Task(
        name="image", roles={"image": GENERATE}, contexts={condition: 0.0} if condition else {}
    )
    if not condition:
        return {"image": alone}
    name = {"text": "text-to-image", "label": "class-to-image"}[condition]
    made = {name: Task(name=name, roles={"image": GENERATE}, contexts={condition: 1.0})}
    return made | {"image": alone} if nulls else made


def named_task(name: str) -> Task:
    """The task of that name; ValueError lists the names there are."""
    if name not in TASKS:
        raise UsageError(f"task {name!r} is unknown; choose one of {', '.join(TASKS)}")
    return TASKS[name]
