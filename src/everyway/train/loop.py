"""The training loop: cached latents in, an EMA model folder out.  Run it again to resume.

Everything random in step k comes from generators seeded by (seed, k), so an interrupted run ends
with the same weights as an uninterrupted one, given the same number of steps and of processes.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from everyway import objective
from everyway.checkpoints import store
from everyway.checkpoints.card import hardware, write_card
from everyway.contracts import Times
from everyway.data.latents import Latents
from everyway.nets.precision import fast
from everyway.process.times import (
    importance,
    knot_times,
    mixture_times,
    remember,
    task_lines,
    uniform_times,
)
from everyway.sampling.noise import StreamNoise
from everyway.system import System
from everyway.train import sources
from everyway.train.config import ConfigError, TrainConfig, typed
from everyway.train.ema import EMA
from everyway.train.muon import Muon
from everyway.train.parallel import World, join
from everyway.train.state import TrainState, diverged
from everyway.train.stopping import polite_stop

OPTIMISERS = {
    "adamw": lambda network, world, **settings: torch.optim.AdamW(network.parameters(), **settings),
    "muon": Muon,
}
RESUMABLE = {"budget_s", "steps", "out", "save_every_s", "sample_every", "log_every"}
"""Settings that a resumed run may change: of them only the end bears on what a step does, since the
rate falls before it."""
TIMES = {"uniform": uniform_times, "knots": knot_times}
"""How times of several clocks are drawn: over the whole square, or on its knots.  `_times` has the
two other ways, which have settings or a memory."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """step of steps (at most, under a time budget); losses: modality -> running mean."""

    step: int
    steps: int
    losses: dict[str, float]
    samples_a_second: float


def train(config: TrainConfig, progress: Callable[[Progress], None] | None = None) -> dict:
    """Train, or go on training, what `config` says.

    Returns facts: step, seconds, losses, model (the folder), stopped (True after Ctrl-C).
    Raises ConfigError when the run folder holds another configuration or is no run folder, or the
    device cannot be used, and StateError when the training diverges; then the run folder holds
    what it held, or was last saved.
    """
    world, out = join(), Path(config.out)
    world.share(config.batch)  # refused before anything is made
    device = _device(config.device)
    if world.first:
        _compare(out, config)
    system, latents = sources.prepare(config, world)
    network = system.network.to(device)
    if config.recompute:
        network.checkpointing = True
    optimiser = OPTIMISERS[config.optimiser](
        network,
        world,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )
    state = TrainState(network, optimiser, EMA(network, config.ema), chain_of(system, config))
    path, model = out / "state.safetensors", out / "model"
    if path.exists():
        state.restore(path)
        if _early(state, config):
            state.cooldown_from = -1  # cooled down before, and now asked to go on
    half = _half(config.precision, device) if state.half is None else state.half
    state.half = bool(world.agreed(half))
    if isinstance(optimiser, Muon):
        optimiser.half = state.half
    if world.first:
        store.write_text(out / "config.json", config.to_json())
    log = _Log(out, config.log_every, world.first)
    begun, halted, saved = state.step, False, time.monotonic()
    with polite_stop() as asked:
        for facts in _steps(state, system, latents, config, world):
            log.add(state, facts, config, progress)
            if world.first and time.monotonic() - saved > config.save_every_s:
                state.save(path, config.to_json())
                saved = time.monotonic()
            if config.sample_every and world.first and state.step % config.sample_every == 0:
                show(system, state, config)
            if halted := bool(world.agreed(len(asked))):
                break
        log.write(state)
        if world.first and state.step > begun:
            state.save(path, config.to_json())
        if world.first and (state.step > begun or _exported(model) != state.step):
            export(system, state, config, log.means)
        world.agreed(0.0)  # the others wait for the files
    return {
        "step": state.step,
        "seconds": round(state.seconds, 1),
        "losses": log.means,
        "model": str(model),
        "stopped": halted,
    }


def _steps(
    state: TrainState, system: System, latents: Latents, config: TrainConfig, world: World
) -> Iterator[dict[str, torch.Tensor]]:
    """One optimiser step an item; yields its detached per-modality mean losses."""
    state.network.train()
    parameters = list(state.network.parameters())
    device, share = parameters[0].device, world.share(config.batch)
    bf16 = partial(torch.autocast, device.type, torch.bfloat16)
    autocast = bf16 if state.half else nullcontext
    while not _finished(state, config):
        began = time.monotonic()
        rate = config.lr * rate_factor(state.step, state.cooldown_from, config)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        seed = config.seed * 1_000_003 + state.step * world.size + world.rank
        source = torch.Generator().manual_seed(seed)
        batch = {k: v.to(device) for k, v in latents.batch(share, source).items()}
        x0 = {k: v for k, v in batch.items() if k in system.modalities}
        noise = StreamNoise(_on(device, source, seed))
        times, weights, learn = _times(state, system, config, source, noise, share)
        contexts = objective.contexts_of(system, batch, noise, config.drop, share)
        with autocast():
            per_modality = objective.losses(system, x0, times, noise, contexts)
            loss = objective.total(system, per_modality, weights)
        learn(per_modality)
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        world.average(parameters)
        if config.clip:
            torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        state.optimiser.step()
        state.ema.update(state.network, state.step)
        state.step += 1
        state.seconds = world.agreed(state.seconds + time.monotonic() - began)
        yield {k: v.detach().mean() for k, v in per_modality.items()}


def _times(
    state: TrainState,
    system: System,
    config: TrainConfig,
    source: torch.Generator,
    noise: StreamNoise,
    share: int,
) -> tuple[Times, torch.Tensor | None, Callable[[dict[str, torch.Tensor]], None]]:
    """(times, weight of each sample or None, what takes in the losses at these times)."""
    clocks = tuple(dict.fromkeys(system.clocks.values()))
    if config.times != "importance":
        lines = task_lines(config.to_image, config.to_text, config.joint)
        laws = {**TIMES, "tasks": partial(mixture_times, lines=lines, shift=config.shift)}
        return laws[config.times](noise, clocks, share), None, lambda losses: None
    law = importance(state.history, state.counts)
    index = torch.multinomial(law, share, replacement=True, generator=source)
    weights = 1 / (len(law) * law[index])

    def learn(losses: dict[str, torch.Tensor]) -> None:
        found = sum(losses.values()).cpu()
        if not found.isfinite().all():
            raise diverged(state.step + 1)  # no time could be drawn by such a history
        remember(state.history, state.counts, index, found)

    return {c: (index.double() + 1) / len(law) for c in clocks}, weights, learn


def chain_of(system: System, config: TrainConfig) -> int:
    """Steps of the token chain whose times are drawn by importance; 0 where they are not."""
    if config.times != "importance":
        return 0
    steps = {process.steps for process in system.tokens.values()}
    if len(system.tokens) < len(system.modalities) or len(steps) != 1:
        raise ConfigError("times=importance is for systems of tokens alone; choose uniform")
    return steps.pop()


def _finished(state: TrainState, config: TrainConfig) -> bool:
    """Counts steps; under a time budget, moves the cool-down to where the budget wants it."""
    if state.cooldown_from < 0 and not _early(state, config):
        state.cooldown_from = state.step
    return state.step >= config.steps or 0 < config.budget_s <= state.seconds


def _early(state: TrainState, config: TrainConfig) -> bool:
    """Whether so much of the budget, or else of the steps, is left that no cool-down is due."""
    if config.budget_s:
        return state.seconds <= config.budget_s * (1 - config.cooldown)
    return state.step < config.steps * (1 - config.cooldown)


def rate_factor(step: int, cooldown_from: int, config: TrainConfig) -> float:
    """Warm-up, constant, then linearly down over the cool-down, to a fiftieth.

    Under a time budget the cool-down's length in steps is foretold from the steps before it.
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    if cooldown_from < 0 or config.cooldown == 0:
        return warm
    if config.budget_s:
        length = cooldown_from * config.cooldown / (1 - config.cooldown)
    else:
        length = config.steps * config.cooldown
    return warm * max(0.02, 1 - (step - cooldown_from) / max(1.0, length))


