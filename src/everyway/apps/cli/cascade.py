"""Put a model and those that enlarge its pictures, in order, into one model folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from everyway.apps.cli.flags import Parser, folder
from everyway.errors import UsageError

WEIGHTS = ("fp32", "bf16", "fp16", "int8")


def add_flags(p: Parser) -> None:
    p.add_argument("base", help="a model that draws, by name or folder")
    p.add_argument("stages", nargs="+", help="models that enlarge, by name or folder")
    p.add_argument("--out", type=folder, default="runs/cascade", help="the model's folder")
    said = f"number format of what is written: {', '.join(WEIGHTS)}"
    p.add_argument("--weights", default="fp32", among=WEIGHTS, help=said)


def run(args: argparse.Namespace) -> None:
    from everyway.library import load
    from everyway.library import save_cascade as save

    if args.weights not in WEIGHTS:
        raise UsageError(f"weights are {args.weights!r}; choose one of {', '.join(WEIGHTS)}")
    base, *stages = (load(name, device="cpu", dtype="fp32") for name in (args.base, *args.stages))
    save(Path(args.out), base, stages, args.weights)
    print(f"{args.out}: {base.name}, enlarged by {', '.join(stage.name for stage in stages)}")
