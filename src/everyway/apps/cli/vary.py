"""Make variations of a picture or a text: it is described in the other medium and made anew."""

from __future__ import annotations

import argparse

from everyway.apps.cli.flags import Parser
from everyway.apps.cli.making import add_sampling, make, settings
from everyway.request import GenerateRequest, known


def add_flags(p: Parser) -> None:
    p.add_argument("what", help="image or text", among=("image", "text"))
    p.add_argument("input", help="a picture's path, or the text")
    add_sampling(p)


def run(args: argparse.Namespace) -> int:
    known("input", args.what, ("image", "text"))
    given = {"images": (args.input,)} if args.what == "image" else {"text": args.input}
    return make(args, [GenerateRequest(kind=f"vary-{args.what}", **given, **settings(args))])