def show(system: System, state: TrainState, config: TrainConfig) -> Path:
    """A sheet of samples in every direction, OUT/samples/STEP.png."""
    from everyway.train.samples import samples

    if not state.finite():
        raise diverged(state.step)
    path = Path(config.out) / "samples" / f"{state.step:07d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = sources.data_of(system, config)
    samples(system, state.ema, data, {"training": {"data": config.data}}).save(path)
    return path


def export(system: System, state: TrainState, config: TrainConfig, losses: dict) -> Path:
    """The EMA weights and codecs as a model folder, OUT/model; StateError if they diverged."""
    if not state.finite():
        raise diverged(state.step)
    folder = Path(config.out) / "model"
    tensors = system.weights(state.ema.weights)
    run = {
        "data": config.data,
        "steps": state.step,
        "batch": config.batch,
        "samples": state.step * config.batch,
        "seconds": round(state.seconds),
        "hardware": hardware(),
    }
    begun = sources.origins(config)
    facts = {
        **begun,
        "name": config.preset,
        "image_size": sources.image_size(system),
        "losses": losses,
        "history": [*begun["history"], run],
        "training": json.loads(config.to_json()),
    }
    store.save(folder, {"system": system.name, "config": dict(system.config)}, tensors, facts)
    write_card(folder)
    return folder


