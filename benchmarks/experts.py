"""What experts cost at inference: time of a step, and memory, against the single network.

    python benchmarks/experts.py [--size tiny|small] [--clock wall|cpu] [--device D] [--json FILE]

At every time of a run all ensembles and the single network make a guided step in turns, in an order
that turns round, so that whatever else the machine does weighs on all alike: read the ratios.
Memory is the peak of a process of its own that loads a model folder and draws one picture: on a CPU
all that it has in use, beside what an empty network needs; on a GPU its tensors.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import torch
from timing import Now, spread

from everyway import library
from everyway.contracts import Query
from everyway.generate import load
from everyway.placement import peak_memory
from everyway.system import System
from everyway.systems import uvit
from everyway.systems.ensemble import ExpertsConfig, assembled

COUNTS = (1, 2, 3, 5)
SIZES = {"tiny": (uvit.NANO["nano"], 40), "small": (uvit.PRESETS["cifar10_small"], 4)}
EMPTY = uvit.network(size=32, patch=16, channels=3, dim=8, depth=2, heads=1, time_scale=999.0)
TIMES = [(k + 0.5) / 10 for k in range(9, -1, -1)]


def single(network: uvit.UViTConfig, device: str = "cpu") -> System:
    torch.manual_seed(0)
    system = uvit.build(uvit.full(network))
    system.network.to(device).eval().requires_grad_(False)
    return system


def several(system: System, count: int) -> System:
    """As many experts, of equal shares of the times."""
    names, bounds = [f"E{k}" for k in range(count)], [k / count for k in range(1, count)]
    experts = ExpertsConfig(of=system.name, clocks=["image"], bounds=bounds, names=names)
    return assembled(system, experts, {name: deepcopy(system.network) for name in names})


def steps(size: str, device: str, rounds: int, now: Now) -> dict[str, list[float]]:
    """Experts -> quartiles of the time of a step over that of the single network's."""
    system = single(SIZES[size][0], device)
    systems = {"single": system} | {str(count): several(system, count) for count in COUNTS}
    denoise = {name: own.denoiser() for name, own in systems.items()}
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    noise = torch.randn(1, *system.modalities["image"].shape, device=device)
    for turn in range(rounds + 1):  # one goes unmeasured
        for t in TIMES:
            times = {"image": torch.tensor([t], dtype=torch.float64, device=device)}
            query = Query(states={"image": noise}, times=times)
            for name in (tuple(systems), tuple(reversed(systems)))[turn % 2]:
                start = now()
                denoise[name]([query, query])
                seconds[name] += [now() - start] if turn else []
    first = seconds.pop("single")
    ratios = {name: spread([b / a for a, b in zip(first, own)]) for name, own in seconds.items()}
    return {"single, ms": spread(first, 1e3), **ratios}


def memory(size: str, device: str) -> dict[str, float]:
    """MB at the peak: of an empty network, the single one, and of ensembles whose experts lie in
    their files but the one in use."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        empty, system = single(EMPTY), single(SIZES[size][0])
        models = {"empty": empty, "single": system}
        models |= {str(count): several(system, count) for count in COUNTS[1:]}
        for name, own in models.items():
            folder = Path(scratch) / name
            library.save(folder, own, {"image_size": 32})
            kind = "disk" if len(own.networks) > 1 else "full"
            command = [sys.executable, __file__, "--peak", str(folder), kind, "--device", device]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name] = float(done.stdout) / 1e6
    return found


def peak(folder: str, kind: str, device: str) -> int:
    """Bytes in use at the most while a process draws one picture."""
    model = load(folder, device=device, dtype="fp32", memory=kind)
    model.generate(kind="image", steps=10, sampler="ddim")
    return peak_memory(torch.device(device)) or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--rounds", type=int, default=0, help="by default as fits the size")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(peak(*args.peak, args.device))
        return
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    on_gpu = args.device.startswith("cuda")
    now = (lambda: (torch.cuda.synchronize(), clock())[1]) if on_gpu else clock
    timed = steps(args.size, args.device, args.rounds or SIZES[args.size][1], now)
    for name, (low, middle, high) in timed.items():
        print(f"{name:12} {middle:.3f}  ({low:.3f} to {high:.3f})")
    found = memory(args.size, args.device)
    base = found["empty"]
    for name, value in found.items():
        ratio = (value - base) / (found["single"] - base)
        print(f"{name:12} {value:8.1f} MB  {value / found['single']:.3f}  net {ratio:.3f}")
    if args.json:
        args.json.write_text(json.dumps({"step": timed, "memory": found}, indent=1))


if __name__ == "__main__":
    main()
