"""The command line.  Exit codes: 0 done, 1 a failure, 2 the user's mistake, 130 stopped by Ctrl-C.

Nothing heavy is imported before a command needs it, so `everyway --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from everyway.errors import EverywayError, UsageError

COMMANDS: dict[str, str] = {
    "demo": "every use of the shipped model on one labelled sheet",
    "generate": "image | text | both, from a text, a picture, or nothing",
    "vary": "variations of a picture or a text",
    "interpolate": "pictures between two pictures",
    "chain": "text, picture, text, picture, ...",
    "replay": "make a picture again from its own record",
    "train": "train a model, or go on training it",
    "data": "write a built-in data set, or check a folder",
    "evaluate": "score a model",
    "convert": "weights of authors or of diffusers into a model folder, and back",
    "models": "what is here, and its facts",
}


MODEL = "a shipped name, a model folder, a file or folder of published weights, or a hub id"


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> None:
        if "expected one argument" in message:
            message += "; a value that begins with a dash is written --flag=VALUE"
        raise UsageError(f"{message} (see: {self.prog} --help)")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code and never raises for a user's mistake."""
    try:
        args = parser().parse_args(argv)
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read what is printed has gone
        _mute()
        return 1
    except KeyboardInterrupt:
        print("stopped; what was finished is kept", file=sys.stderr)
        return 130
    except (EverywayError, OSError) as error:  # the border: any other is a fault of ours
        print(f"everyway: {' '.join(str(error).split())}", file=sys.stderr)
        if isinstance(error, OSError) and not sys.stdout.isatty():
            _mute()  # it may be what cannot be written; Python would try once more
        return getattr(error, "exit_code", 1)


def _mute() -> None:
    """Drops what is still to be printed."""
    with suppress(OSError, ValueError):  # it is not always a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(prog="everyway", description="One model goes every way: images and text.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    adders: dict[str, Callable] = {
        "demo": _demo_flags,
        "generate": _generate_flags,
        "vary": _vary_flags,
        "interpolate": _interpolate_flags,
        "chain": _chain_flags,
        "replay": _replay_flags,
        "train": _train_flags,
        "data": _data_flags,
        "evaluate": _evaluate_flags,
        "convert": _convert_flags,
        "models": _models_flags,
    }
    for name, help_ in COMMANDS.items():
        adders[name](commands.add_parser(name, help=help_, description=help_))
    return top


def _loading_flags(p: argparse.ArgumentParser) -> None:
    many: dict[str, Any] = {"action": "append", "default": []}
    p.add_argument("--part", **many, metavar="NAME=PATH", help="what the model's file lacks")
    p.add_argument("--set", **many, metavar="KEY=VALUE", help="what no file shows, as null=fresh")
    p.add_argument("--dtype", default="auto", help="of the weights: fp32 (CPU), bf16 (GPU), fp16")
    p.add_argument("--memory", default="auto", help="full, offload or low: what fits, unless told")
    p.add_argument("--device", default="auto")


def _sampling_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", default="default", help=MODEL)
    p.add_argument("-n", type=int, default=1, help="how many; sample k has seed + k")
    p.add_argument("--seed", type=int, default=0)
    _model_flags(p)
    _loading_flags(p)
    p.add_argument("--out", type=folder, default="out", help="for pictures and results.jsonl")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")
    p.add_argument("--quiet", action="store_true")


def _model_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--steps", type=int, help="the model's own unless told, as are the next three")
    p.add_argument("--guidance", type=float, help="1 is off")
    p.add_argument("--sampler")
    p.add_argument("--truncation", type=float, help="tokens: mass kept, 1 is all")
    p.add_argument("--purity-weight", type=float, help="sampler purity: how much sharper")
    p.add_argument("--tokens-per-step", type=int, help="sampler purity: at most so many a call")
    p.add_argument("--null", default="", help="what guidance is told for no text: learned, empty")


