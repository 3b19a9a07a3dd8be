"""Score a model, with the whole protocol beside the scores."""

from __future__ import annotations

import argparse
import logging

from everyway.apps.cli.flags import Parser, natural
from everyway.apps.cli.language import spoken
from everyway.apps.cli.making import add_loading, load, say_memory, show_json
from everyway.request import SETTINGS, GenerateRequest


def add_flags(p: Parser) -> None:
    p.add_argument("model", help="a shipped name, a folder or file of weights, or a hub id")
    add_loading(p)
    said = "scenes, shapes or folder; by default what the model was trained on"
    p.add_argument("--suite", default="", among=("scenes", "shapes", "folder"), help=said)
    said = "pictures with captions to score it on; by default those that it was trained on"
    p.add_argument("--data", default="", help=said)
    p.add_argument("-n", type=natural, default=100, help="scenes a row")
    p.add_argument("--rows", help="only these rows, such as t2i.one,i2t.one; by default all")
    p.add_argument("--seed", type=natural, default=1_000_000, help="of scenes and samples")
    p.add_fields(GenerateRequest, *SETTINGS)
    p.add_argument("--record", action="store_true", help="keep the scores in the model's card")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")
    p.add_argument("--quiet", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> int:
    from everyway.apps.cli.progress import tracked
    from everyway.checkpoints.card import add_scores
    from everyway.library import folder_of
    from everyway.metrics.report import evaluate

    settings = {name: getattr(args, name) for name in SETTINGS}
    folder = folder_of(args.model) if args.record else None
    rows = [row for row in (args.rows or "").split(",") if row]
    logging.getLogger("everyway").setLevel(logging.ERROR)  # how each prompt is taken is no news
    with tracked(args.quiet, spoken("loading")) as (_, track):
        model = load(args, args.model)
        say_memory(args, model)
        report = evaluate(model, args.suite, args.n, args.seed, rows, settings, args.data, track)
    if folder:
        add_scores(folder, report)
    if args.json:
        show_json(report)
        return 0
    for name, row in report["rows"].items():
        for attribute, value in row.items():
            interval = f"{value['low']:.3f} to {value['high']:.3f}"
            print(f"{name:12} {attribute:12} {value['value']:.3f}  ({interval}, n={value['n']})")
    return 0
