"""Which layer of a network it was that made numbers which are not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from everyway.train.learner import Learner


def fault_of(
    learner: Learner, batches: Iterable[Any], autocast: Callable[[], AbstractContextManager]
) -> str:
    """In words, with the layer's name; "" where all that these batches teach is finite.

    batches: of the step that diverged, drawn again.  autocast: to the training's number format.
    On the way there it is the first layer that makes such numbers, on the way back the last one
    that gets such a gradient.
    """
    fault, called = list[str](), list[str]()
    eager = getattr(torch.compiler, "set_stance", lambda stance: nullcontext())
    with ExitStack() as stack:
        stack.enter_context(eager("force_eager"))  # hooks are not called in what is compiled
        for name, module in learner.named_modules():
            hook = module.register_forward_hook(_watching(name, fault, called))
            stack.callback(hook.remove)
        for batch in batches:
            learner.zero_grad()
            with autocast():
                loss, _ = learner(batch)
            if fault:
                return fault[0]
            loss.backward()
            if lost := [name for name in called if not _finite_gradient(learner, name)]:
                return f"{lost[-1]} got a gradient that is not finite"
    return ""


def _watching(name: str, fault: list[str], called: list[str]) -> Any:
    """A hook that notes a layer, and its fault where it is the first."""

    def look(module: nn.Module, given: tuple, made: Any) -> None:
        called.append(name)
        if fault or _finite(made):
            return
        verb = "made" if _finite(given) else "was given"
        fault.append(f"{name or 'the loss'} {verb} numbers that are not finite")

    return look


def _finite(tree: Any) -> bool:
    tensors = (x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.is_floating_point())
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _finite_gradient(learner: Learner, name: str) -> bool:
    own = learner.get_submodule(name).parameters(recurse=False)
    return all(p.grad is None or bool(p.grad.isfinite().all()) for p in own)
