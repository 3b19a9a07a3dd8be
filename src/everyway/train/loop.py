"""The one training loop, on Accelerate: a learner in, an EMA model out.  Run it again to resume.

Everything random in step k comes from generators seeded by (seed, k), and every process takes its
rows of it, so an interrupted run ends with the same weights as an uninterrupted one, and several
processes with those of one but for rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from everyway.checkpoints import store
from everyway.checkpoints.card import hardware
from everyway.request import LORA
from everyway.systems import SYSTEMS
from everyway.train import devices, folder, sources, tracking
from everyway.train.composed import composed
from everyway.train.config import ConfigError, TrainConfig
from everyway.train.ema import EMA
from everyway.train.faults import fault_of
from everyway.train.flows import FlowLearner
from everyway.train.folder import Log, TrainingProgress
from everyway.train.learner import Learner, Share
from everyway.train.muon import Muon
from everyway.train.sealed import gathered
from everyway.train.state import StateError, TrainState, metadata_of
from everyway.train.stopping import polite_stop
from everyway.train.systems import SystemLearner, prepared


def train(
    config: TrainConfig,
    progress: Callable[[TrainingProgress], None] | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train, or go on training, what `config` says.

    progress: is told every `log_every` steps.  note: is told, in a line, what else is to be known.
    Returns a summary: step, seconds, losses, model (where it was exported to), stopped (True after
    a signal).  Raises ConfigError when the run folder is in use or holds another configuration, or
    the device cannot be used, and StateError when the training diverges; then the run folder holds
    what it held, or was last saved.
    """
    tracking.check(config.run.tracker)
    process = devices.joined(config.run.device)
    parts = config.accumulate * process.num_processes
    if config.batch % parts:
        raise ConfigError(f"batch {config.batch} cannot be divided among {parts} parts")
    if config.run.shard and process.device.type == "cpu":
        raise ConfigError("shard is for several GPUs; leave it out")
    if not process.is_main_process:
        note = _silent
    else:
        folder.compare(config)
    build = _builder(config, note)
    with folder.locked(config.folder) if process.is_main_process else nullcontext():
        return _trained(build(), config, progress, note)


def _silent(line: str) -> None:
    pass


def _builder(config: TrainConfig, note: Callable[[str], None]) -> Callable[[], Learner]:
    """What makes the learner once the run folder is locked; settings are refused before."""
    if config.system not in SYSTEMS:
        return lambda: config.model.learner(config, note)
    system = prepared(config)
    sources.data_of(system, config)
    source = composed if config.source.compose else sources.cached
    kind = FlowLearner if getattr(config.model, "flows", None) else SystemLearner
    return lambda: kind(system, source(system, config, note), config)


def _trained(
    learner: Learner,
    config: TrainConfig,
    progress: Callable[[TrainingProgress], None] | None,
    note: Callable[[str], None],
) -> dict[str, Any]:
    path = config.folder / folder.STATE
    former = metadata_of(path) if path.exists() else {}
    half = former["half"] if former else devices.half_precision(config.run.precision)
    engine = devices.accelerator(config, half, learner.skips)
    model, optimiser = _placed(learner, engine, config, half)
    state = TrainState(learner, optimiser, EMA(learner, config.optim.ema, config.optim.ema_length))
    metadata = {
        "half": half,
        "config": config.model_dump(),
        "base": learner.base,
        "machine": folder.circumstances(engine.device, engine.num_processes),
    }
    if former:
        state.restore(path)
        if former.get("base", "") != metadata["base"]:
            raise ConfigError(f"{config.model.init} is not what the LoRA in {path} is of any more")
        if changes := folder.changed(former["machine"], metadata["machine"]):
            note(changes)
        if _early(state, config):
            state.cooldown_from = -1  # cooled down before, and now asked to go on
    first = engine.is_main_process
    if first:
        store.write_text(config.folder / "config.json", config.to_json())
    log, begun, halted = Log(config, engine, state.step), state.step, False
    saved, keep = time.monotonic(), config.run.keep
    with polite_stop() as asked, tracking.told(engine, config, state.step):
        for losses in _steps(state, model, engine, config):
            log.add(state, losses, progress)
            late = time.monotonic() - saved > config.run.save_every_s
            halted, late = _told(engine, bool(asked), late)
            if late:
                state.save(path, metadata, first, keep)
                if config.run.publish and learner.partial:
                    _export(state, config, engine, log.means, fresh=True)
                saved = time.monotonic()
            if config.run.sample_every and state.step % config.run.sample_every == 0:
                _show(state, config, engine, log)
            if halted:
                break
        log.write(state)
        if state.step > begun:
            state.save(path, metadata, first, keep)
        if not halted or learner.partial:
            _export(state, config, engine, log.means, fresh=state.step > begun)
        if not halted and state.step > begun and getattr(config.model, "init", ""):
            _compare(state, config, engine, log)
    return {
        "step": state.step,
        "seconds": round(state.seconds, 1),
        "losses": log.means,
        "model": str(_made(config)),
        "stopped": halted,
    }


