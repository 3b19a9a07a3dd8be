"""Where a training runs: this process among all of them and its device, by Accelerate.

    torchrun --nproc-per-node 2 -m everyway.apps.cli train mini
    accelerate launch --num_processes 2 -m everyway.apps.cli train mini

Each process takes a GPU of its own, or a part of the CPU, and a part of every batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from everyway.nets.precision import fast
from everyway.train.config import ConfigError, TrainConfig

try:
    from accelerate import (
        Accelerator,
        DistributedDataParallelKwargs,
        FullyShardedDataParallelPlugin,
        tracking,
    )
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import broadcast_object_list
except ImportError:
    raise ConfigError('training needs more: pip install -e ".[train]"') from None

__all__ = ["Accelerator", "AcceleratorState", "PartialState", "accelerator", "agreed",
           "half_precision", "joined", "tracking"]  # fmt: skip
PATIENCE = timedelta(hours=2)
"""How long processes wait for one that writes files; a launcher ends them at once if it died."""


def joined(name: str) -> PartialState:
    """This process among all, with the device of that name; ConfigError where it is none."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and ":" in name:
        raise ConfigError(f"device {name!r} is one for all processes; leave its number out")
    usable = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=usable).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device {name!r} cannot be used ({reason}); leave it out") from None
    AcceleratorState._reset_state(reset_partial_state=True)  # one process may train several times
    with _told("ACCELERATE_TORCH_DEVICE", usable if ":" in usable else None):
        return PartialState(cpu=usable == "cpu", timeout=PATIENCE)


def accelerator(config: TrainConfig, half: bool, skips: bool = False) -> Accelerator:
    """The engine of a training, in the processes that `joined` found.

    half: computes in bf16, from float32 weights.  skips: some steps leave parameters out.
    """
    plugin = None
    if config.run.shard:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap"
        )
    with _told("ACCELERATE_USE_FSDP", os.environ.get("ACCELERATE_USE_FSDP")):
        return Accelerator(
            cpu=PartialState().device.type == "cpu",
            mixed_precision="bf16" if half else "no",
            gradient_accumulation_steps=config.accumulate,
            fsdp_plugin=plugin,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=skips)],
        )


def agreed(value):
    """The first process's value, on every process."""
    return broadcast_object_list([value])[0] if PartialState().num_processes > 1 else value


def half_precision(precision: str) -> bool:
    """Whether to compute in bf16; "auto" measures, in the first process."""
    if precision != "auto":
        return precision == "bf16"
    state = PartialState()
    return agreed(state.is_main_process and fast(torch.bfloat16, state.device.type))


@contextmanager
def _told(name: str, value: str | None) -> Iterator[None]:
    """The environment with this variable, or without it, and as it was afterwards."""
    former = os.environ.get(name)
    try:
        if value is not None:
            os.environ[name] = value
        yield
    finally:
        os.environ.pop(name, None)
        if former is not None:
            os.environ[name] = former
