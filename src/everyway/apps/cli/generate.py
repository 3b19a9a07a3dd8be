"""Make pictures, captions or both, from a text, a picture, or nothing; or what a task of the model
makes of what it is given."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from everyway.apps.cli.flags import (
    OfPicture,
    OfThing,
    Parser,
    Thing,
    clock_path,
    described,
    level,
    pair,
    share,
)
from everyway.apps.cli.making import add_sampling, make, settings
from everyway.errors import UsageError
from everyway.request import GenerateRequest, GivenContext

WHAT = ("image", "text", "both")
INPUTS = (
    "negative", "label", "given", "mask", "strength", "mix", "colours", "context_weights",
    "context_guidance", "paint", "words", "paint_weight", "paint_form",
)  # fmt: skip
"""Fields of a request that are flags of this command alone, under their own names."""


def add_flags(p: Parser) -> None:
    said = "image, text or both, or a task of the model (everyway models MODEL names them)"
    p.add_argument("what", help=said, among=WHAT)
    p.add_argument("--image", action=Thing, help="a picture to describe, or to draw on")
    p.add_argument("--text", action=Thing, help=described(GenerateRequest, "text"))
    _add_contexts(p)
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
    p.set_defaults(strength=None, colours=None, things=[])


def _add_contexts(p: Parser) -> None:
    """What a result is made out of where that is several things: each with what is told of it."""
    said = "tokens (N, D) in place of what a condition encodes, of the condition NAME"
    p.add_argument("--embedding", action=Thing, type=pair, metavar="NAME=FILE.npy", help=said)
    told = {"weight": OfThing, "focus": OfPicture}
    for name, action in told.items():
        said = f"of what stands before it: {described(GivenContext, name)}"
        p.add_argument(f"--{name}", action=action, help=said)
    said = "of the picture before it: one whose bright places are seen; by default all of it is"
    p.add_argument("--image-mask", dest="mask", action=OfPicture, help=said)


def run(args: argparse.Namespace) -> int:
    _style(args)
    if args.prompts is not None:
        return _prompts(args)
    if args.shard:
        raise UsageError("--shard is of the lines of --prompts; give both")
    drawn_on = {"inpaint": args.mask, "image-to-image": args.strength}
    edits = [kind for kind, value in drawn_on.items() if value is not None]
    start = _start(args, edits) if edits else ()
    things = args.things[len(start) :]
    given = {"contexts": things} if _blended(args, things) else _plain(args, things)
    kind = _kind(args.what, given.get("text") is not None, "images" in given)
    if args.what == "image" and args.label is not None:
        kind = "class-to-image"
    request = GenerateRequest(
        **{"kind": edits[0] if edits else kind, "images": start, **given},
        given_noise=dict(args.given_noise),
        clock_paths=dict(args.clock_paths),
        **{name: value for name in INPUTS if (value := getattr(args, name)) is not None},
        **settings(args),
    )
    return make(args, [request])


def _start(args: argparse.Namespace, edits: list[str]) -> tuple[str, ...]:
    """The picture that is drawn on, the first thing there is."""
    first = args.things[0] if args.things else {}
    if args.what != "image" or [*first] != ["image"] or len(edits) > 1:
        raise UsageError("--mask or --strength goes with generate image --image; give one of them")
    return (first["image"],)


def _blended(args: argparse.Namespace, things: list[dict[str, str]]) -> bool:
    """Whether they are contexts: more is told of one, or there are several, and no task of the
    model's own has fields for them."""
    several = args.what in WHAT and len(things) > 1
    return several or bool(args.mix) or any(len(thing) > 1 for thing in things)


def _plain(args: argparse.Namespace, things: list[dict[str, str]]) -> dict[str, Any]:
    """What is given alone, or nothing, as a request has it."""
    given = {name: value for thing in things for name, value in thing.items()}
    if args.what == "both" and given:
        raise UsageError("generate both draws a picture and its caption; it takes no input")
    if args.what in given:
        more = "; --mask or --strength goes with it" if args.what == "image" else ""
        raise UsageError(f"generate {args.what} takes no --{args.what} alone{more}")
    if "image" in given:
        given["images"] = (given.pop("image"),)
    return given


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
    given = [next(iter(thing)) for thing in args.things]
    flags = ("given_noise", "clock_paths", *INPUTS)
    given += [flag for flag in flags if getattr(args, flag) not in (None, [], {})]
    if given:
        raise UsageError(f"--{given[0].replace('_', '-')} goes into the lines of {path}")
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
