"""Make pictures between two pictures."""

from __future__ import annotations

import argparse

from everyway.apps.cli.flags import Parser
from everyway.apps.cli.making import add_sampling, make, settings
from everyway.request import GenerateRequest


def add_flags(p: Parser) -> None:
    p.add_argument("first", help="a picture's path")
    p.add_argument("second", help="another's")
    add_sampling(p, "frames")


def run(args: argparse.Namespace) -> int:
    pictures = (args.first, args.second)
    request = GenerateRequest(
        kind="interpolate", images=pictures, frames=args.frames, **settings(args)
    )
    return make(args, [request])
