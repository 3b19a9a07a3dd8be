"""What a training takes on this machine, found by some steps of it, and said before it begins.

A rehearsal is the training itself, of some samples of its own data and for some seconds, in a
folder that is removed afterwards.  Everything that a command spends is counted.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import Field, ValidationError

from everyway.checkpoints.card import hardware
from everyway.checkpoints.store import write_text
from everyway.data.faults import reason
from everyway.settings import Settings
from everyway.system import System
from everyway.systems import SYSTEMS
from everyway.train import sources
from everyway.train.config import ConfigError, TrainConfig, differences, parsed
from everyway.train.devices import PartialState, agreed
from everyway.train.folder import RESUMABLE, STATE, locked
from everyway.train.loop import train
from everyway.train.systems import prepared
from everyway.validation import first_fault

FILE = "price.json"
Lines = dict[str, list[tuple[str, str]]]
"""What lines are about -> (whose, line), where whose is "codec of mini" for instance, or ""."""
ROWS = 64
"""Samples that a rehearsal encodes and learns from."""
STEPS, SECONDS = 60, 8.0
"""A rehearsal ends after so many steps or seconds, whichever come first."""
WARM = 3
"""Its first steps, which are not counted, since they take longer than the others."""
PARTS = ("begun", "codecs", "latents", "building", "training", "saving")
"""What the time of a command is spent on, in order."""
FASTER = 0.85
"""Several threads are used if a step takes at most this part of its time with one thread."""
SHARE = 0.1
"""The least part of a budget that has to be left to learn in."""
PASSES = (20, 200)
"""How often each sample is seen: from the first on shapes are expected, from the second on little
that is new."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What was measured of a few steps of a training.

    step, processor: seconds of a step, on the wall and of the processor.  sample: seconds of
    encoding a sample.  build: seconds of building all.  finish: seconds of saving and exporting it.
    bytes: of the state and the exported model.  row_bytes: of a sample in the cache.
    rows: samples in the cache of the whole training.
    parameters, trained: of the networks, and how many of these learn.
    """

    step: float
    processor: float
    sample: float
    build: float
    finish: float
    bytes: int
    row_bytes: float
    rows: int
    parameters: int
    trained: int


class Price(Settings):
    """What a training will do and take; it is printed, and kept in the run folder."""

    asked: dict[str, Any]
    """The settings that were asked for."""
    config: dict[str, Any]
    """Those that it runs with."""
    codecs: str = ""
    """How codecs are made first: "fitted", "trained", "shipped", or "" where none are."""
    stages: dict[str, float] = Field(default_factory=dict)
    """Training of a codec -> its seconds, in order."""
    about: Lines = Field(default_factory=dict)
    """On data and codecs."""
    step_s: float
    """Of a step."""
    processor_s: float
    """Of a step, of all cores together: less than `step_s` where others use them."""
    steps: int
    """Of the optimiser."""
    rows: int
    """Samples in the cache, 0 where they have no end."""
    parameters: int
    trained: int = 0
    """Of these, where not all are."""
    seconds: dict[str, float]
    """Of each part, in order."""
    memory: int
    disk: int
    threads: int
    """Of the processor."""

    @property
    def total(self) -> float:
        """In seconds."""
        return sum(self.seconds.values())

    def settings(self) -> TrainConfig:
        return parsed(self.config)

    def lines(self) -> Lines:
        """For people to read, each part of the price in one line or more."""
        own = self.settings()
        samples, out = self.steps * own.batch, own.folder.absolute()
        seen = f"{samples:,} samples"
        if self.rows:
            seen = f"{samples:,} samples, each {samples / self.rows:,.0f} times"
        where = next(p for p in (out, *out.parents) if p.exists())
        preset = getattr(own.model, "preset", "")
        took = {name: spell(self.seconds.get(name, 0.0)) for name in PARTS}
        if self.stages:
            each = ", ".join(f"{name} {spell(s)}" for name, s in self.stages.items())
            took["codecs"] = f"{took['codecs']} ({each})"
        lines = {
            "model": self.model_line(f"{own.system} {preset}", own.adapter.lora),
            "training": f"{self.steps:,} steps of {own.batch}: {seen}; "
            f"{self.step_s:.3g} s a step on {hardware()}, threads: {self.threads}",
            "time": f"{spell(self.total)} in all: {took['begun']} so far, {took['codecs']} codecs, "
            f"{took['latents']} latents, {took['building']} building, {took['training']} training, "
            f"{took['saving']} saving",
            "memory": f"{size(self.memory)}, this machine has "
            f"{size(psutil.virtual_memory().total)}",
            "disk": self.disk_line(shutil.disk_usage(where).free),
            "expect": self.expect(samples),
        }
        return {**self.about, **{name: [("", line)] for name, line in lines.items()}}

    def disk_line(self, free: int) -> str:
        """free: bytes there."""
        line = f"{size(self.disk)}, {size(free)} are free"
        return line if free > self.disk else f"{line}: make room, or choose another --out"

    def model_line(self, name: str, rank: int) -> str:
        """Its name and size, and what a LoRA of that rank is of it, if there is one."""
        line = f"{name}, {self.parameters / 1e6:.1f} million parameters"
        if rank:
            line = f"{line}, {self.trained / 1e6:.2f} million of them a LoRA of rank {rank}"
        if rank and self.trained > self.parameters - self.trained:
            line = f"{line}, more than it is beside: leave lora out or lower it"
        return line

    def expect(self, samples: int) -> str:
        """What so many samples are good for."""
        if not self.rows:
            return "new samples without end: the longer, the better"
        passes = samples / self.rows
        if passes < PASSES[0]:
            return "colours and places, hardly shapes: more time, or a smaller model, does more"
        if passes < PASSES[1]:
            return "what many pictures share is drawn and named; what is rare is not yet"
        return "it will know this folder; more of it teaches little that is new, more pictures do"

    def save(self) -> None:
        write_text(self.settings().folder / FILE, json.dumps(self.model_dump(), indent=2))


def held(asked: TrainConfig) -> Price | None:
    """The price in the run folder if it is of these settings, else None.

    Settings that may change between two starts are those of now.  Where the budget or the steps
    changed, the training is longer or shorter.
    Raises ConfigError for a damaged price of a training that has begun, since nothing else says
    what was chosen.  One that has not begun is measured anew.
    """
    path = asked.folder / FILE
    if not path.exists():
        return None
    try:
        price = Price.model_validate(json.loads(path.read_text(encoding="utf-8")))
        former = parsed(price.asked)
    except (OSError, ValueError) as error:
        if not (asked.folder / STATE).exists():
            return None
        raise ConfigError(
            f"{path}, by which the run in {asked.folder} goes on, is damaged ({_short(error)}); "
            f"get it back, or choose another --out and begin with --set init={asked.folder}"
        ) from None
    if differences(former, asked, RESUMABLE):
        return None
    own = price.settings()
    budget_s, steps, samples = own.budget_s, price.steps, own.samples
    if asked.budget_s != former.budget_s:
        budget_s = max(0.0, budget_s + asked.budget_s - former.budget_s)
        steps = round(budget_s / price.step_s)
    if asked.steps != former.steps:
        steps, samples = asked.steps, asked.samples
    run = asked.run.model_copy(update={"out": own.run.out})
    ends = {"budget_s": budget_s, "samples": samples}
    own = own.model_copy(update={"run": run, "steps": asked.steps, **ends})
    return price.model_copy(
        update={
            "asked": asked.model_dump(),
            "config": own.model_dump(),
            "steps": steps,
            "seconds": {**price.seconds, "training": steps * price.step_s},
        }
    )


def _short(error: Exception) -> str:
    """Why a price cannot be read."""
    if isinstance(error, ValidationError):
        return first_fault(error)
    return "it is no JSON" if isinstance(error, json.JSONDecodeError) else reason(error)


def priced(
    asked: TrainConfig,
    config: TrainConfig,
    tried: TrainConfig,
    place: Path,
    began: float,
    fitting: int = 0,
    **known: Any,
) -> Price:
    """The price of a training, of which some steps are rehearsed.

    asked: as the user gave it.  config: as it will run.  tried: the same with the codecs that are
    there to rehearse with.  place: the folder of the rehearsal.  began: as of `stack.planned`.
    fitting: bytes that making codecs takes beyond what was taken so far.
    known: further fields of the Price, of its `seconds` those of codecs.
    Raises ConfigError where a budget leaves no time to learn in.
    """
    found, threads = _with_threads(tried, place)
    rows = found.rows
    before = {**known.pop("seconds", {}), "latents": rows * found.sample, "building": found.build}
    before = {"begun": time.time() - began, **before}
    if asked.budget_s:
        aside = sum(before.values()) + found.finish
        saving = 1 + found.finish / 2 / max(1.0, config.run.save_every_s)
        learning = left_of(asked.budget_s, aside) / saving
        config = config.model_copy(update={"budget_s": learning})
        learning = min(learning, config.steps * found.step)
        steps = min(config.steps, max(1, round(learning / found.step)))
    else:
        steps, learning = config.steps, config.steps * found.step
    savings = found.finish * (1 + learning / max(1.0, config.run.save_every_s) / 2)
    return Price(
        asked=asked.model_dump(),
        config=config.model_dump(),
        step_s=found.step,
        processor_s=found.processor,
        steps=steps,
        rows=rows if sources.is_own(config.source.data) else 0,
        parameters=found.parameters,
        trained=found.trained,
        seconds={**before, "training": learning, "saving": savings},
        memory=round(_peak() + fitting + rows * found.row_bytes),
        disk=round(2 * found.bytes + rows * found.row_bytes),
        threads=threads,
        **known,
    )


def left_of(budget_s: float, aside: float, share: float = 1.0) -> float:
    """Seconds to learn in: a share of a budget without those set aside.  Raises ConfigError where
    less than SHARE of it is left."""
    left = share * budget_s - aside
    if left < SHARE * share * budget_s:
        raise ConfigError(
            f"a budget of {spell(budget_s)} leaves no time to learn in; give "
            f"{spell(aside / share / (1 - SHARE))} or more"
        )
    return left


@contextmanager
def rehearsing(out: Path, process: PartialState) -> Iterator[Path]:
    """A folder in the run folder `out` for the rehearsal of all processes.

    It is removed afterwards, with the run folder if there was none.  Raises ConfigError as
    `folder.locked` does, so that no other training is disturbed.
    """
    place = out / "rehearsal"
    with locked(out) if process.is_main_process else nullcontext():
        if process.is_main_process:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
        process.wait_for_everyone()
        try:
            yield place
        finally:
            if process.is_main_process:
                shutil.rmtree(place, ignore_errors=True)


def _with_threads(config: TrainConfig, place: Path) -> tuple[Rehearsal, int]:
    """(a rehearsal, its threads): with one thread or with all, whichever is faster, unless the user
    has chosen.  On a machine that others use, too, a small model is faster with one."""
    most = torch.get_num_threads()
    if most == 1 or "OMP_NUM_THREADS" in os.environ or torch.cuda.is_available():
        return rehearsed(config, place / "one"), most
    several = rehearsed(config, place / "several")
    torch.set_num_threads(1)
    one = rehearsed(config, place / "one")
    if several.step > FASTER * one.step:
        return one, 1
    torch.set_num_threads(most)
    return several, most


def rehearsed(config: TrainConfig, out: Path) -> Rehearsal:
    """What some steps of a training take, in the folder `out`, as the first process measures it."""
    small = _few(config, out)
    encoded = _encoded(small, config)
    times = [_now()]
    train(small, lambda progress: times.append(_now()))
    times.append(_now())
    if len(times) == 2:  # of several processes only one hears of progress
        return agreed(None)
    begun, *steps, ended = times
    warm = steps[min(WARM, len(steps) - 2) :] if len(steps) > 1 else [begun, *steps]
    step, processor = ((b - a) / (len(warm) - 1) for a, b in zip(warm[0], warm[-1]))
    latents = [f for folder in out.glob("latents-*") for f in folder.iterdir()]
    rest = [f for f in out.rglob("*") if f.is_file() and f not in latents]
    made = Rehearsal(
        step=step,
        processor=processor,
        sample=encoded.sample,
        build=max(0.0, steps[0][0] - begun[0] - step - encoded.few * encoded.sample),
        finish=ended[0] - steps[-1][0],
        bytes=sum(f.stat().st_size for f in rest),
        row_bytes=sum(f.stat().st_size for f in latents) / encoded.few,
        rows=encoded.rows,
        parameters=encoded.parameters,
        trained=encoded.trained,
    )
    return agreed(made)


def _few(config: TrainConfig, out: Path) -> TrainConfig:
    """The same training with few steps and samples, which publishes and logs nothing."""
    source = {"cache": min(config.source.cache, ROWS), "latents": ""}
    run = {"out": str(out), "save_every_s": 1e9, "sample_every": 0, "log_every": 1}
    run |= {"publish": False, "before_after": False, "tracker": ""}
    return config.model_copy(
        update={
            "steps": min(STEPS, config.steps),
            "samples": 0,
            "budget_s": SECONDS,
            "source": config.source.model_copy(update=source),
            "run": config.run.model_copy(update=run),
        }
    )


def _now() -> tuple[float, float]:
    """Seconds on the wall and of the processor."""
    return time.monotonic(), time.process_time()


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """The encoded samples of a rehearsal.  sample: seconds that one of `few` took.  rows: how many
    the whole training has.  parameters, trained: as of a Rehearsal."""

    sample: float = 0.0
    few: int = 1
    rows: int = 0
    parameters: int = 0
    trained: int = 0


def _encoded(small: TrainConfig, config: TrainConfig) -> _Encoded:
    """Encodes the samples of a rehearsal; the training of a codec has none that are encoded."""
    if config.system not in SYSTEMS:
        return _Encoded()
    system = prepared(small)
    few, seconds = _rows(system, small), 0.0
    if not small.source.compose:
        chosen = sources.chosen(system, small, sources.data_of(system, small))
        began = time.monotonic()
        sources.encode(system, [chosen.sample(row) for row in range(few)])
        seconds = time.monotonic() - began
    own = [p for network in system.networks.values() for p in network.parameters()]
    return _Encoded(
        sample=seconds / few,
        few=few,
        rows=_rows(system, config),
        parameters=sum(p.numel() for p in own),
        trained=sum(p.numel() for p in own if p.requires_grad),
    )


def _rows(system: System, config: TrainConfig) -> int:
    """Samples in the cache of a training."""
    if config.source.compose:
        return config.source.cache
    return len(sources.chosen(system, config, sources.data_of(system, config)))


def _peak() -> int:
    """The most bytes of memory so far, those of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def spell(seconds: float) -> str:
    """A time in words, as "3.4 min"."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def size(count: float) -> str:
    """Bytes in words, as "679 MB"."""
    power = min(3, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB')[power]}"
