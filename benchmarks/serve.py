"""Many clients at once: whether each gets what is made alone, how fast, and in how much memory.

    python benchmarks/serve.py [--clients 64] [--seconds 300] [--model nano] [--json FILE]

Starts `everyway serve` twice, with batches of 16 and of 1, and sends mixed tasks from as many
clients: pictures of texts, captions, variations, both together, chains.  Every answer is compared
with the same request made alone in this process, on as many threads, bit for bit.  Memory is that
of the server's process, after a tenth of the time and at its end.  On a machine that does other
work, too, read the samples a CPU second of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from everyway.apps.cli.making import sparing
from everyway.generate import load
from everyway.job import Job
from everyway.request import GenerateRequest

TEXTS = ("a red ring", "a blue cross", "a green square left on white", "a black ring right on red")
KINDS = ("text-to-image", "image-to-text", "vary-image", "joint", "chain")
VARIANTS = 4
"""Seeds and inputs of each kind; few, so that all that is made alone is made once."""
JOBS = "/v1/everyway/jobs"


def wanted(number: int, steps: int) -> dict[str, Any]:
    """The number-th request, as the API has it."""
    kind, variant = KINDS[number % len(KINDS)], number // len(KINDS) % VARIANTS
    own: dict[str, Any] = {
        "kind": kind,
        "seed": 100 * variant,
        "steps": steps,
        "n": 1 + variant % 2,
    }
    if kind in ("text-to-image", "chain"):
        own["text"] = TEXTS[variant]
    if kind in ("image-to-text", "vary-image"):
        own["images"] = [base64.b64encode(picture(variant)).decode()]
    return own | ({"rounds": 1} if kind == "chain" else {})


def picture(variant: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), ("red", "teal", "black", "white")[variant]).save(file, "PNG")
    return file.getvalue()


def alone(model: Any, number: int, steps: int) -> dict[Any, Any]:
    """(seed, part) -> (pixels, text) of the number-th request, made by itself."""
    own = wanted(number, steps)
    files = {content: base64.b64decode(content) for content in own.get("images", ())}
    results = model.generate(Job(request=GenerateRequest(**own), files=files))
    return {(r.seed, r.part): (r.image and r.image.tobytes(), r.text) for r in results}


@contextmanager
def server(together: int, models: list[str]):
    """(address, process id) of a server in its own processes."""
    words = [f"--model={name}" for name in models]
    words += ["--port=0", f"--together={together}", "--max-waiting=100000"]
    command = [sys.executable, "-m", "everyway.apps.cli", "serve", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as own:
        try:
            address = own.stdout.readline().split()[2].rstrip(";")
            while httpx.get(f"{address}/readyz", timeout=120).status_code != 200:
                time.sleep(0.1)
            yield address, children(own.pid)[-1]
        finally:
            own.send_signal(signal.SIGTERM)
            own.communicate(timeout=120)


def children(pid: int) -> list[int]:
    """Of a process, in the order in which they began."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def memory(pid: int) -> float:
    """MB that a process has in use."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000


def computed(pid: int) -> float:
    """Seconds of the processor that a process has had."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


class Load:
    """What the clients found.  expected: number of a request -> what it makes alone."""

    def __init__(self, expected: dict[int, dict[Any, Any]], steps: int, until: float) -> None:
        self.expected, self.steps, self.until = expected, steps, until
        self.found: Counter[str] = Counter()
        self.samples, self.seconds = 0, list[float]()

    async def client(self, http: httpx.AsyncClient, seed: int) -> None:
        """Sends one request after the other, breaks some off, and cancels others."""
        draw = random.Random(seed)
        while time.monotonic() < self.until:
            number = draw.randrange(len(self.expected))
            began = time.monotonic()
            try:
                self.found[await self.one(http, number, draw.random())] += 1
            except httpx.HTTPError as error:
                self.found[f"lost: {type(error).__name__}"] += 1
            self.seconds.append(time.monotonic() - began)

    async def one(self, http: httpx.AsyncClient, number: int, chance: float) -> str:
        answer = await http.post(JOBS, json=wanted(number, self.steps))
        if answer.status_code != 202:
            return f"status {answer.status_code}"
        id = answer.json()["id"]
        if chance < 0.05:
            await http.post(f"{JOBS}/{id}/cancel")
            return "cancelled"
        async with http.stream("GET", f"{JOBS}/{id}/events") as stream:
            async for row in stream.aiter_lines():
                if chance > 0.95 and row.startswith("event: step"):
                    return "broken off"
        view = (await http.get(f"{JOBS}/{id}")).json()
        if view["status"] != "done":
            return view["status"]
        made = {}
        for row in view["results"]:
            content = (await http.get(row["image"])).content if "image" in row else None
            pixels = Image.open(io.BytesIO(content)).tobytes() if content else None
            made[row["seed"], row["part"]] = (pixels, row.get("text"))
        self.samples += wanted(number, self.steps)["n"]
        return "right" if made == self.expected[number] else "wrong"


async def run(address: str, pid: int, load_: Load, clients: int, seconds: float) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=2 * clients)
    began, before = time.monotonic(), computed(pid)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as http:
        every = [asyncio.create_task(load_.client(http, k)) for k in range(clients)]
        await asyncio.sleep(seconds / 10)
        first = memory(pid)
        await asyncio.gather(*every)
        took = time.monotonic() - began
    lasted = sorted(load_.seconds)
    return {
        "answers": dict(load_.found),
        "samples a second": round(load_.samples / took, 2),
        "samples a CPU second": round(load_.samples / (computed(pid) - before), 2),
        "median seconds": round(lasted[len(lasted) // 2], 2),
        "memory first, MB": round(first),
        "memory last, MB": round(memory(pid)),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--clients", type=int, default=64)
    p.add_argument("--seconds", type=float, default=300)
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--model", default="nano")
    p.add_argument("--batches", type=int, nargs="+", default=[16, 1])
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    model, numbers = sparing(load(args.model)), range(len(KINDS) * VARIANTS)
    expected = {number: alone(model, number, args.steps) for number in numbers}
    rows = {}
    for together in args.batches:
        with server(together, [args.model]) as (address, pid):
            own = Load(expected, args.steps, time.monotonic() + args.seconds)
            rows[together] = asyncio.run(run(address, pid, own, args.clients, args.seconds))
        print(f"batches of {together}: {json.dumps(rows[together])}", flush=True)
    if {1, 16} <= rows.keys():
        for per in ("samples a second", "samples a CPU second"):
            print(f"batched over unbatched, {per}: {rows[16][per] / rows[1][per]:.2f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
