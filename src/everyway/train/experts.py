"""`everyway train experts`, and `everyway experts split`: a model becomes experts of intervals of
noise, trained as a binary tree.

Every stage is a training of its own in a folder of its own, on the one loop: it starts as its
parent, and its times keep to its interval.  The same command again goes on where it was stopped.

Source: Balaji et al., "eDiff-I", 2022, arXiv 2211.01324, section 4.1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import model_validator

from everyway import library
from everyway.checkpoints import store
from everyway.checkpoints.card import write_card
from everyway.layouts import convert
from everyway.process import intervals
from everyway.process.intervals import REST, Interval, Plan
from everyway.process.training_times import Law
from everyway.settings import ConfigError, FileName, Settings
from everyway.systems import ensemble
from everyway.train import devices, folder, measure
from everyway.train.config import TrainConfig, parsed, preset, remembered, resolve
from everyway.train.folder import TrainingProgress
from everyway.train.stack import ENDLESS

MEASURED = "measured.json"
"""In the run folder: what a measured plan was chosen by."""
Progress = Callable[[TrainingProgress], None] | None
Note = Callable[[str], None]


class Training(Settings):
    """base: what is split: a model, by name or folder, or else a preset or TOML file, which is then
    trained first.  plan: of `process.intervals.named`, or measured-N: N experts where the trained
    base gains the most.  clock: which chooses the expert, of several; by default the first.
    deltas: experts are stored as differences from one of them, rounded to a byte a weight.

    Settings of the training that are given, such as steps, are those of every stage; all others are
    as the base was trained with.
    """

    base: FileName = "mini"
    plan: str = "edges-1"
    clock: str = ""
    deltas: bool = True

    @model_validator(mode="after")
    def _known(self) -> Training:
        if self.measured < 0:
            intervals.named(self.plan)
        elif not 2 <= self.measured <= 2**measure.LEVEL:
            most = 2**measure.LEVEL
            raise ConfigError(f"plan is {self.plan!r}; give measured-2 to measured-{most}")
        return self

    @property
    def measured(self) -> int:
        """How many experts a measured plan has; -1 of any other."""
        found = re.fullmatch(r"measured-(\d+)", self.plan)
        return int(found[1]) if found else -1

    def run(self, config: TrainConfig, progress: Progress, note: Note) -> dict[str, Any]:
        """Trains every stage, and puts the model together; a summary as that of `train.loop`."""
        main = devices.joined(config.run.device).is_main_process
        with folder.locked(config.folder) if main else nullcontext():
            return _run(config, progress, note, main)


TRAININGS: dict[str, dict[str, Any]] = {"experts": dict(samples=64_000, out="runs/experts")}


@dataclass(frozen=True, kw_only=True)
class Root:
    """What is split.  model: its folder.  loaded: it.  config: of its training."""

    model: str
    loaded: library.Loaded
    config: TrainConfig

    @property
    def times(self) -> Law:
        """Raises ConfigError for a base whose times are not drawn along its noise."""
        own = self.config.model.times
        if not isinstance(own, Law):
            raise ConfigError(f"{self.model} draws times by {own.distribution}; split another base")
        return own


def _run(config: TrainConfig, progress: Progress, note: Note, main: bool) -> dict[str, Any]:
    from everyway.train import loop

    own, model = config.model, config.model.base
    if first := _first(config):
        note(f"root: {own.base}")
        summary = loop.train(first, progress, note)
        if summary["stopped"]:
            return summary
        model = summary["model"]
        config = config.model_copy(update={"budget_s": config.budget_s / 2})
    root = opened(model, config)
    plan = _plan(root, config, note)
    stages, models = plan.stages, {"": root.model}
    for number, cell in enumerate(stages, 1):
        of = f"{number} of {len(stages)}: quantiles {cell.low:g} to {cell.high:g}"
        trained = stage(root, config, cell, models[cell.parent], len(stages))
        note(f"{cell.name}, {of}, from {cell.parent or 'the root'}, {_length(trained)}")
        models[cell.name] = str(trained.folder / "model")
        if not _finished(trained) and loop.train(trained, progress, note)["stopped"]:
            return {"model": models[cell.name], "stopped": True}
    out = config.folder / "model"
    if main:
        write(root, config, plan, models, out)
    return {"experts": len(plan.cells), "model": str(out), "stopped": False}


def _length(config: TrainConfig) -> str:
    """Of a stage, in words."""
    if config.budget_s and config.steps >= ENDLESS:
        return f"{config.budget_s:,.0f} s"
    said = f"{config.steps * config.batch:,} samples: {config.steps:,} steps of {config.batch}"
    return f"{said}, in {config.budget_s:,.0f} s at most" if config.budget_s else said


def _finished(config: TrainConfig) -> bool:
    """Whether a training has exported its last step, so that nothing of it need be opened."""
    try:
        metadata = store.document(config.folder / "model")["facts"]
        last = metadata["history"][-1]["steps"]
        return last == config.steps and metadata["training"] == config.model_dump() | {
            "data": config.source.data
        }
    except (store.StoreError, LookupError):
        return False


def _first(config: TrainConfig) -> TrainConfig | None:
    """The training of a root that is none yet; None where the base is a model."""
    name = config.model.base
    is_model = convert.shipped_folder(name) or Path(name).is_dir()
    if is_model or not (preset(name) or name.endswith(".toml")):
        return None
    given = _given(config)
    own = {key: given[key] for key in ("seed", "source") if key in given}
    own |= {"budget_s": config.budget_s / 2} if config.budget_s else {}
    run = {**config.run.model_dump(), "out": str(config.folder / "root")}
    table = resolve(name).model_dump() | {"run": run}
    return parsed(table, {"latents": str(config.folder)}, own)


def _given(config: TrainConfig) -> dict[str, Any]:
    """The settings that a user gave, of those that a stage reads."""
    given = config.model_dump(exclude_unset=True, exclude={"system", "model", "run", "budget_s"})
    return {key: value for key, value in given.items() if value != {}}


def opened(model: str, config: TrainConfig) -> Root:
    """Raises ModelError where there is none, ConfigError for one that cannot be split."""
    model = str(library.folder_of(model))
    loaded = library.load(model, device="cpu", dtype="fp32", memory="full")
    if loaded.system.name == ensemble.NAME:
        raise ConfigError(f"{model} is made of experts already; give the model that they began as")
    former = remembered(loaded.metadata.get("training") or {"system": loaded.system.name})
    return Root(model=model, loaded=loaded, config=parsed(former.model_dump(), _given(config)))


def stage(root: Root, config: TrainConfig, cell: Interval, init: str, count: int) -> TrainConfig:
    """The training of one expert.  init: its parent's model.  count: of the stages that there
    are, which share the budget."""
    own = root.config.model
    clock = ensemble.restricted(root.loaded.system, config.model.clock)
    within = {"low": cell.low, "high": cell.high, "clock": clock}
    model = {"preset": own.preset, "drop": own.drop, "init": init}
    table = root.config.model_dump() | {
        "model": {**model, "times": {**root.times.model_dump(), **within}},
        "run": {
            **config.run.model_dump(),
            "out": str(config.folder / cell.name),
            "before_after": False,
        },
        "budget_s": config.budget_s / count,
    }
    latents = {} if config.source.latents else {"latents": str(config.folder)}
    return parsed(table, latents)


def _plan(root: Root, config: TrainConfig, note: Note) -> Plan:
    """By name; a measured one as it was when the run began."""
    count = config.model.measured
    if count < 0:
        return intervals.named(config.model.plan)
    path = config.folder / MEASURED
    if not path.exists():
        rows = measured(root, config, note=note)
        store.write_text(path, json.dumps([asdict(row) for row in rows], indent=1))
    rows = [measure.Row(**row) for row in json.loads(path.read_text("utf-8"))]
    return intervals.grown({row.node: row.gain for row in rows if row.gain is not None}, count)


def measured(
    root: Root,
    config: TrainConfig,
    level: int = measure.LEVEL,
    batches: int = 32,
    note: Note = print,
) -> list[measure.Row]:
    """The loss of a root in every interval down to `level`, and what parting each would gain."""
    whole = Interval(name="root", low=0.0, high=1.0)
    return measure.by_interval(stage(root, config, whole, root.model, 1), level, batches, note)


def write(
    root: Root, config: TrainConfig, plan: Plan, models: Mapping[str, str], out: Path
) -> None:
    """The experts in one model folder, read from their stages' tensor by tensor."""
    opened = {name: convert.open_model(model) for name, model in models.items()}
    names = [cell.name for cell in plan.cells]
    base = (REST if REST in names else names[0]) if config.model.deltas else ""
    system = root.loaded.system
    experts = ensemble.experts_of(system, plan, root.times, config.model.clock, base)
    places = system.network_places
    components = {k: v for k, v in opened[""].components.items() if k not in places}
    for name in names:
        made = opened.get(name, opened[""]).components
        own = {place + k: v for part, place in places.items() for k, v in made[part].items()}
        components[f"network.{name}"] = own
    document = {"system": ensemble.NAME, "config": {**system.config, "experts": asdict(experts)}}
    metadata = {
        **{k: v for k, v in root.loaded.metadata.items() if k not in ("scores", "losses")},
        **summary(plan, {name: model.metadata for name, model in opened.items()}),
        "name": config.folder.name,
        "init": root.loaded.name,
    }
    store.save_stored(out, document, components, metadata, None, experts.deltas)
    write_card(out)


def summary(plan: Plan, trained: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What an ensemble says of its experts and of their training.

    trained: name -> the metadata of its stage, "" of the root.
    """
    losses = {name: metadata.get("losses", {}) for name, metadata in trained.items()}
    rows = [{**asdict(c), "losses": losses.get(c.name, losses[""])} for c in plan.cells]
    runs = [{**own["history"][-1], "expert": name} for name, own in trained.items() if name]
    return {"experts": rows, "history": [*trained[""].get("history", []), *runs]}
