"""Weights of authors or of diffusers into a model folder, and back; LoRAs into those of a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from everyway.apps.cli.flags import Parser, folder, pair
from everyway.apps.cli.language import spoken
from everyway.apps.cli.making import show_json
from everyway.errors import UsageError
from everyway.request import GenerateRequest, known, read_lora

DTYPES, ORIGINS = ("fp32", "bf16", "fp16"), ("authors", "authors-2022", "diffusers")


def add_flags(p: Parser) -> None:
    many: dict[str, Any] = {"action": "append", "default": [], "type": pair}
    p.add_argument("source", help="a file or folder of weights, or a model folder")
    p.add_argument("--layout", default="", help="how its tensors are named; by default recognised")
    p.add_argument("--out", type=folder, required=True, help="the folder that is written")
    p.add_argument("--dtype", among=DTYPES, help="fp32, bf16 or fp16; by default as the file has")
    p.add_argument("--part", **many, metavar="NAME=PATH", help="what the source lacks, or a hub id")
    said = "which of the weights that a file holds, as ema; by default the average if there is one"
    p.add_argument("--weights", default="", help=said)
    p.add_argument("--set", **many, metavar="KEY=VALUE", help="what no file shows, as heads=16")
    said = "a LoRA that is merged into the weights; several at once, each with its weight"
    p.add_argument("--lora", action="append", default=[], metavar="FILE[:WEIGHT]", help=said)
    said = "authors, authors-2022 or diffusers: write a model folder back as their files"
    p.add_argument("--to", among=ORIGINS, help=said)
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    known("dtype", args.dtype or "fp32", DTYPES)
    known("origin", args.to or "authors", ORIGINS)
    if args.to and args.dtype:
        raise UsageError(f"--to {args.to} keeps every number as it is; leave --dtype out")
    if args.lora:
        return _merge(args)
    out = Path(args.out)
    from everyway.layouts import convert

    model = convert.open_model(
        args.source, args.layout, dict(args.part), args.weights, dict(args.set)
    )
    if args.to:
        written = [str(path) for path in convert.write_back(model, args.to, out)]
        show_json({"out": str(out), "files": written}) if args.json else print("\n".join(written))
        return 0
    convert.save(model, out, convert.DTYPES[args.dtype] if args.dtype else None)
    metadata = {"system": model.config["system"], "parameters": model.parameters, **model.metadata}
    needed = convert.missing_parts(model)
    if args.json:
        show_json({"out": str(out), **metadata, "needed": needed})
        return 0
    for name, row in metadata.get("source", {}).items():
        summary = f"{row['layout']}, {row['preset'] or 'of no published size'}"
        print(f"{name}: {summary}, {row['tensors']} tensors{_left(row)}")
    print(f"{out}: {metadata['parameters']:,} parameters")
    if needed:
        print("before it can be used: " + " ".join(f"--part {part}" for part in needed))
    return 0


def _merge(args: argparse.Namespace) -> int:
    """A model folder with LoRAs in its weights."""
    if args.to:
        raise UsageError(f"--to {args.to} is of a model folder; merge first, then convert that")
    from everyway import library
    from everyway.lora import lora_of

    weights = GenerateRequest(kind="joint", lora=args.lora).lora
    loras = [(lora_of(read_lora(name), name), weight) for name, weight in weights.items()]
    settings = {**dict(args.set), "layout": args.layout, "weights": args.weights}
    settings = {name: value for name, value in settings.items() if value}
    base = library.load(args.source, "cpu", "fp32", "full", dict(args.part), settings)
    dtype = library.DTYPES[args.dtype] if args.dtype else None
    library.save_merged(Path(args.out), base, loras, dtype)
    rows = library.metadata_of(args.out)["merged"]
    if args.json:
        show_json({"out": args.out, "base": base.name, "merged": rows})
        return 0
    said = ", ".join(f"{name} times {weight:g}" for name, weight in weights.items())
    print(spoken(f"{args.out}: {base.name} with {said}"))
    return 0


def _left(row: dict[str, Any]) -> str:
    """What became of the tensors that no network reads, and which of several sets was taken."""
    words = {"aside": "kept unread", "dropped": "left out"}
    left = "".join(f", {row[k]} {said}" for k, said in words.items() if row[k])
    return left + (f"; weights: {row['weights']}" if row.get("weights") else "")