def _made(config: TrainConfig) -> Path:
    """Where a training leaves what it made."""
    if config.system not in SYSTEMS:
        return config.folder
    return config.folder / (LORA if config.adapter.lora else "model")


def _placed(
    learner: Learner, engine: Accelerator, config: TrainConfig, half: bool
) -> tuple[torch.nn.Module, Any]:
    """The learner as processes call it, and its optimiser, on the device."""
    own = config.optim
    for module in learner.modules():
        if config.run.gradient_checkpointing and hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    if config.run.compile:
        for block in learner.blocks:
            block.compile()
    trained = _groups(learner)
    settings: dict[str, Any] = {
        "lr": own.lr,
        "betas": (own.beta1, own.beta2),
        "weight_decay": own.weight_decay,
        "fused": True,
    }
    learner.to(engine.device)
    if own.optimiser == "muon":
        optimiser: torch.optim.Optimizer = Muon(trained, learner.blocks, half=half, **settings)
    else:
        optimiser = torch.optim.AdamW(trained, **settings)
    return engine.prepare(learner, optimiser)


def _groups(learner: Learner) -> list[dict[str, Any]]:
    """The trained parameters of equal rates, with their `part` of the training's rate."""
    parts: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(learner.rate_of(name), []).append(parameter)
    return [{"params": own, "part": part} for part, own in parts.items()]


def _steps(
    state: TrainState, model: torch.nn.Module, engine: Accelerator, config: TrainConfig
) -> Iterator[dict[str, Tensor]]:
    """One optimiser step an item; yields the losses of its whole batch."""
    model.train()
    while not _finished(state, config):
        began = time.monotonic()
        rate = config.optim.lr * rate_factor(state.step, state.cooldown_from, config)
        for group in state.optimiser.param_groups:
            group["lr"] = rate * group["part"]
        found: list[dict[str, Tensor]] = []
        for share in _shares(state.step, engine, config):
            with engine.accumulate(model):
                loss, losses = model(state.learner.batch(share))
                engine.backward(loss)
                found.append({k: v.detach().expand(share.count) for k, v in losses.items()})
                if engine.sync_gradients:
                    most = config.optim.clip or math.inf
                    norm = engine.clip_grad_norm_(model.parameters(), most)
                    losses = _gathered(found, engine)
                    if not gathered(norm).isfinite():  # before any weight has moved
                        raise _diverged(state, engine, config)
                state.optimiser.step()
                state.optimiser.zero_grad()
        state.learner.learn(state.step, losses)
        state.ema.update(state.learner, state.step)
        state.step += 1
        state.seconds += time.monotonic() - began
        yield losses


def _diverged(state: TrainState, engine: Accelerator, config: TrainConfig) -> StateError:
    """Of the step that was begun, with the layer whose fault it was."""
    batches = map(state.learner.batch, _shares(state.step, engine, config))
    fault = fault_of(state.learner, batches, engine.autocast)
    state.step += 1
    return state.diverged(fault)


