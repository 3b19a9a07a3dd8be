"""One file, one recipe.  SYSTEMS: name, which model folders hold -> module.

Another package adds its own without an edit here, as an entry point of the group
"everyway.systems".  Each is a module with

    build(config) -> System           with fresh weights
    read(config) -> its own dataclass of such a config
    assembled(settings, former, codecs) -> dict
                                      the config of a network of published sizes with its codecs
    lacking(config) -> list of str    the parts, as PART=FILE, that a config does not give yet
    image_size(config) -> int         side in pixels of the pictures that it reads and draws
    TRAININGS, Training               the presets of its trainings, and the settings that they read:
                                      name -> settings other than the defaults; a Settings class
                                      with `init`, `times`, `drop` and two methods,
                                      system(data: TrainingData) -> System, with a fresh network,
                                      and started(former: System) -> System, from that of `init`

where a config is plain data, as in the model folder.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, Protocol

from everyway.errors import UsageError

SYSTEMS = {name: f"{__name__}.{name}" for name in ("uvit", "unidiffuser", "vq_diffusion")}
SYSTEMS |= {e.name: e.value for e in entry_points(group="everyway.systems")}


class Lacking(UsageError):
    """A model without some of its parts.  parts: as PART=FILE."""

    def __init__(self, parts: list[str], what: str = "codecs") -> None:
        told = " ".join(f"--part {part}" for part in parts)
        super().__init__(f"this model lacks {what}; give them: {told}")


class TrainingData(Protocol):
    """What a fresh system may ask of the data that it will be trained on."""

    @property
    def words(self) -> tuple[str, ...]:
        """Every word of its captions, sorted."""
        ...

    @property
    def classes(self) -> int:
        """Raises ConfigError where it has none."""
        ...

    def opened(self, source: str) -> Any:
        """A model or file whose codecs it may take (`layouts.convert.Opened`)."""
        ...


def system_module(name: str) -> ModuleType:
    """The module of a system; UsageError lists the names there are, ImportError what it misses."""
    if name not in SYSTEMS:
        raise UsageError(f"system {name!r} is unknown; choose one of {', '.join(SYSTEMS)}")
    return import_module(SYSTEMS[name])


def builder(name: str) -> Callable:
    """The `build` function of a system; ValueError lists the names there are."""
    return system_module(name).build
