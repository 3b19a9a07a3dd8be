"""The house's import rule: a module imports from lower layers, never from a sibling or upward."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import everyway

ROOT = Path(everyway.__file__).parent
LAYERS = {
    "errors": -1,
    "launched": -1,
    "contracts": 0,
    "atomic": 0,
    "validation": 0,
    "settings": 0.5,
    "tasks": 1,
    "process": 1,
    "nets": 1,
    "data": 1,
    "codecs": 2,
    "placement": 2,
    "system": 3,
    "checkpoints": 3,
    "objective": 4,
    "guidance": 4,
    "sampling": 4,
    "controls": 4,
    "systems": 5,
    "layouts": 6,
    "request": 6,
    "sheet": 6,
    "lora": 4,
    "library": 7,
    "upscale": 6.5,
    "plan": 8,
    "record": 8,
    "media": 9,
    "job": 10,
    "generate": 11,
    "train": 12,
    "metrics": 12,
    "apps": 13,
}
FILES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem != "__init__")


def _imports(path: Path) -> set[str]:
    """Top-level names under everyway that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules = [node.module]
            if node.module == "everyway":
                modules = [f"everyway.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        names |= {m.split(".")[1] for m in modules if m.startswith("everyway.")}
    return names


def test_every_part_has_a_layer():
    parts = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in FILES}
    assert parts == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    wrong = {n for n in _imports(path) - {own} if n in LAYERS and LAYERS[n] >= LAYERS[own]}
    assert not wrong, f"{path.relative_to(ROOT)} (layer {LAYERS[own]}) imports {sorted(wrong)}"


def test_help_and_import_stay_light():
    """Neither `import everyway` nor the command's help loads torch or anything heavier."""
    code = (
        "import sys, everyway, everyway.apps.cli as cli, everyway.request\n"
        "cli.parser()\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'gradio', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
