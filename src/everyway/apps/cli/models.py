"""The models that are here, or the facts of one."""

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
    show_json({"name": model.name, "hash": model.hash, **model.facts}, indent=2)
