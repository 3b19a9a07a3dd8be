"""Everyway: one model goes every way between images and text."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everyway.errors import EverywayError
    from everyway.generate import Model, Preview, Result, load
    from everyway.job import Job
    from everyway.request import GenerateRequest

__version__ = "0.1.0"

_PUBLIC = {
    "EverywayError": "errors",
    "GenerateRequest": "request",
    "Job": "job",
    "Model": "generate",
    "Preview": "generate",
    "Result": "generate",
    "load": "generate",
}
__all__ = [
    "EverywayError",
    "GenerateRequest",
    "Job",
    "Model",
    "Preview",
    "Result",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: `import everyway` is light."""
    if name in _PUBLIC:
        return getattr(import_module(f"everyway.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'everyway' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
