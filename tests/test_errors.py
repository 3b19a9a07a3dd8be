"""One base for all that a user can mend: a line and an exit code; the rest stays a traceback."""

from __future__ import annotations

import ast
import importlib
import sys
import types
from pathlib import Path

import pytest

import everyway
from everyway.errors import EverywayError, UsageError
from everyway.systems import FUNCTIONS, system_module

ROOT = Path(everyway.__file__).parent


def classes() -> list[tuple[str, str]]:
    """(module, name) of every exception that the package defines."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            bases = [ast.unparse(base) for base in getattr(node, "bases", ())]
            if isinstance(node, ast.ClassDef) and any(
                base.endswith(("Error", "Exception")) for base in bases
            ):
                found.append((module, node.name))
    return found


@pytest.mark.parametrize(("module", "name"), classes())
def test_every_error_of_ours_has_the_one_base(module, name):
    kind = getattr(importlib.import_module(module), name)
    assert issubclass(kind, EverywayError) and kind.exit_code in (1, 2)


def test_what_is_asked_wrongly_is_a_value_error_too():
    assert issubclass(UsageError, ValueError) and UsageError.exit_code == 2


@pytest.mark.parametrize("kind", [ValueError, TypeError, KeyError, AttributeError, RuntimeError])
def test_a_fault_of_ours_stays_a_traceback(run, monkeypatch, kind):
    def broken(self, request):
        raise kind("ours")

    monkeypatch.setattr(everyway.generate.Model, "settled", broken)
    with pytest.raises(kind, match="ours"):
        run("generate", "image", "--model", "nano")


REFUSED = {
    "too few steps": ["generate", "image", "--sampler", "em-sde", "--steps", "1"],
    "too few for its order": ["generate", "image", "--sampler", "dpm++3s", "--steps", "2"],
    "a patch": ["train", "nano", "--set", "system=uvit", "--set", "times=uniform"]
    + ["--set", "patch=5"],
    "no scenes": ["evaluate", "nano", "--suite", "shapes", "-n", "0"],
    "a part": ["generate", "image", "--model", "nano", "--part", "moon=x"],
    "a null": ["generate", "image", "--null", "moon"],
    "a hub id": ["generate", "image", "--model", "no.such/file.json"],
}


@pytest.mark.parametrize("words", REFUSED.values(), ids=REFUSED)
def test_what_a_layer_below_refuses_is_a_line(run, words):
    model = [] if "--model" in words or words[0] != "generate" else ["--model", "nano"]
    code, out, err = run(*words, *model)
    assert code == 2 and err.startswith("everyway: ") and err.count("\n") == 1, err


def test_a_system_without_a_function_is_no_damaged_model(monkeypatch):
    """A recipe in the making is a fault of its author, which names what it misses."""
    half = types.ModuleType("everyway.systems.uvit")
    half.build = lambda config: None
    monkeypatch.setitem(sys.modules, "everyway.systems.uvit", half)
    with pytest.raises(ImportError, match=f"has no function {', '.join(FUNCTIONS[1:])}"):
        system_module("uvit")
