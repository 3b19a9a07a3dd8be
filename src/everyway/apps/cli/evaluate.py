"""Score a model, with the whole protocol beside the scores."""

from __future__ import annotations

import argparse

from everyway.apps.cli.flags import Parser, natural
from everyway.apps.cli.making import add_loading, load, say, show_json
from everyway.request import SETTINGS, GenerateRequest


def add_flags(p: Parser) -> None:
    p.add_argument("model", help="a shipped name, a folder or file of weights, or a hub id")
    add_loading(p)
    said = "scenes or shapes; by default what the model was trained on"
    p.add_argument("--suite", among=("scenes", "shapes"), help=said)
    p.add_argument("-n", type=natural, default=1000, help="scenes a row")
    p.add_argument("--rows", help="only these rows, such as t2i.one,i2t.one; by default all")
    p.add_argument("--seed", type=natural, default=1_000_000, help="of scenes and samples")
    p.add_fields(GenerateRequest, *SETTINGS)
    p.add_argument("--record", action="store_true", help="keep the scores in the model's card")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    from everyway.checkpoints.card import add_scores
    from everyway.library import folder_of
    from everyway.metrics.report import evaluate

    settings = {name: getattr(args, name) for name in SETTINGS}
    folder = folder_of(args.model) if args.record else None
    model = load(args, args.model)
    own = "shapes" if model.metadata.get("training", {}).get("data") == "shapes" else "scenes"
    rows = [row for row in (args.rows or "").split(",") if row]
    report = evaluate(model, args.suite or own, args.n, args.seed, rows, settings)
    say(args, model.note)
    if folder:
        add_scores(folder, report)
    if args.json:
        show_json(report)
        return 0
    for name, row in report["rows"].items():
        for attribute, value in row.items():
            interval = f"{value['low']:.3f} to {value['high']:.3f}"
            print(f"{name:8} {attribute:12} {value['value']:.3f}  ({interval}, n={value['n']})")
    return 0