def _generate_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("what", help="image, text or both")
    p.add_argument("--text", help="a prompt")
    p.add_argument("--label", type=int, help="a class, for models of classes")
    p.add_argument("--image", help="a picture to describe, or to draw on")
    p.add_argument("--mask", help="inpaint --image: bright places of this picture are drawn anew")
    p.add_argument("--strength", type=float, help="forget this much of --image and draw it again")
    p.add_argument("--given-noise", action="append", default=[], metavar="CLOCK=LEVEL")
    p.add_argument("--prompts", help="a JSON-lines file of requests, one object a line")
    _sampling_flags(p)
    p.set_defaults(run=_generate)


def _vary_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("what", help="image or text")
    p.add_argument("input", help="a picture's path, or the text")
    _sampling_flags(p)
    p.set_defaults(run=_vary)


def _interpolate_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("first")
    p.add_argument("second")
    p.add_argument("--frames", type=int, default=8)
    _sampling_flags(p)
    p.set_defaults(run=_interpolate)


def _chain_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--text", required=True)
    p.add_argument("--rounds", type=int, default=5)
    _sampling_flags(p)
    p.set_defaults(run=_chain)


def _replay_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("picture", help="a PNG that everyway made")
    p.add_argument("--model", help="where the model is now, if it moved")
    p.add_argument("--part", action="append", default=[], metavar="NAME=PATH", help="likewise")
    p.add_argument("--image", action="append", default=[], help="likewise, of a picture given")
    p.add_argument("--mask", help="likewise")
    p.set_defaults(run=_replay)


def _demo_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", default="default", help=MODEL)
    _loading_flags(p)
    p.add_argument("--out", type=folder, default="out")
    p.set_defaults(run=_demo)


def _train_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("preset", help="a preset's name or a TOML file")
    p.add_argument("--data", help="emoji, shapes, or a folder of pictures with captions")
    p.add_argument("--out", help="the run folder; the same command again resumes it")
    p.add_argument("--budget", help="time, such as 90s, 30m or 2h")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    p.add_argument("--quiet", action="store_true")
    p.set_defaults(run=_train)


def _data_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("what", help="emoji or shapes (written to --out), or check")
    p.add_argument("path", nargs="?", help="the folder or tar shards that check reads")
    p.add_argument("--model", help="check also tells which captions it cannot read")
    p.add_argument("--out", help="where samples, or the contact sheet of check, are written")
    p.add_argument("-n", type=int, default=100)
    p.add_argument("--seed", type=natural, default=0)
    p.add_argument("--json", action="store_true", help="the report of check as one JSON object")
    p.set_defaults(run=_data)


def _evaluate_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", help=MODEL)
    _loading_flags(p)
    p.add_argument("--suite", help="scenes or shapes; by default what the model was trained on")
    p.add_argument("-n", type=int, default=1000, help="scenes a row")
    p.add_argument("--rows", help="only these rows, such as t2i.one,i2t.one")
    p.add_argument("--seed", type=natural, default=1_000_000)
    _model_flags(p)
    p.add_argument("--record", action="store_true", help="keep the scores in the model's card")
    p.add_argument("--json", action="store_true")
    p.set_defaults(run=_evaluate)


def _convert_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("source", help="a file or folder of weights, or a model folder")
    p.add_argument("--layout", default="", help="how its tensors are named; recognised by default")
    p.add_argument("--out", type=folder, required=True, help="the folder that is written")
    p.add_argument("--dtype", help="fp32, bf16 or fp16; by default as the file has it")
    many: dict[str, Any] = {"action": "append", "default": []}
    p.add_argument("--part", **many, metavar="NAME=PATH", help="what the source lacks, or a hub id")
    p.add_argument("--weights", default="", help="which of the weights that a file holds, as ema")
    p.add_argument("--set", **many, metavar="KEY=VALUE", help="what no file shows, as heads=16")
    p.add_argument("--to", help="authors or diffusers: write a model folder back as their files")
    p.add_argument("--json", action="store_true")
    p.set_defaults(run=_convert)


