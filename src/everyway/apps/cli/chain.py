"""Draw a text, describe the picture, draw the description, and so on (blocked Gibbs)."""

from __future__ import annotations

import argparse

from everyway.apps.cli.flags import Parser
from everyway.apps.cli.making import add_sampling, make, settings
from everyway.request import GenerateRequest


def add_flags(p: Parser) -> None:
    p.add_argument("--text", required=True, help="the prompt that it begins with")
    add_sampling(p, "rounds")


def run(args: argparse.Namespace) -> int:
    request = GenerateRequest(kind="chain", text=args.text, rounds=args.rounds, **settings(args))
    return make(args, [request])
