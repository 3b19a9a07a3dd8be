"""The training loop: cached latents in, an EMA model folder out.  Run it again to resume.

Everything random in step k comes from generators seeded by (seed, k), so an interrupted run ends
with the same weights as an uninterrupted one (given the same number of steps).
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from everyway import objective
from everyway.checkpoints import store
from everyway.checkpoints.card import hardware, write_card
from everyway.contracts import Bundle, Context, Contexts, Times
from everyway.data.latents import Latents
from everyway.nets.precision import fast
from everyway.process.times import (
    importance,
    knot_times,
    mixture_times,
    remember,
    uniform_times,
)
from everyway.sampling.noise import StreamNoise
from everyway.system import System
from everyway.train import sources
from everyway.train.config import ConfigError, TrainConfig
from everyway.train.ema import EMA
from everyway.train.muon import Muon
from everyway.train.parallel import World, join
from everyway.train.state import TrainState

OPTIMISERS = {
    "adamw": lambda network, world, **settings: torch.optim.AdamW(network.parameters(), **settings),
    "muon": Muon,
}
RESUMABLE = {"budget_s", "steps", "out", "save_every_s", "sample_every", "log_every"}
"""Settings that a resumed run may change: they do not bear on what a step does."""
TIMES = {"uniform": uniform_times, "knots": knot_times, "tasks": mixture_times}
"""How times of several clocks are drawn: the whole square, its knots, or mostly lines of tasks."""


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
    Raises ConfigError when the run folder holds another configuration.
    """
    world, out = join(), Path(config.out)
    if world.first:
        _claim(out, config)
    device = torch.device(config.device if config.device != "auto" else _best_device())
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
    path = out / "state.safetensors"
    if path.exists():
        state.restore(path)
        if _early(state, config):
            state.cooldown_from = -1  # cooled down before, and now asked to go on
    log = _Log(out, config.log_every, world.first)
    saved = time.monotonic()
    with _polite_stop() as stopped:
        for facts in _steps(state, system, latents, config, world):
            log.add(state, facts, config, progress)
            if world.first and time.monotonic() - saved > config.save_every_s:
                state.save(path, config.to_json())
                saved = time.monotonic()
            if config.sample_every and world.first and state.step % config.sample_every == 0:
                show(system, state, config)
            if world.agreed(stopped.is_set()):
                break
    model = out / "model"
    if world.first:
        state.save(path, config.to_json())
        export(system, state, config, log.means)
    return {
        "step": state.step,
        "seconds": round(state.seconds, 1),
        "losses": log.means,
        "model": str(model),
        "stopped": stopped.is_set(),
    }


def _steps(
    state: TrainState, system: System, latents: Latents, config: TrainConfig, world: World
) -> Iterator[dict[str, torch.Tensor]]:
    """One optimiser step an item; yields its detached per-modality mean losses."""
    state.network.train()
    parameters = list(state.network.parameters())
    device, share = parameters[0].device, world.share(config.batch)
    autocast = _autocast(config.precision, device)
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
        contexts = _contexts(system, batch, noise, config.drop, share)
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
        return TIMES[config.times](noise, clocks, share), None, lambda losses: None
    law = importance(state.history, state.counts)
    index = torch.multinomial(law, share, replacement=True, generator=source)
    weights = 1 / (len(law) * law[index])

    def learn(losses: dict[str, torch.Tensor]) -> None:
        remember(state.history, state.counts, index, sum(losses.values()).cpu())

    return {c: (index.double() + 1) / len(law) for c in clocks}, weights, learn


def _contexts(
    system: System, batch: Bundle, noise: StreamNoise, drop: float, share: int
) -> Contexts:
    """What the conditions are told, a share `drop` of the samples their null.

    What the data does not tell (the kind of data of UniDiffuser v1) is the null for all of them.
    """
    out = {}
    for name, condition in system.conditions.items():
        told = batch.get(f"told.{name}")
        if told is None:
            device = next(iter(batch.values())).device
            out[name] = Context(tokens=condition.null(share).tokens.to(device))
            continue
        if not drop:
            out[name] = Context(tokens=told)
            continue
        null = condition.null(share).tokens.to(told)
        dropped = noise.uniform(f"drop:{name}", (len(told),)).to(told.device) < drop
        dropped = dropped.reshape(-1, *([1] * (told.ndim - 1)))
        out[name] = Context(tokens=torch.where(dropped, null, told))
    return out


