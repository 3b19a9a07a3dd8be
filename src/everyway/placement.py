"""Where a system's modules lie, and when they go to the device: all of it, or what little fits.

full     everything lies on the device
offload  codecs and encoders lie in main memory and are on the device while they are used
low      so does the network: codecs and network are never there together; pictures larger
         than their autoencoder was made for are decoded tile by tile
disk     as low, and of a network of several the others lie in their files
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import nn

MEMORY = ("auto", "full", "offload", "low", "disk")
"""What may be asked for; "auto" takes the first of the next three that fits."""
SPARING = ("low", "disk")
"""Where codecs and networks are never on the device together, nor two of several networks."""
WORK_A_PIXEL = 6144
"""Bytes of a picture's pixel while an autoencoder of the published size decodes it in float32."""
CPU, NOWHERE = torch.device("cpu"), torch.device("meta")
_TURNS: dict[torch.device, Any] = {}
"""Device -> its lock: where modules move to and fro, one thread at a time has it."""


@dataclass(frozen=True, kw_only=True)
class InFile:
    """Of a module that is in memory only while it is used.  fill: reads its weights to a device.
    path: the file that they lie in."""

    fill: Callable[[torch.device], Any]
    path: Path

    def prefetch(self) -> None:
        """Asks the system to read the file ahead, into memory that it can take back."""
        if hasattr(os, "posix_fadvise") and self.path.is_file():
            with open(self.path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """device: where modules compute.  memory: a name in MEMORY that is not "auto".
    files: of the modules that lie in their files while they are not used.

    Threads may share it.
    """

    device: torch.device = CPU
    memory: str = "full"
    files: Mapping[nn.Module, InFile] = field(default_factory=dict, compare=False, repr=False)

    @property
    def sparing(self) -> bool:
        """Whether one of several networks is on the device at a time."""
        return self.memory in SPARING

    def home(self, component: str) -> torch.device:
        """Where a component ("network", "network.NAME" or a codec's) lies while it is not used."""
        if self.memory == "disk" and one_of_several(component):
            return NOWHERE
        stays = self.memory == "full" or (self.memory == "offload" and is_network(component))
        return self.device if stays else CPU

    @contextmanager
    def on_device(self, module: nn.Module, *network: nn.Module) -> Iterator[None]:
        """`module` on the device, be it a codec or one of those that the network is made of.

        Those of the network then stay there until a codec, or others of them, need their place.
        """
        if self.memory == "full" or (self.device == CPU and not self.files):
            yield
            return
        stays = any(module is part for part in network)
        with _TURNS.setdefault(self.device, RLock()):
            if self.sparing:
                for part in network:
                    if part is not module:
                        self._leave(part)
            self._enter(module)
            try:
                yield
            finally:
                if not stays:
                    self._leave(module)

    def ahead(self, module: nn.Module) -> None:
        """`module` will be used next."""
        if module in self.files and _is_empty(module):
            self.files[module].prefetch()

    def _enter(self, module: nn.Module) -> None:
        if module in self.files and _is_empty(module):
            with torch.inference_mode(False):
                self.files[module].fill(self.device)
        else:
            _move(module, self.device)

    def _leave(self, module: nn.Module) -> None:
        _move(module, NOWHERE if module in self.files else CPU)


def is_network(component: str) -> bool:
    """Whether a component is a network or a part of one, of a system within a system too."""
    return "network" in component.split(".")


def one_of_several(component: str) -> bool:
    """Whether a component is one of those that a network is made of."""
    return is_network(component) and component.split(".")[-1] != "network"


def _is_empty(module: nn.Module) -> bool:
    return next(module.parameters()).device == NOWHERE


def _move(module: nn.Module, device: torch.device) -> None:
    """Weights moved in inference mode could not be trained or written to afterwards."""
    with torch.inference_mode(False):
        module.to(device)


def memory_for(free: int, network: int, codecs: Mapping[str, int], work: int) -> str:
    """The first of MEMORY that fits into `free` bytes, or "low".

    network, codecs: bytes of weights.  work: bytes that a codec computes in.
    """
    largest = max(codecs.values(), default=0)
    needed = {
        "full": network + sum(codecs.values()) + work,
        "offload": network + largest + work,
    }
    return next((name for name, bytes_ in needed.items() if bytes_ <= free), "low")


def free_memory(device: torch.device) -> int:
    """Bytes that a device could still give; of a CPU, what its system has available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = _line_of("/proc/meminfo", "MemAvailable")
    return 2**63 if found is None else found  # a system that does not tell is not doubted


def machine(device: torch.device) -> dict[str, Any]:
    """What computes: device, processor, and the threads of the CPU.  From one such to another the
    last bits of a float32 product differ."""
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"device": device.type, "processor": processor, "threads": torch.get_num_threads()}


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that were in use: by tensors on a GPU, by this process on a CPU.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _line_of("/proc/self/status", "VmHWM")


def _line_of(path: str, name: str) -> int | None:
    """Bytes, from a line of Linux such as "VmHWM:  1024 kB"."""
    if not Path(path).exists():
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else None