def _exported(model: Path) -> int:
    """Steps of the run that the model folder is of, or -1 where there is no whole one."""
    try:
        held = store.document(model)
        files = [store.component(model, name, digest) for name, digest in held["sha256"].items()]
        return held["facts"]["history"][-1]["steps"] if all(f.is_file() for f in files) else -1
    except (store.StoreError, LookupError, TypeError):
        return -1


def _half(precision: str, device: torch.device) -> bool:
    """Whether the network computes in bf16; "auto" measures."""
    return precision == "bf16" or (precision == "auto" and fast(torch.bfloat16, device.type))


def _device(name: str) -> torch.device:
    """The device of that name, tried; ConfigError where it holds no numbers."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device {name!r} cannot be used ({reason}); leave it out") from None
    return torch.device(name)


def _on(device: torch.device, source: torch.Generator, seed: int) -> torch.Generator:
    """The batch's own generator on a CPU; on a GPU one that draws there."""
    return source if device.type == "cpu" else torch.Generator(device).manual_seed(seed)


def _compare(out: Path, config: TrainConfig) -> None:
    """ConfigError where the run folder is no place for this run; nothing is written."""
    place = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise ConfigError(f"out is {out}, but {place} is no folder to write to; choose another")
    path = out / "config.json"
    if not path.exists():
        return
    former = asdict(TrainConfig()) | _former(path)
    marks = ("state.safetensors", "log.jsonl", "latents-*.safetensors")
    if not any(found for mark in marks for found in out.glob(mark)):
        return  # of a training that never began
    mine = asdict(config)
    other = [k for k, v in former.items() if v != mine[k] and k not in RESUMABLE]
    if other:
        raise ConfigError(
            f"{out} holds a run with another {', '.join(other)}; choose another --out, "
            "or use the settings in its config.json to resume"
        )


def _former(path: Path) -> dict:
    """The settings in a run folder's config.json."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(held, dict):
            raise ConfigError("it holds no settings")
        return {name: typed(name, value) for name, value in held.items()}
    except (OSError, ValueError) as error:
        reason = str(error).partition(";")[0]
        raise ConfigError(
            f"{path} is not the config of a training ({reason}); choose another --out"
        ) from None


class _Log:
    """Running means of the losses, as JSON lines and (where installed) TensorBoard scalars."""

    def __init__(self, out: Path, every: int, first: bool = True) -> None:
        self.path, self.every, self.first, self.board = out / "log.jsonl", every, first, None
        self.sums: dict[str, torch.Tensor] = {}
        self.count, self.since, self.means = 0, time.monotonic(), {}
        if not first:
            return
        self.means = _last(self.path)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(out / "tensorboard"))
        except ImportError:
            pass  # an extra; the JSON lines hold the same numbers

    def add(self, state: TrainState, losses: dict[str, torch.Tensor], config, progress) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.count += 1
        if state.step % self.every:
            return
        speed = self.count * config.batch / (time.monotonic() - self.since)
        self.write(state)
        if self.first and progress:
            steps = config.steps
            progress(
                Progress(step=state.step, steps=steps, losses=self.means, samples_a_second=speed)
            )

    def write(self, state: TrainState) -> None:
        """A row of the means since the last one, if a step was made; StateError if not finite."""
        sums, count = self.sums, self.count
        self.sums, self.count, self.since = {}, 0, time.monotonic()
        if not (self.first and count):
            return
        means = {k: round(float(v) / count, 5) for k, v in sums.items()}
        if not all(map(math.isfinite, means.values())):
            raise diverged(state.step)
        self.means = means
        row = {"step": state.step, "seconds": round(state.seconds, 1), **means}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.board:
            for name, value in means.items():
                self.board.add_scalar(f"loss/{name}", value, state.step)


def _last(path: Path) -> dict[str, float]:
    """The losses in the last row of a log; none where there is no such row."""
    try:
        row = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        losses = {k: v for k, v in row.items() if k not in ("step", "seconds")}
        return losses if all(map(math.isfinite, losses.values())) else {}
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return {}
