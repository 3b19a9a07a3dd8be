"""One file, one published recipe.  SYSTEMS: name -> a function that returns the module's `build`.

`build(config: dict) -> System` makes the system from plain data, with fresh weights.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

SYSTEMS: dict[str, Callable[[], Callable]] = {
    "uvit": lambda: import_module("everyway.systems.uvit").build,
    "unidiffuser": lambda: import_module("everyway.systems.unidiffuser").build,
    "vq_diffusion": lambda: import_module("everyway.systems.vq_diffusion").build,
}


def builder(name: str) -> Callable:
    """The `build` function of a system; ValueError lists the names there are."""
    if name not in SYSTEMS:
        raise ValueError(f"system {name!r} is unknown; choose one of {', '.join(SYSTEMS)}")
    return SYSTEMS[name]()
