"""One file, one published recipe.  SYSTEMS: their names, which model folders tell.

Each is a module with

    build(config) -> System           with fresh weights
    assembled(settings, former, codecs) -> dict
                                      the config of a network of published sizes with its codecs
    lacking(config) -> list of str    the parts, as PART=FILE, that a config does not give yet
    image_size(config) -> int         side in pixels of the pictures that it reads and draws

where a config is plain data, as in the model folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from math import isfinite
from types import ModuleType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
SYSTEMS = ("uvit", "unidiffuser", "vq_diffusion")


class Lacking(ValueError):
    """A model without some of its parts.  parts: as PART=FILE."""

    def __init__(self, parts: list[str], what: str = "codecs") -> None:
        told = " ".join(f"--part {part}" for part in parts)
        super().__init__(f"this model lacks {what}; give them: {told}")


def checked(config: T) -> T:
    """A dataclass as it is; ValueError names a field that is not of the kind of its annotation.

    Numbers are finite and not below 0.
    """
    kinds = get_type_hints(type(config))
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if not _fits(value, kinds[field.name]):
            raise ValueError(f"{field.name} cannot be {value!r:.40}")
    return config


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated kind; dataclasses within are `checked`."""
    inner, kind = get_args(kind), get_origin(kind) or kind
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Any:
        return True
    if kind in (int, float):
        kinds = (int, float) if kind is float else int
        return (
            isinstance(value, kinds)
            and not isinstance(value, bool)
            and isfinite(value)
            and value >= 0
        )
    if not isinstance(value, kind):
        return False
    if is_dataclass(kind):
        checked(value)
    within = value.values() if isinstance(value, Mapping) else value if kind is tuple else ()
    one = inner[1] if isinstance(value, Mapping) and inner else inner[0] if inner else Any
    return all(_fits(v, one) for v in within)


def system_module(name: str) -> ModuleType:
    """The module of a system; ValueError lists the names there are."""
    if name not in SYSTEMS:
        raise ValueError(f"system {name!r} is unknown; choose one of {', '.join(SYSTEMS)}")
    return import_module(f"everyway.systems.{name}")


def builder(name: str) -> Callable:
    """The `build` function of a system; ValueError lists the names there are."""
    return system_module(name).build
