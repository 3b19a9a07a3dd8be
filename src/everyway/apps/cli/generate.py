"""Make pictures, captions or both, from a text, a picture, or nothing; or what a task of the model
makes of what it is given."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from everyway.apps.cli.flags import Parser, clock_path, described, level, share
from everyway.apps.cli.making import add_sampling, make, settings
from everyway.errors import UsageError
from everyway.request import GenerateRequest

WHAT = ("image", "text", "both")
INPUTS = (
    "text", "label", "given", "mask", "strength", "context_weights", "context_guidance",
    "paint", "words", "paint_weight", "paint_form",
)  # fmt: skip
"""Fields of a request that are flags of this command alone, under their own names."""


def add_flags(p: Parser) -> None:
    said = "image, text or both, or a task of the model (everyway models MODEL names them)"
    p.add_argument("what", help=said, among=WHAT)
    p.add_argument("--image", help="a picture to describe, or to draw on")
    p.add_argument("--style", help="a picture whose style is drawn in: --given style=FILE")
    said = "how much of the style, from 0 to 1; by default all: --context-weights style=S"
    p.add_argument("--style-strength", metavar="S", help=said)
    noisy = {"action": "append", "default": [], "type": level, "metavar": "CLOCK=LEVEL"}
    p.add_argument("--given-noise", **noisy, help=described(GenerateRequest, "given_noise"))
    ways = {"action": "append", "default": [], "type": clock_path, "metavar": "CLOCK=PATH"}
    p.add_argument("--clock-paths", **ways, help=described(GenerateRequest, "clock_paths"))
    said = "a file of requests, a line each: a JSON object, a prompt, or for text a picture's path"
    p.add_argument("--prompts", help=said)
    said = "of --prompts every N-th line from the K-th on, for N commands at once; by default all"
    p.add_argument("--shard", type=share, metavar="K/N", help=said)
    add_sampling(p, *INPUTS)
    p.set_defaults(strength=None)


def run(args: argparse.Namespace) -> int:
    _style(args)
    if args.prompts is not None:
        return _prompts(args)
    if args.shard:
        raise UsageError("--shard is of the lines of --prompts; give both")
    drawn_on = {"inpaint": args.mask, "image-to-image": args.strength}
    edits = [kind for kind, value in drawn_on.items() if value is not None]
    if edits and (args.what != "image" or args.image is None or len(edits) > 1):
        raise UsageError("--mask or --strength goes with generate image --image; give one of them")
    unused = {"image": "" if edits else "image", "text": "text"}.get(args.what, "")
    if unused and getattr(args, unused) is not None:
        more = "; --mask or --strength goes with it" if unused == "image" else ""
        raise UsageError(f"generate {args.what} takes no --{unused} alone{more}")
    if args.what == "both" and (args.text is not None or args.image is not None):
        raise UsageError("generate both draws a picture and its caption; it takes no input")
    kind = _kind(args.what, args.text is not None, args.image is not None)
    if args.what == "image" and args.label is not None:
        kind = "class-to-image"
    request = GenerateRequest(
        kind=edits[0] if edits else kind,
        images=(args.image,) if args.image else (),
        given_noise=dict(args.given_noise),
        clock_paths=dict(args.clock_paths),
        **{name: value for name in INPUTS if (value := getattr(args, name)) is not None},
        **settings(args),
    )
    return make(args, [request])


def _style(args: argparse.Namespace) -> None:
    """The flags of the style, as those that they are short for."""
    if args.style_strength is not None and args.style is None:
        raise UsageError("--style-strength is of --style; give both")
    if args.style is not None:
        args.given = {**args.given, "style": args.style}
    if args.style_strength is not None:
        args.context_weights = {**args.context_weights, "style": args.style_strength}


def _kind(what: str, text: bool, image: bool) -> str:
    """The kind of request that makes this, given a text or an image or not; else what it is."""
    drawn, said = "text-to-image" if text else "image", "image-to-text" if image else "text"
    return {"image": drawn, "text": said, "both": "joint"}.get(what, what)


def _prompts(args: argparse.Namespace) -> int:
    """A request a line over the flags' settings; results that exist are not made again."""
    path, requests = Path(args.prompts), []
    if not path.is_file():
        raise UsageError(f"there is no file {args.prompts!r}")
    for flag in ("image", "given_noise", "clock_paths", *INPUTS):
        if getattr(args, flag) not in (None, [], {}):
            raise UsageError(f"--{flag.replace('_', '-')} goes into the lines of {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = _row(args.what, line.strip())
            kind = _kind(args.what, row.get("text") is not None, bool(row.get("images")))
            requests.append(GenerateRequest(**{**settings(args), "kind": kind, **row}))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
    k, n = args.shard or (1, 1)
    return make(args, requests[k - 1 :: n], skip=True)


def _row(what: str, line: str) -> dict[str, Any]:
    """The settings in a line: a JSON object, or what the command makes a result from."""
    if line.startswith("{"):
        return json.loads(line)
    if what not in ("image", "text"):
        raise UsageError(f"generate {what} takes no line of text; a JSON object is needed")
    return {"text": line} if what == "image" else {"images": (line,)}
