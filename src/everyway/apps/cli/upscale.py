"""Make a picture larger, with a model whose cascade does, in tiles where it becomes a large one."""

from __future__ import annotations

import argparse

from everyway.apps.cli.flags import Parser
from everyway.apps.cli.making import add_sampling, make, settings
from everyway.request import GenerateRequest


def add_flags(p: Parser) -> None:
    p.add_argument("picture", help="its path")
    add_sampling(p, "text")


def run(args: argparse.Namespace) -> int:
    request = GenerateRequest(
        kind="upscale", images=(args.picture,), text=args.text, **settings(args)
    )
    return make(args, [request])
