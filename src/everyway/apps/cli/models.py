"""The models that are here, or the facts of one: its tasks, and what each is given, among them."""

from __future__ import annotations

import argparse

from everyway.apps.cli.flags import Parser
from everyway.apps.cli.making import show_json


def add_flags(p: Parser) -> None:
    p.add_argument("model", nargs="?", help="one, whose facts are shown")


def run(args: argparse.Namespace) -> None:
    from everyway.generate import load
    from everyway.library import shipped

    if args.model is None:
        print("\n".join(shipped()) or "no model is shipped")
        return
    model = load(args.model)
    tasks = {name: model.system.given(task) for name, task in model.system.tasks.items()}
    own = {"name": model.name, "hash": model.hash, "tasks": tasks}
    show_json(own | {k: v for k, v in model.facts.items() if k not in own}, indent=2)
