"""Everyway: one model goes every way between images and text."""

from __future__ import annotations

__version__ = "0.1.0"

_PUBLIC = {
    "load": "everyway.generate",
    "Model": "everyway.generate",
    "GenerateRequest": "everyway.request",
}
__all__ = ["GenerateRequest", "Model", "__version__", "load"]


def __getattr__(name: str):
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'everyway' has no attribute {name!r}")
