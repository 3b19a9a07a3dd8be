"""Interpolation of two samples: the flow backwards to their start noise, and the sphere between."""

from __future__ import annotations

import torch
from torch import Tensor

from everyway.contracts import Bundle, Contexts, Denoise, Query
from everyway.system import System
from everyway.tasks import Task, times_for


def start_states(
    system: System,
    denoise: Denoise,
    task: Task,
    states: Bundle,
    given: Bundle,
    contexts: Contexts,
    steps: int,
) -> Bundle:
    """The states at t = 1 from which the deterministic flow of `task` leads to clean `states`.

    It begins where the estimates tell the noise; at 0 there is none to tell a direction.
    Sources: Song et al., 2021, arXiv 2010.02502; Bao et al., 2023, arXiv 2303.06555.
    """
    processes = system.processes
    first = max(processes[name].flow_from for name in states)
    grid = torch.linspace(first, 1.0, steps + 1, dtype=torch.float64)
    batch = next(iter(states.values())).shape[0]
    for t, s in zip(grid[:-1], grid[1:]):
        times = times_for(task, t.repeat(batch))
        query = Query(states=states | given, times=times, contexts=contexts, keep=tuple(states))
        clean = denoise([query])[0]
        states = {k: processes[k].flow(x, clean[k], t, s) for k, x in states.items()}
    return states


def slerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation of two states at weights (F,) -> (F, ...)."""
    cosine = torch.dot(a.flatten(), b.flatten()) / (a.norm() * b.norm()).clamp_min(1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1))
    w = weights.reshape(-1, *([1] * a.ndim))
    if angle.sin().abs() < 1e-4:
        return (1 - w) * a + w * b
    return (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / angle.sin()
