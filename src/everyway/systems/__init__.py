"""One file, one recipe.  SYSTEMS: name, which model folders hold -> module.

Another package adds its own without an edit here, as an entry point of the group
"everyway.systems".  Each is a module with

    build(config) -> System                 with fresh weights
    missing_parts(config) -> list of str    as PART=FILE, what a config does not give yet
    image_size(config) -> int               side in pixels of the pictures that it reads and draws

and, where there are published weights of it,

    read(config) -> its own dataclass of such a config
    assembled(settings, former, codecs) -> dict
                                      the config of a network of published sizes with its codecs

and, where it is trained here,

    TRAININGS, Training               the presets of its trainings, and the settings that they read:
                                      name -> settings other than the defaults; a Settings class
                                      with `preset`, `init`, `times`, `drop`, where codecs have
                                      weights `codecs`, and two methods,
                                      system(data: TrainingData) -> System, with a fresh network,
                                      and started(former: System) -> System, from that of `init`;
                                      and, where a batch is not learned from as it is cached,
                                      prepared(system, encoded, noise) -> what it is learned from
    DATA                              data sets of its own: name -> what makes one of a seed, with
                                      sample(index) -> data.sample.Sample

where a config is plain data, as in the model folder.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, Protocol

from everyway.errors import UsageError

HUB = "hf:"
"""How a source begins that is downloaded from the hub, and only then: hf:owner/name."""
OWN = ("uvit", "unidiffuser", "vq_diffusion", "versatile", "ediffi", "ensemble", "cascade")
SYSTEMS = {name: f"{__name__}.{name}" for name in OWN}
SYSTEMS |= {e.name: e.value for e in entry_points(group="everyway.systems")}
FUNCTIONS = ("build", "missing_parts", "image_size")
"""Those that every system has."""


class MissingParts(UsageError):
    """A model without some of its parts.  parts: as PART=FILE."""

    def __init__(self, parts: list[str], what: str = "codecs") -> None:
        flags = " ".join(f"--part {part}" for part in parts)
        super().__init__(f"this model lacks {what}; give them: {flags}")


class TrainingData(Protocol):
    """What a fresh system may ask of the data that it will be trained on."""

    @property
    def words(self) -> tuple[str, ...]:
        """Every word of its captions, sorted."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes, by number; ConfigError where it has none."""
        ...

    def opened(self, source: str) -> Any:
        """A model or file whose codecs it may take (`layouts.convert.Opened`)."""
        ...


def system_module(name: str) -> ModuleType:
    """The module of a system; UsageError lists the names there are, ImportError what it misses."""
    if name not in SYSTEMS:
        raise UsageError(f"system {name!r} is unknown; choose one of {', '.join(SYSTEMS)}")
    module = import_module(SYSTEMS[name])
    if missing := [function for function in FUNCTIONS if not hasattr(module, function)]:
        raise ImportError(f"{module.__name__} has no function {', '.join(missing)}")
    return module


def builder(name: str) -> Callable:
    """The `build` function of a system; UsageError lists the names there are."""
    return system_module(name).build