def _models_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", nargs="?")
    p.set_defaults(run=_models)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    from everyway.request import SETTINGS

    return {name: getattr(args, name) for name in ("model", "n", "seed", *SETTINGS)}


def _generate(args: argparse.Namespace) -> int:
    from everyway.request import GenerateRequest, known

    known("output", args.what, ("image", "text", "both"))
    if args.prompts is not None:
        return _prompts(args)
    kinds = _kinds(args.text is not None, args.image is not None)
    if args.label is not None:
        kinds["image"] = "class-to-image"
    drawn_on = {"inpaint": args.mask, "image-to-image": args.strength}
    told = [kind for kind, value in drawn_on.items() if value is not None]
    if told and (args.what != "image" or args.image is None or len(told) > 1):
        raise UsageError("--mask or --strength goes with generate image --image; give one of them")
    if told:
        kinds["image"] = told[0]
    unused = {"image": "" if told else "image", "text": "text"}.get(args.what, "")
    if unused and getattr(args, unused) is not None:
        more = "; --mask or --strength goes with it" if unused == "image" else ""
        raise UsageError(f"generate {args.what} takes no --{unused} alone{more}")
    if args.what == "both" and (args.text is not None or args.image is not None):
        raise UsageError("generate both draws a picture and its caption; it takes no input")
    request = GenerateRequest(
        kind=kinds[args.what],
        text=args.text,
        images=(args.image,) if args.image else (),
        given_noise=_levels(args.given_noise),
        mask=args.mask,
        label=args.label,
        **({} if args.strength is None else {"strength": args.strength}),
        **_settings(args),
    )
    return _make(args, [request])


def _levels(pairs: list[str]) -> dict[str, float]:
    out = {}
    for pair in pairs:
        clock, _, level = pair.partition("=")
        try:
            out[clock] = float(level)
        except ValueError:
            raise UsageError(f"--given-noise {pair!r} is not CLOCK=LEVEL, as in text=0.3") from None
    return out


def _kinds(text: bool, image: bool) -> dict[str, str]:
    """What `generate` makes -> the kind of request, given a text or an image or not."""
    return {
        "image": "text-to-image" if text else "image",
        "text": "image-to-text" if image else "text",
        "both": "joint",
    }


