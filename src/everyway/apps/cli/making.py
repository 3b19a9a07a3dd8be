"""What the commands that make something share: their flags, the run, and what is said of it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everyway import launched
from everyway.apps import files
from everyway.apps.cli import mute
from everyway.apps.cli.flags import Parser, described, folder, pair
from everyway.apps.cli.language import spoken
from everyway.request import (
    NO_STAGES,
    OWN_STAGES,
    SETTINGS,
    GenerateRequest,
    read_image,
    read_lora,
)

if TYPE_CHECKING:
    from everyway.generate import Model, Preview, Result

SAMPLING = ("model", "n", "seed", "language", "upscale", "scale", *SETTINGS)
"""Fields of a request that every such command has as flags, beside --lora."""
PARAMETERS_A_THREAD = 10_000_000
"""Of a network that is asked for one sample at a time, as on a CPU."""


def add_loading(p: Parser) -> None:
    """How a model is loaded."""
    many: dict[str, Any] = {"action": "append", "default": [], "type": pair}
    p.add_argument("--part", **many, metavar="NAME=PATH", help="what the model's file lacks")
    p.add_argument("--set", **many, metavar="KEY=VALUE", help="what no file shows, as null=fresh")
    dtypes, memory = ("auto", "fp32", "bf16", "fp16"), ("auto", "full", "offload", "low", "disk")
    said = "of the weights: fp32, bf16 or fp16; by default fp32 on a CPU, bf16 on a GPU"
    p.add_argument("--dtype", default="auto", among=dtypes, help=said)
    said = "full, offload, low or disk; by default the first of three that fits"
    p.add_argument("--memory", default="auto", among=memory, help=said)
    p.add_argument("--device", default="auto", help="cpu, cuda, ...; by default a GPU if there is")


def add_sampling(p: Parser, *fields: str) -> None:
    """These fields of a request, and all that a request of any kind has."""
    p.add_fields(GenerateRequest, *fields, *SAMPLING)
    said = described(GenerateRequest, "lora")
    p.add_argument("--lora", action="append", default=[], metavar="FILE[:WEIGHT]", help=said)
    add_loading(p)
    p.add_argument("--out", type=folder, default="out", help="for pictures and results.jsonl")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")
    p.add_argument("--quiet", action="store_true", help="say nothing of what is made")
    said = "show on a terminal what is being made; by default where it has the colours and room"
    p.add_argument("--preview", action=argparse.BooleanOptionalAction, help=said)


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Those of SAMPLING and the LoRAs, for a request."""
    return {name: getattr(args, name) for name in (*SAMPLING, "lora")}


def load(args: argparse.Namespace, name: str):
    """The model as the flags say."""
    from everyway.generate import load

    told = (args.device, args.dtype, args.memory, dict(args.part), dict(args.set))
    return sparing(load(name, *told))


def with_upscaler(model: Model, request: GenerateRequest) -> Model:
    """The model, and the one that its pictures are enlarged by, where the request names one."""
    from everyway.generate import load

    if request.upscale in (OWN_STAGES, NO_STAGES):
        return model
    return model.with_upscaler(load(request.upscale, str(model.system.device)))


def sparing(model):
    """The model, for which this process now computes with no more threads than pay: several would
    wait for one another longer than a small network computes, above all on a busy machine."""
    import torch

    parameters = sum(p.numel() for n in model.system.networks.values() for p in n.parameters())
    paying = 1 + parameters // PARAMETERS_A_THREAD
    torch.set_num_threads(min(torch.get_num_threads(), paying))
    return model


def make(args: argparse.Namespace, requests: Sequence[GenerateRequest], skip: bool = False) -> int:
    """Run requests, write what they make, say what was written.

    Of several processes that a launcher started each makes its share.
    skip: results that are in the folder are not made again, and no model is loaded for them.
    """
    began, out = time.monotonic(), files.Folder(Path(args.out))
    done = out.parts() if skip else {}
    own = shared_out(requests, launched.rank(), launched.processes())
    wanted = [request for request in own if _left(args, done, request)]
    for path in dict.fromkeys(path for request in wanted for path in request.paths):
        read_image(path)  # a bad picture is told before a model loads
    for path in dict.fromkeys(path for request in wanted for path in request.lora):
        read_lora(path)
    models, rows = dict[tuple[str, str], Any](), []
    with _watching(args, sum(request.n for request in wanted)) as watch:
        for request in wanted:
            if (key := (request.model, request.upscale)) not in models:
                models = {key: with_upscaler(load(args, request.model), request)}  # one at a time
                say_memory(args, models[key])
            model = models[key]
            settled = model.settled(request)
            for result in _results(model, _left(args, done, request, settled), watch):
                if result.part in _parts(done, result.seed, request, settled):
                    continue
                rows.append(out.save(result, settled, request))
                made = [_shown(args.out, rows[-1], result, name) for name in result.outputs]
                said = [*made, f"seed {result.seed}", f"{time.monotonic() - began:.1f} s"]
                say(args, "  ".join(said))
    if args.json:
        show_json({"out": args.out, "results": rows, "peak_bytes": _peak(models)})
    return 0


