"""Everyway against diffusers on the same weights: first the same numbers, then who is faster.

    python benchmarks/speed.py [--size tiny|small|full] [--clock wall|cpu] [--json FILE]

The networks are timed in turns (ours, theirs, theirs, ours, ...), so that whatever else the machine
does weighs on both alike: read the ratios, not the milliseconds.  `--size full` is the published
network of 952 M parameters; with the backward pass it needs about 16 GB of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from peers import ask, disparity, filled, inputs, unidiffuser
from rich.console import Console
from rich.table import Table
from timing import Now, compared, forward, kept, peak, spread, train
from torch import nn

from everyway.contracts import Bundle, Times
from everyway.guidance import guided
from everyway.layouts.unidiffuser import published
from everyway.process.gaussian import GaussianProcess, V
from everyway.process.schedules import CosineVP
from everyway.sampling.loop import absent_states, final, sample
from everyway.sampling.noise import PerSampleNoise
from everyway.system import Modality, System
from everyway.tasks import JOINT, TASKS

TINY = dict(size=8, text=(7, 16), embed_dim=12, dim=64, depth=4, heads=4)
SMALL = dict(size=32, dim=512, depth=12, heads=8)  # the width and depth of U-ViT-S/2
SIZES = {"tiny": (TINY, 3), "small": (SMALL, 12), "full": ({}, 3)}  # (of the network, rounds)
CLOCKS = {"image": "image", "image_embed": "image", "text": "text"}  # state -> its clock
CLOSE = 1e-4


class Echo(nn.Module):
    """A network without work: what sampling with it costs is the loop's own."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, states: Bundle, times: Times, contexts, keep: tuple[str, ...]) -> Bundle:
        return {name: states[name] for name in keep}


def overhead(states: Bundle, w: float, rounds: int, now: Now, steps: int = 20) -> list[float]:
    """ms of one joint dpm++2m step with guidance w, the network's forwards not counted."""
    process = GaussianProcess(schedule=CosineVP(), parameterisation=V)
    shapes, device = {k: tuple(x.shape) for k, x in states.items()}, states["image"].device
    modalities = {  # nothing is encoded or decoded here
        k: Modality(
            name=k, clock=CLOCKS[k], shape=shape[1:], process=process, codec=None, decodes=False
        )
        for k, shape in shapes.items()
    }
    system = System(name="echo", network=Echo(device), modalities=modalities, tasks=TASKS)
    known = dict(processes=system.processes, clocks=system.clocks, shapes=shapes, device=device)
    seconds = []
    for _ in range(rounds + 1):
        noise = PerSampleNoise([*range(len(states["image"]))])
        absent = absent_states(system.processes, noise, device)
        denoise = guided(system.denoiser(), JOINT, system.clocks, w, absent)
        start = now()
        final(sample(denoise, task=JOINT, states={}, noise=noise, steps=steps, **known))
        seconds.append((now() - start) / steps)
    return spread(seconds[1:], 1e3)


def formats(device: str) -> dict[str, Callable]:
    """Number formats worth timing -> their context; some CPUs only emulate bf16."""
    made: dict[str, Callable] = {"float32": contextlib.nullcontext}
    a, seconds = torch.randn(256, 256, device=device), []
    for x in (a, a, a.bfloat16(), a.bfloat16()):
        start = time.perf_counter()
        x @ x
        seconds.append(time.perf_counter() - start)
    if device == "cuda" or seconds[3] < seconds[1]:
        made["bf16 autocast"] = partial(torch.autocast, device, torch.bfloat16)
    return made


def measure(args: argparse.Namespace) -> dict:
    """Every figure as plain data; SystemExit where the networks differ."""
    device, (sizes, rounds) = args.device, SIZES[args.size]
    rounds = args.rounds or rounds
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    now = (lambda: (torch.cuda.synchronize(), clock())[1]) if device == "cuda" else clock
    torch.manual_seed(0)
    network = filled(published(**sizes), device)
    peer = unidiffuser(network)
    states, times = inputs(network.config, args.batch, device)
    models = {
        "everyway": (network, partial(network, states, times)),
        "diffusers": (peer, partial(ask, peer, states, times)),
    }
    with torch.no_grad():
        apart = disparity(*(answer() for _, answer in models.values()))
    if not apart < CLOSE:
        raise SystemExit(f"the networks differ by {apart:.1e} of the largest value: nothing timed")
    rows: dict[str, dict] = {}
    for name, context in formats(device).items():
        steps = {k: partial(forward, a, context) for k, (_, a) in models.items()}
        rows[f"forward, {name}, ms"] = compared(steps, rounds, now)
        if args.backward:
            steps = {k: partial(train, m, a, context) for k, (m, a) in models.items()}
            rows[f"forward + backward, {name}, ms"] = compared(steps, rounds, now)
        if device == "cuda":
            rows[f"its peak memory, {name}, MB"] = {k: peak(s) for k, s in steps.items()}
    if args.backward:
        rows["kept for backward, float32, MB"] = {k: kept(m, a) for k, (m, a) in models.items()}
    for w in (1.0, 3.0):
        rows[f"loop of a step, guidance {w:g}, ms"] = {"everyway": overhead(states, w, rounds, now)}
    metadata = {
        "size": args.size,
        "parameters": sum(p.numel() for p in network.parameters()),
        "batch": args.batch,
        "rounds": rounds,
        "clock": args.clock,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
    }
    return {**metadata, "parity": apart, "rows": rows}


def text(value: float | list[float] | None) -> str:
    """Median and quartiles, or one number."""
    if isinstance(value, list):
        low, middle, high = (f"{x:.3g}" if x < 1000 else f"{x:.0f}" for x in value)
        return f"{middle} ({low}–{high})"
    return "" if value is None else f"{value:.0f}"


def show(found: dict) -> None:
    title = "{size}: {parameters:,} parameters, batch {batch}, {device}, {threads} threads"
    table = Table(
        "median (quartiles)",
        *("Everyway", "diffusers", "ratio"),
        title=title.format(**found),
        caption="same weights; outputs differ by {parity:.1e} of the largest value; "
        "ratio: diffusers / Everyway".format(**found),
    )
    for what, row in found["rows"].items():
        table.add_row(what, *(text(row.get(k)) for k in ("everyway", "diffusers", "ratio")))
    Console().print(table)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="measured rounds, 2 or more")
    best = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=best)
    parser.add_argument("--no-backward", dest="backward", action="store_false")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine"
    )
    parser.add_argument("--json", type=Path, default=Path("out/speed.json"))
    args = parser.parse_args(argv)
    if args.rounds is not None and args.rounds < 2:
        parser.error(f"--rounds {args.rounds}: quartiles need 2 rounds or more")
    if args.clock == "cpu" and args.device == "cuda":
        parser.error("--clock cpu does not see the GPU; leave it out")
    found = measure(args)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(found)


if __name__ == "__main__":
    main()
