"""A model as experts of intervals of noise: split one, measure where to, report what each does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from everyway.apps.cli.flags import Parser, folder, natural, seconds
from everyway.apps.cli.language import spoken
from everyway.apps.cli.making import add_loading, load, show_json
from everyway.apps.cli.train import settings, trained
from everyway.errors import UsageError


def add_flags(p: Parser) -> None:
    commands = p.add_subparsers(
        dest="what", metavar="WHAT", required=True, help=spoken("split, measure or report")
    )
    said = spoken("branch a trained model, and train every expert")
    split = commands.add_parser("split", help=said)
    split.add_argument("base", help="a model, by name or folder; or a preset, trained first")
    said = "edges-L, level-L, measured-N, ediffi-a to -d, or intervals such as E1_0,E3_7"
    split.add_argument("--plan", default="edges-1", help=said)
    split.add_argument("--out", type=folder, help="the run folder; by default runs/experts")
    split.add_argument(
        "--budget", type=seconds, help="time of all stages; by default 64,000 samples each"
    )
    said = (
        "another value of a setting of every stage, such as samples=640000; by default the base's"
    )
    split.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=said)
    split.add_argument("--quiet", action="store_true", help="show no progress")
    split.set_defaults(do=_split)

    said = spoken("where experts would help a trained model")
    measure = commands.add_parser("measure", help=said)
    measure.add_argument("base", help="a model, by name or folder")
    measure.add_argument("--level", type=natural, default=3, help="the deepest intervals")
    measure.add_argument("--batches", type=natural, default=32, help="for each of those, even")
    measure.add_argument("--out", type=folder, help="a run folder with its cache; a fresh one")
    said = "another value of a setting, such as cache=2000; by default the base's"
    measure.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=said)
    measure.add_argument("--json", action="store_true", help="one JSON object")
    measure.set_defaults(do=_measure)

    said = spoken("what each expert of an ensemble does")
    report = commands.add_parser("report", help=said)
    report.add_argument("model", help="a model with experts, or a cascade of one")
    add_loading(report)
    report.add_argument("--root", help="what stands in for an expert; by default its neighbour")
    report.add_argument("-n", type=natural, default=200, help="scenes that are scored; 0 is none")
    report.add_argument("--rows", default="t2i.one", help="of the score, as in evaluate")
    report.add_argument("--seed", type=natural, default=1_000_000, help="of scenes and samples")
    report.add_argument("--json", action="store_true", help="one JSON object")
    report.set_defaults(do=_report)


def run(args: argparse.Namespace) -> int:
    return args.do(args) or 0


def _split(args: argparse.Namespace) -> int:
    return trained(_config(args, plan=args.plan, budget=args.budget), args.quiet)


def _config(args: argparse.Namespace, plan: str = "edges-1", budget: float | None = None) -> Any:
    from everyway.train.stack import resolved

    given = {**settings(args.set), "base": args.base, "plan": plan}
    return resolved("experts", given, args.out, budget)


def _measure(args: argparse.Namespace) -> None:
    from dataclasses import asdict
    from tempfile import TemporaryDirectory

    from everyway.train import devices, experts

    if args.level < 1 or args.batches < 2 or args.batches % 2:
        raise UsageError("give a --level of 1 or more and an even number of --batches")
    with TemporaryDirectory() as scratch:
        args.out = args.out or scratch
        config = _config(args)
        devices.joined(config.run.device)
        root = experts.opened(args.base, config)
        rows = experts.measured(root, config, args.level, args.batches, lambda line: None)
    if args.json:
        show_json({"base": args.base, "rows": [asdict(row) for row in rows]})
        return
    table = [
        (row.node.name, f"{row.node.low:.4g} to {row.node.high:.4g}", f"{row.loss:.4f}",
         "" if row.gain is None else f"{row.gain:.3e}")
        for row in rows
    ]  # fmt: skip
    _print(("interval", "quantiles", "loss", "gain of parting it"), table)


def _report(args: argparse.Namespace) -> None:
    from everyway.apps.swapping import report

    made = report(load(args, args.model), args.root, args.n, args.seed, args.rows.split(","))
    if args.json:
        show_json(made)
        return
    names = [row["expert"] for row in made["losses"]]
    table = [(r["expert"], *(f"{r['by'][n]:.4f}" for n in names)) for r in made["losses"]]
    print("loss at the noise of each expert, by each expert")
    _print(("noise of", *names), table)
    if not made["scores"]:
        return
    print("\nscore with one expert swapped for another network")
    table = [
        (s["without"] or "all", s["by"], row, f"{cells['all_correct']['value']:.3f}",
         f"{cells['all_correct']['low']:.3f} to {cells['all_correct']['high']:.3f}")
        for s in made["scores"] for row, cells in s["rows"].items()
    ]  # fmt: skip
    _print(("without", "by", "row", "all correct", "95 %"), table)


def _print(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