def _shares(step: int, engine: Accelerator, config: TrainConfig) -> Iterator[Share]:
    """This process's rows of a step's batch, in its parts."""
    size = config.batch // (config.accumulate * engine.num_processes)
    first = engine.process_index * config.accumulate * size
    for start in range(first, first + config.accumulate * size, size):
        rows, seed = slice(start, start + size), config.seed
        yield Share(seed=seed, step=step, size=config.batch, rows=rows, device=engine.device)


def _gathered(found: list[dict[str, Tensor]], engine: Accelerator) -> dict[str, Tensor]:
    """name -> the losses (batch,) of all processes, in the order of the rows, on the CPU."""
    own = torch.stack([torch.cat([part[name] for part in found]).float() for name in found[0]], 1)
    return dict(zip(found[0], engine.gather(own).cpu().unbind(1)))


def _told(engine: Accelerator, asked: bool, late: bool) -> tuple[bool, bool]:
    """(whether any process was asked to stop, whether the first one wants to save)."""
    flags = torch.tensor([asked, late and engine.is_main_process], device=engine.device)
    stop, save = engine.reduce(flags.float()).tolist()
    return stop > 0, save > 0


def _finished(state: TrainState, config: TrainConfig) -> bool:
    """Counts steps; under a time budget, moves the cool-down to where the budget wants it."""
    if config.budget_s:
        state.seconds = devices.agreed(state.seconds)  # clocks differ
    if state.cooldown_from < 0 and not _early(state, config):
        state.cooldown_from = state.step
    return state.step >= config.steps or 0 < config.budget_s <= state.seconds


def _early(state: TrainState, config: TrainConfig) -> bool:
    """Whether so much of the budget, or else of the steps, is left that no cool-down is due."""
    kept = 1 - config.optim.cooldown
    if config.budget_s:
        return state.seconds <= config.budget_s * kept
    return state.step < config.steps * kept


def rate_factor(step: int, cooldown_from: int, config: TrainConfig) -> float:
    """Warm-up, constant, then linearly down over the cool-down, to a fiftieth.

    Under a time budget the cool-down's length in steps is foretold from the steps before it.
    """
    own = config.optim
    warm = min(1.0, (step + 1) / max(1, own.warmup))
    if cooldown_from < 0 or own.cooldown == 0:
        return warm
    if config.budget_s:
        length = cooldown_from * own.cooldown / (1 - own.cooldown)
    else:
        length = config.steps * own.cooldown
    return warm * max(0.02, 1 - (step - cooldown_from) / max(1.0, length))


def _average(state: TrainState) -> dict[str, Tensor]:
    """The averaged weights, whole; StateError if they diverged."""
    if not state.finite():
        raise state.diverged()
    return {name: gathered(value) for name, value in state.ema.weights.items()}


def _show(state: TrainState, config: TrainConfig, engine: Accelerator, log: Log) -> None:
    """A sheet of samples of the average, OUT/samples/STEP.png, where the learner shows any."""
    weights = _average(state)
    if engine.is_main_process and (sheet := state.learner.show(weights)):
        log.picture(config.folder / "samples" / f"{state.step:07d}.png", sheet, state.step)
    engine.wait_for_everyone()


def _compare(state: TrainState, config: TrainConfig, engine: Accelerator, log: Log) -> None:
    """Samples before and after a training from a model, OUT/before-after.png."""
    if not config.run.before_after or config.run.shard:
        return
    weights = _average(state)
    if engine.is_main_process and (sheet := state.learner.compare(weights)):
        log.picture(config.folder / "before-after.png", sheet, state.step)
    engine.wait_for_everyone()


def _export(
    state: TrainState, config: TrainConfig, engine: Accelerator, means: dict, fresh: bool
) -> None:
    """What was learned, by the first process, where it is not exported yet."""
    weights = _average(state)
    if engine.is_main_process and (fresh or state.learner.exported(config.folder) != state.step):
        run = {
            "data": config.source.data,
            "steps": state.step,
            "batch": config.batch,
            "samples": state.step * config.batch,
            "seconds": round(state.seconds),
            "hardware": hardware(),
            "losses": means,
        }
        state.learner.export(weights, run, config.folder)
    engine.wait_for_everyone()
