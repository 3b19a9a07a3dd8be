"""Show every use of a model on one labelled sheet, OUT/demo.png."""

from __future__ import annotations

import argparse
from pathlib import Path

from everyway.apps.cli.flags import Parser, folder
from everyway.apps.cli.making import add_loading, load, say_memory
from everyway.request import GenerateRequest


def add_flags(p: Parser) -> None:
    p.add_fields(GenerateRequest, "model")
    add_loading(p)
    p.add_argument("--out", type=folder, default="out", help="for demo.png and what is on it")


def run(args: argparse.Namespace) -> None:
    model = load(args, args.model)
    say_memory(args, model)
    from everyway.apps.demo import demo

    demo(model, Path(args.out), print)