def shared_out(
    requests: Sequence[GenerateRequest], rank: int, processes: int
) -> list[GenerateRequest]:
    """The part of one process in all samples, whose order it keeps: all parts together are the
    whole, and none is larger than another by more than one."""
    total, before, own = sum(request.n for request in requests), 0, []
    first, end = (total * k // processes for k in (rank, rank + 1))
    for request in requests:
        low, high = max(first - before, 0), min(end - before, request.n)
        if low < high:
            share = {"seed": request.seed + low, "n": high - low}
            own.append(request.model_copy(update=share))
        before += request.n
    return own


Watch = Callable[["Model", "Preview", int], None]
"""Is told how a run of so many samples goes on."""


def _results(model: Model, requests: Sequence[GenerateRequest], watch: Watch) -> Iterator[Result]:
    """What a model makes of requests, as it is done."""
    from everyway.generate import Preview

    for request in requests:
        for event in model.run(request):
            if isinstance(event, Preview):
                watch(model, event, request.n)
            else:
                yield event


@contextmanager
def _watching(args: argparse.Namespace, samples: int) -> Iterator[Watch]:
    """A bar and previews on a terminal, and nothing elsewhere."""
    if args.quiet or not samples or launched.rank() or not sys.stderr.isatty():
        yield lambda model, event, n: None
        return
    from everyway.apps.cli import progress

    made = 0.0
    with progress.tracked(args.quiet, spoken("loading")) as (bar, track):
        wanted = progress.has_room(bar.console) if args.preview is None else args.preview
        show = progress.previews(bar) if wanted else None

        def watch(model: Model, event: Preview, n: int) -> None:
            nonlocal made
            what = spoken(f"{model.name}, {int(made) + 1} of {samples}")
            track(what, (made + event.done * n) / samples)
            made += n if event.done == 1 else 0
            if show:
                show(model, event)

        yield watch


def _left(
    args: argparse.Namespace, done: dict[str, set[int]], *forms: GenerateRequest
) -> list[GenerateRequest]:
    """A request for its samples whose results are not all there, one a run of seeds.

    forms: the request as it was asked for and, where that is known, as the model settles it.
    """
    request = forms[-1]
    seeds = [
        seed
        for seed in range(request.seed, request.seed + request.n)
        if len(_parts(done, seed, *forms)) < request.parts
    ]
    if not seeds:
        say(args, f"skipped, as it exists: {request.text or request.kind}")
    runs = groupby(enumerate(seeds), lambda pair: pair[1] - pair[0])
    found = [[seed for _, seed in run] for _, run in runs]
    return [request.model_copy(update={"seed": run[0], "n": len(run)}) for run in found]


def _parts(done: dict[str, set[int]], seed: int, *forms: GenerateRequest) -> set[int]:
    """Which results of one sample are there, under any form of its request."""
    if not done:
        return set()
    keys = [files.key(form.model_copy(update={"seed": seed})) for form in forms]
    return set[int]().union(*(done.get(key, ()) for key in keys))


def _shown(out: str, row: dict[str, Any], result: Result, name: str) -> str:
    """An output: the path of what is kept in a file, else itself."""
    return str(Path(out) / row[name]) if result.media[name].in_file else str(row[name])


def _peak(models: dict[tuple[str, str], Any]) -> int | None:
    """The most bytes that were in use, where that is known."""
    if not models:
        return None
    from everyway.placement import peak_memory

    (model,) = models.values()
    return peak_memory(model.system.device)


def say_memory(args: argparse.Namespace, model: Model) -> None:
    """How a model lies in memory, where it does not just lie there whole."""
    if model.system.placement.memory != "full":
        say(args, model.note)


def say(args: argparse.Namespace, line: str) -> None:
    """A line for a person: on standard error beside JSON, nowhere if quiet."""
    if getattr(args, "quiet", False):
        return
    try:
        stream = sys.stderr if getattr(args, "json", False) else sys.stdout
        print(spoken(line).strip(), file=stream, flush=True)
    except BrokenPipeError:  # nobody reads it any more; the work goes on
        args.quiet = True
        mute()


def show_json(value: Any, indent: int | None = None) -> None:
    """Plain data on standard output, valid in whatever encoding that has."""
    every = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not every, indent=indent))
