"""Write a built-in data set as a folder, or check a folder of pictures with captions."""

from __future__ import annotations

import argparse
from pathlib import Path

from everyway.apps.cli.flags import Parser, folder, natural
from everyway.apps.cli.language import spoken
from everyway.apps.cli.making import show_json
from everyway.errors import UsageError
from everyway.request import known

WHAT = ("emoji", "shapes", "check")


def add_flags(p: Parser) -> None:
    p.add_argument("what", help="emoji or shapes (written to --out), or check", among=WHAT)
    said = "the folder, tar shards or hf:owner/name that check reads"
    p.add_argument("path", nargs="?", help=said)
    said = "check also tells which captions it cannot read; by default none is asked"
    p.add_argument("--model", help=said)
    said = "where samples, by default out/emoji or out/shapes, or the contact sheet go"
    p.add_argument("--out", type=folder, help=said)
    p.add_argument("-n", type=natural, default=100, help="how many samples")
    p.add_argument("--seed", type=natural, default=0, help="of the samples")
    p.add_argument("--json", action="store_true", help="the report of check as one JSON object")


def run(args: argparse.Namespace) -> int:
    known("data command", args.what, WHAT)
    if args.what == "check":
        return _check(args)
    if args.path is not None:
        raise UsageError(f"data {args.what} takes no path; it writes to --out")
    if args.n < 1:
        raise UsageError(f"-n {args.n}: at least 1 sample")
    from everyway.data import folder

    if args.what == "emoji":
        from everyway.data.emoji import EmojiScenes

        data = EmojiScenes(seed=args.seed)
    else:
        from everyway.data.shapes import Shapes

        data = Shapes(seed=args.seed, size=64)
    out = Path(args.out or f"out/{args.what}")
    folder.write_folder(out, (data.sample(i) for i in range(args.n)))
    print(spoken(f"{args.n} samples in {out}"))
    return 0


def _check(args: argparse.Namespace) -> int:
    """What a folder holds and what is wrong with it; exit code 1 if anything is."""
    from everyway.atomic import atomic_write
    from everyway.data.check import check
    from everyway.data.faults import printable

    if args.path is None:
        raise UsageError("data check needs a folder: everyway data check PATH")
    if args.out and Path(args.out).resolve().is_relative_to(Path(args.path).resolve()):
        raise UsageError(f"--out {args.out} is in the data, where a sheet counts; give another")
    reads = None
    if args.model:
        from everyway.generate import load

        reads = load(args.model, device="cpu").system.reads
    report = check(args.path, reads=reads)
    sheet = Path(args.out) / "contact-sheet.png" if args.out and report.sheet else None
    if sheet:
        with atomic_write(sheet) as temporary:
            report.sheet.save(temporary, format="PNG")
    extra = {"contact_sheet": printable(sheet)} if sheet else {}
    if args.json:
        show_json(report.to_json() | extra)
    else:
        lines = [*report.lines(), *(f"contact sheet: {path}" for path in extra.values())]
        print("\n".join(map(spoken, lines)))
    return 0 if report.good else 1
