"""What the package offers: seen by people, by editors and by type checkers, without its weight."""

from __future__ import annotations

import ast
from pathlib import Path

import everyway
from everyway.generate import Model, load
from everyway.job import Job
from everyway.request import GenerateRequest


def test_every_public_name_is_listed_and_is_there():
    assert (
        {"load", "Model", "Job", "GenerateRequest"} <= set(everyway.__all__) <= set(dir(everyway))
    )
    for name in everyway.__all__:
        assert getattr(everyway, name) is not None
    assert (everyway.load, everyway.Model, everyway.Job) == (load, Model, Job)
    assert everyway.GenerateRequest is GenerateRequest


def test_type_checkers_are_told_of_every_name():
    """The package is typed, and what is imported lazily is imported for them."""
    root = Path(everyway.__file__).parent
    assert (root / "py.typed").is_file()
    tree = ast.parse((root / "__init__.py").read_text("utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    given = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert given == {name: f"everyway.{where}" for name, where in everyway._PUBLIC.items()}
    assert everyway._PUBLIC.keys() | {"__version__"} == set(everyway.__all__)