def _prompts(args: argparse.Namespace) -> int:
    """A request a line over the flags' settings; results that exist are not made again."""
    from everyway.request import GenerateRequest, RequestError

    path, requests = Path(args.prompts), []
    if not path.is_file():
        raise UsageError(f"there is no file {args.prompts!r}")
    for flag in ("text", "image", "mask", "strength", "label", "given_noise"):
        if getattr(args, flag) not in (None, []):
            raise UsageError(f"--{flag.replace('_', '-')} goes into the lines of {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("a JSON object is needed")
            kinds = _kinds(row.get("text") is not None, bool(row.get("images")))
            default = {**_settings(args), "kind": kinds[args.what]}
            requests.append(GenerateRequest(**{**default, **row}))
        except (ValueError, RequestError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
    return _make(args, requests, skip=True)


def _vary(args: argparse.Namespace) -> int:
    from everyway.request import GenerateRequest, known

    known("input", args.what, ("image", "text"))
    given = {"images": (args.input,)} if args.what == "image" else {"text": args.input}
    return _make(args, [GenerateRequest(kind=f"vary-{args.what}", **given, **_settings(args))])


def _interpolate(args: argparse.Namespace) -> int:
    from everyway.request import GenerateRequest

    pictures = (args.first, args.second)
    request = GenerateRequest(
        kind="interpolate", images=pictures, frames=args.frames, **_settings(args)
    )
    return _make(args, [request])


def _chain(args: argparse.Namespace) -> int:
    from everyway.request import GenerateRequest

    request = GenerateRequest(kind="chain", text=args.text, rounds=args.rounds, **_settings(args))
    return _make(args, [request])


def _make(args: argparse.Namespace, requests: list, skip: bool = False) -> int:
    """Run requests, write what they make, tell what was written."""
    from everyway.request import read_image

    for request in requests:
        for path in request.paths:
            read_image(path)  # a bad picture is told before the model loads
    from everyway.apps import files
    from everyway.generate import Result

    out, rows, models, told = files.Folder(Path(args.out)), [], {}, ""
    done = out.parts() if skip else {}
    for request in requests:
        if request.model not in models:
            models.clear()  # one at a time
            models[request.model] = _load(args, request.model)
        model = models[request.model]
        request = model.settled(request)
        lacking = list(_lacking(request, done))
        if not lacking:
            _say(args, f"skipped, as it exists: {request.text or request.kind}")
        for event in chain.from_iterable(model.run(part) for part in lacking):
            if told != request.model:  # not before: a mistake is one line
                _say(args, model.note)
                told = request.model
            if isinstance(event, Result) and event.part not in done.get(
                _key(request, event.seed), ()
            ):
                row = out.save(event, request)
                rows.append(row)
                _say(args, row.get("image", "") + "  " + row.get("text", ""))
    peak = _tell_cost(args, models, rows)
    if args.json:
        answer = {"out": args.out, "results": rows, "peak_bytes": peak}
        print(json.dumps(answer, ensure_ascii=False))
    return 0


def _lacking(request, done: dict[str, set[int]]):
    """The request for its samples whose results are not all there: a request a run of seeds."""
    if not done:
        yield request
        return
    seeds = [
        seed
        for seed in range(request.seed, request.seed + request.n)
        if len(done.get(_key(request, seed), ())) < request.parts
    ]
    for _, run in groupby(enumerate(seeds), lambda pair: pair[1] - pair[0]):
        part = [seed for _, seed in run]
        yield request.model_copy(update={"seed": part[0], "n": len(part)})


def _key(request, seed: int) -> str:
    """Of one sample of a request."""
    from everyway.apps.files import key

    return key(request.model_copy(update={"seed": seed}))


def _load(args: argparse.Namespace, name: str):
    """The model as the flags say."""
    parts, settings = _pairs("part", args.part), _pairs("set", args.set)
    from everyway.generate import load

    return load(name, args.device, args.dtype, args.memory, parts, settings)


def _tell_cost(args: argparse.Namespace, models: dict, rows: list) -> int | None:
    """Says what a run took; returns the peak of its memory in bytes, where that is known."""
    from everyway.placement import peak_memory

    peaks = [peak_memory(model.system.device) for model in models.values()]
    if rows and peaks and peaks[0]:
        facts = rows[-1]["facts"]
        took = f"{facts['forwards']} forwards in {facts['seconds']:.1f} s"
        _say(args, f"{took}, peak memory {peaks[0] / 1e9:.2f} GB")
    return peaks[0] if peaks else None


def _say(args: argparse.Namespace, line: str) -> None:
    if getattr(args, "quiet", False):
        return
    try:
        stream = sys.stderr if getattr(args, "json", False) else sys.stdout
        print(line.strip(), file=stream, flush=True)
    except BrokenPipeError:  # nobody reads it any more; the work goes on
        args.quiet = True
        _mute()


def _replay(args: argparse.Namespace) -> int:
    parts = _pairs("part", args.part)
    from everyway.apps import files
    from everyway.generate import load

    path = Path(args.picture)
    record = files.read_record(path)
    if record.part >= record.request.parts * record.request.n:
        raise UsageError(f"{path} carries a request that has no part {record.part}")
    request = _with_inputs(record, tuple(args.image), args.mask)
    loaded = record.facts.loaded.model_dump()
    loaded["parts"] |= parts
    model = load(args.model or request.model, **loaded)
    if model.hash != record.facts.model_hash:
        made_by = record.facts.model_hash
        raise UsageError(
            f"{path} was made by model {made_by}, this one is {model.hash}; give it with --model"
        )
    made = model.generate(request)[record.part].image
    if files.same_pixels(path, made):
        print(f"{path}: the same picture, bit for bit")
        return 0
    import torch

    then, now = record.facts.torch, torch.__version__
    why = f"made with torch {then}, this is torch {now}" if then != now else "it was edited"
    print(f"{path}: not the same; {why}")
    return 1


def _with_inputs(record, images: tuple[str, ...], mask: str | None):
    """The request with the given pictures where they are now; UsageError if one has changed."""
    from everyway.apps.files import digest

    was = record.request
    request = was.model_copy(update={"images": images or was.images, "mask": mask or was.mask})
    if len(request.images) != len(was.images) or (request.mask is None) != (was.mask is None):
        raise UsageError(f"it was made from {len(was.paths)} picture(s): {', '.join(was.paths)}")
    for before, now in zip(was.paths, request.paths):
        if not Path(now).is_file():
            flag = "--mask" if now == request.mask else "--image"
            raise UsageError(f"the picture {now!r} that it was made from is gone; give {flag} PATH")
        if record.inputs.get(before, digest(now)) != digest(now):
            raise UsageError(f"{now!r} is not the picture that it was made from any more")
    return request


def _demo(args: argparse.Namespace) -> int:
    from everyway.apps.demo import demo

    demo(_load(args, args.model), Path(args.out), print)
    return 0


def _train(args: argparse.Namespace) -> int:
    from everyway.train.config import resolve

    if odd := [pair for pair in args.set if "=" not in pair]:
        raise UsageError(f"--set {odd[0]!r} is not KEY=VALUE")
    pairs = [pair.partition("=") for pair in args.set]
    overrides = {key: value for key, _, value in pairs}
    if args.data:
        overrides["data"] = args.data
    budget = None if args.budget is None else seconds(args.budget)
    config = resolve(args.preset, overrides, args.out, budget)
    from everyway.train.loop import train
    from everyway.train.parallel import join

    first = join().first  # of several processes one speaks
    with _progress(config.steps, args.quiet or not first) as progress:
        facts = train(config, progress)
    if first:
        print(json.dumps(facts))
    return 130 if facts["stopped"] else 0


@contextmanager
def _progress(steps: int, quiet: bool):
    """A bar on a terminal, plain lines elsewhere, nothing if quiet."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    def losses(p) -> str:
        return "  ".join(f"{k} {v:.4f}" for k, v in p.losses.items())

    console = Console(stderr=True)
    if quiet:
        yield None
    elif not console.is_terminal:
        yield lambda p: print(
            f"step {p.step}  {losses(p)}  {p.samples_a_second:.0f} samples/s", flush=True
        )
    else:
        columns = (TextColumn("step {task.completed}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.description}"), console=console) as bar:
            job = bar.add_task("", total=steps)
            yield lambda p: bar.update(job, completed=p.step, description=losses(p))


def folder(text: str) -> str:
    """The path of a folder to write to, neither empty nor a file."""
    if not text.strip() or Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is no folder; give a folder")
    return text


def natural(text: str) -> int:
    """A number from 0 up, as a seed is."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def seconds(text: str) -> float:
    """ "90s", "30m" or "2h" -> seconds.  Raises UsageError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"the time {text!r} is not like 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _data(args: argparse.Namespace) -> int:
    from everyway.data import folder
    from everyway.request import known

    known("data command", args.what, ("emoji", "shapes", "check"))
    if args.what == "check":
        return _check(args)
    if args.path is not None:
        raise UsageError(f"data {args.what} takes no path; it writes to --out")
    if args.n < 1:
        raise UsageError(f"-n {args.n}: at least 1 sample")
    if args.what == "emoji":
        from everyway.data.emoji import EmojiScenes

        data = EmojiScenes(seed=args.seed)
    else:
        from everyway.data.shapes import Shapes

        data = Shapes(seed=args.seed, size=64)
    out = Path(args.out or f"out/{args.what}")
    folder.write_folder(out, (data.sample(i) for i in range(args.n)))
    print(f"{args.n} samples in {out}")
    return 0


def _check(args: argparse.Namespace) -> int:
    """What a folder holds and what is wrong with it; exit code 1 if anything is."""
    from everyway.data.check import check
    from everyway.data.faults import printable
    from everyway.whole import whole

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
        with whole(sheet) as temporary:
            report.sheet.save(temporary, format="PNG")
    told = {"contact_sheet": printable(sheet)} if sheet else {}
    if args.json:
        print(json.dumps(report.to_json() | told, ensure_ascii=False))
    else:
        print("\n".join([*report.lines(), *(f"contact sheet: {path}" for path in told.values())]))
    return 0 if report.good else 1


def _evaluate(args: argparse.Namespace) -> int:
    from everyway.checkpoints.card import add_scores
    from everyway.library import folder_of
    from everyway.metrics.report import evaluate
    from everyway.request import SETTINGS

    settings = {name: getattr(args, name) for name in SETTINGS}
    folder = folder_of(args.model) if args.record else None
    model = _load(args, args.model)
    own = "shapes" if model.facts.get("training", {}).get("data") == "shapes" else "scenes"
    rows = [row for row in (args.rows or "").split(",") if row]
    report = evaluate(model, args.suite or own, args.n, args.seed, rows, settings)
    _say(args, model.note)
    if folder:
        add_scores(folder, report)
    if args.json:
        print(json.dumps(report))
        return 0
    for name, row in report["rows"].items():
        for attribute, value in row.items():
            interval = f"{value['low']:.3f} to {value['high']:.3f}"
            print(f"{name:8} {attribute:12} {value['value']:.3f}  ({interval}, n={value['n']})")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from everyway.request import known

    known("dtype", args.dtype or "fp32", ("fp32", "bf16", "fp16"))
    known("origin", args.to or "authors", ("authors", "diffusers"))
    if args.to and args.dtype:
        raise UsageError(f"--to {args.to} keeps every number as it is; leave --dtype out")
    parts, told = _pairs("part", args.part), _pairs("set", args.set)
    out = Path(args.out)
    from everyway.systems import convert

    model = convert.open_model(args.source, args.layout, parts, args.weights, told)
    if args.to:
        written = [str(path) for path in convert.write_back(model, args.to, out)]
        print(json.dumps({"out": str(out), "files": written}) if args.json else "\n".join(written))
        return 0
    convert.save(model, out, convert.DTYPES[args.dtype] if args.dtype else None)
    facts = {"system": model.config["system"], "parameters": model.parameters, **model.facts}
    needed = convert.lacking(model)
    if args.json:
        print(json.dumps({"out": str(out), **facts, "needed": needed}))
        return 0
    for name, row in facts.get("source", {}).items():
        told = f"{row['layout']}, {row['preset'] or 'of no published size'}"
        print(f"{name}: {told}, {row['tensors']} tensors{_left(row)}")
    print(f"{out}: {facts['parameters']:,} parameters")
    if needed:
        print("before it can be used: " + " ".join(f"--part {part}" for part in needed))
    return 0


def _left(row: dict[str, Any]) -> str:
    """What became of the tensors that no network reads."""
    words = {"aside": "kept unread", "dropped": "left out"}
    return "".join(f", {row[k]} {said}" for k, said in words.items() if row[k])


def _pairs(flag: str, pairs: list[str]) -> dict[str, str]:
    """NAME=VALUE, each; UsageError for anything else."""
    for pair in pairs:
        if not all(pair.partition("=")):
            raise UsageError(f"--{flag} {pair!r} is not NAME=VALUE")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def _models(args: argparse.Namespace) -> int:
    from everyway.generate import load
    from everyway.library import shipped

    if args.model is None:
        print("\n".join(shipped()) or "no model is shipped")
        return 0
    model = load(args.model)
    facts = {"name": model.name, "hash": model.hash, **model.facts}
    print(json.dumps(facts, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