def chain_of(system: System, config: TrainConfig) -> int:
    """Steps of the token chain whose times are drawn by importance; 0 where they are not."""
    if config.times != "importance":
        return 0
    steps = {process.steps for process in system.chains.values()}
    if len(system.chains) < len(system.modalities) or len(steps) != 1:
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
    """Warm-up, constant, then linearly to 0 over the cool-down.

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

    path = Path(config.out) / "samples" / f"{state.step:07d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = sources.data_of(system, config)
    samples(system, state.ema, data, {"training": {"data": config.data}}).save(path)
    return path


def export(system: System, state: TrainState, config: TrainConfig, losses: dict) -> Path:
    """The EMA weights and codecs as a model folder, OUT/model."""
    folder = Path(config.out) / "model"
    tensors = {"network": state.ema.weights, **system.codec_weights()}
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
        "image_size": sources.picture_size(system),
        "losses": losses,
        "history": [*begun["history"], run],
        "training": json.loads(config.to_json()),
    }
    store.save(folder, {"system": system.name, "config": dict(system.config)}, tensors, facts)
    write_card(folder)
    return folder


def _autocast(precision: str, device: torch.device):
    """A context in which the network runs in bf16, or one that changes nothing."""
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}.get(precision)
    if dtype is None:
        dtype = torch.bfloat16 if fast(torch.bfloat16, device.type) else torch.float32
    if dtype is torch.float32:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype)


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _on(device: torch.device, source: torch.Generator, seed: int) -> torch.Generator:
    """The batch's own generator on a CPU; on a GPU one that draws there."""
    return source if device.type == "cpu" else torch.Generator(device).manual_seed(seed)


def _claim(out: Path, config: TrainConfig) -> None:
    """Write the resolved config into the run folder, or make sure it is the same one."""
    path = out / "config.json"
    if path.exists():
        former = TrainConfig(**json.loads(path.read_text(encoding="utf-8")))
        mine = asdict(config)
        other = [k for k, v in asdict(former).items() if v != mine[k] and k not in RESUMABLE]
        if other:
            raise ConfigError(
                f"{out} holds a run with another {', '.join(other)}; choose another --out, "
                "or use the settings in its config.json to resume"
            )
    out.mkdir(parents=True, exist_ok=True)
    store.write_text(path, config.to_json())


@contextmanager
def _polite_stop() -> Iterator[threading.Event]:
    """Ctrl-C sets an event that the loop reads between steps; a second one stops at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    former = signal.getsignal(signal.SIGINT)

    def ask(signum, frame):
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    signal.signal(signal.SIGINT, ask)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, former)


class _Log:
    """Running means of the losses, as JSON lines and (where installed) TensorBoard scalars."""

    def __init__(self, out: Path, every: int, first: bool = True) -> None:
        self.path, self.every, self.first, self.board = out / "log.jsonl", every, first, None
        self.sums: dict[str, torch.Tensor] = {}
        self.count, self.since, self.means = 0, time.monotonic(), {}
        if not first:
            return
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
        if not self.first:
            self.sums, self.count = {}, 0
            return
        self.means = {k: round(float(v) / self.count, 5) for k, v in self.sums.items()}
        speed = self.count * config.batch / (time.monotonic() - self.since)
        row = {"step": state.step, "seconds": round(state.seconds, 1), **self.means}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.board:
            for name, value in self.means.items():
                self.board.add_scalar(f"loss/{name}", value, state.step)
        if progress:
            steps = config.steps
            progress(
                Progress(step=state.step, steps=steps, losses=self.means, samples_a_second=speed)
            )
        self.sums, self.count, self.since = {}, 0, time.monotonic()
