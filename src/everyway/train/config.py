"""What a training is: one frozen model of plain values, saved into the run folder.

What is trained, a system or a codec, has settings of its own (`model`), in its own file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field, SerializeAsAny, ValidationError, model_validator

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

from everyway.settings import FORMER as FORMER_SETTINGS
from everyway.settings import ConfigError, FileName, Settings, fault, merged, places
from everyway.systems import SYSTEMS, system_module

__all__ = ["ConfigError", "TrainConfig", "names", "parsed", "resolve"]

CODECS = {
    "codec-image": "everyway.train.codec_image",
    "codec-vq": "everyway.train.codec_vq",
    "encoder": "everyway.train.encoder",
    "text": "everyway.train.text",
    "text-vae": "everyway.train.text_vae",
    "classifier": "everyway.train.classifier",
    "distill": "everyway.train.distill",
    "experts": "everyway.train.experts",
}
"""What is trained besides systems -> its module.  Like a system's, each has

    Training                a Settings class, the `model` of its config
    TRAININGS               name of a preset -> settings other than the defaults
"""
PRESETS = ("nano", "mini", "small", "mini-vq", "ediffi-nano", *CODECS)
"""What is shipped here, for help that imports no PyTorch; `names` asks every system."""
FORMER = {"recogniser": "classifier"}
"""Names of old commands and run folders -> those of now."""
Own = TypeVar("Own", bound=Settings)


class Source(Settings):
    """What is learned from."""

    data: FileName = "shapes"
    """A built-in set, or data of your own: a folder, in which folders are classes, tar shards, or a
    Hugging Face data set, hf:owner/name."""
    cache: int = Field(20_000, ge=1)
    """Samples whose latents are cached; of a larger folder so many, spread evenly."""
    latents: str = ""
    """The folder that they are cached in, which trainings may share; by default the run's own."""
    flip: bool = False
    """Adds the mirror image of every picture; captions must not say left or right."""
    unpaired: float = Field(0.0, ge=0, lt=1)
    """Share of a batch's samples that are pictures without a caption or captions without a picture;
    what they lack is at t = 1, or the null, and nothing is learned of it.  0 leaves them out."""
    compose: bool = False
    """Pictures of `cache` built-in scenes are put together and encoded on the training's device as
    they are needed, not cached: for GPUs (`train.composed`)."""


class Optimisation(Settings):
    """How weights move."""

    optimiser: Literal["adamw", "muon"] = "muon"
    """muon is for the matrices inside the blocks, with AdamW for the rest; or adamw for all."""
    lr: float = Field(1e-3, gt=0)
    """The learning rate, after the warm-up."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's average of the gradient."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """AdamW's average of its square."""
    weight_decay: float = Field(0.03, ge=0)
    """Of the matrices, a step, times the rate."""
    warmup: int = Field(100, ge=0)
    """Steps in which the rate rises."""
    warmup_samples: int = Field(0, ge=0)
    """Samples in which the rate rises, whatever the batch; 0 leaves it to `warmup`."""
    cooldown: float = Field(0.2, ge=0, lt=1)
    """The last part of the run, in which the rate falls to a fiftieth."""
    clip: float = Field(1.0, ge=0)
    """The largest norm of the gradient, 0 for any."""
    ema: float = Field(0.9995, ge=0, le=1)
    """Decay of the average of the weights that is exported."""
    ema_samples: int = Field(0, ge=0)
    """Samples in which that average forgets half, whatever the batch; 0 leaves it to `ema`."""
    ema_length: float = Field(0.0, ge=0, le=0.28)
    """Of an average by a power function, in place of `ema`: its width as a part of the training's
    length, about 0.05 to 0.15; 0 is none."""


class Adapter(Settings):
    """What is trained beside a network whose weights stay as they are."""

    lora: int = Field(0, ge=0, le=4096)
    """Rank of a LoRA of the model in `init`, whose weights then stay as they are; 0 is none."""
    lora_alpha: float = Field(0.0, ge=0)
    """What the LoRA adds is times lora_alpha / lora; 0 is as much as the rank."""
    lora_layers: str = ""
    """Words with commas between them, as attn,fc1: linear layers named so; by default all."""

    @model_validator(mode="after")
    def _all_read(self) -> Adapter:
        if not self.lora:
            self.unread(("lora_alpha", "lora_layers"), "a training without lora")
        return self

    @property
    def alpha(self) -> float:
        return self.lora_alpha or float(self.lora)

    @property
    def words(self) -> list[str]:
        return [word.strip() for word in self.lora_layers.split(",") if word.strip()]


class Run(Settings):
    """Where a training runs, and what it leaves."""

    out: FileName = "runs/nano"
    """The run folder."""
    device: str = "auto"
    """auto takes a GPU if there is one, and each process its own."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto measures bf16 and fp32 once and takes the faster."""
    gradient_checkpointing: bool = False
    """Of the blocks, which saves memory and costs time."""
    compile: bool = False
    """The network goes through torch.compile."""
    shard: bool = False
    """Weights, gradients and optimiser lie in shards over the processes' GPUs (FSDP2)."""
    save_every_s: float = Field(120.0, ge=0)
    """Seconds between savings."""
    keep: int = Field(1, ge=1)
    """States that are kept: the last one, and those that were saved before it."""
    publish: bool = False
    """Each saving exports the average, too."""
    sample_every: int = Field(0, ge=0)
    """Steps between sheets of samples, 0 for none."""
    log_every: int = Field(20, ge=1)
    """Steps between lines of the log."""
    before_after: bool = True
    """A training from `init` ends with a sheet of samples before and after it."""
    tracker: str = ""
    """What is told of losses and samples beside TensorBoard, as wandb or mlflow."""
    weights: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of what is exported."""
    licence: str = ""
    """Of what is exported, for its card."""

    @model_validator(mode="after")
    def _all_read(self) -> Run:
        if self.shard:
            self.unread(("sample_every",), "a training in shards")
        return self


class TrainConfig(Settings, Generic[Own]):
    """Settings of one training run."""

    system: str
    """A name in SYSTEMS or CODECS."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the weights, the samples and all noise."""
    steps: int = Field(1000, ge=1)
    """Of the optimiser."""
    samples: int = Field(0, ge=0)
    """Samples that are seen in all, whatever the batch; 0 leaves it to `steps`."""
    budget_s: float = Field(0.0, ge=0)
    """Stop, cooled down, within so many seconds; 0 is no limit."""
    batch: int = Field(64, ge=1)
    """Samples a step, of all processes together."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches of a batch, one after the other."""
    model: SerializeAsAny[Own]
    source: Source = Source()
    optim: Optimisation = Optimisation()
    adapter: Adapter = Adapter()
    run: Run = Run()

    @model_validator(mode="after")
    def _has_a_base(self) -> TrainConfig:
        if self.adapter.lora and (self.system not in SYSTEMS or not self.model.init):
            raise ConfigError("a LoRA is of a model; give that as init, or leave lora out")
        if self.adapter.lora and self.run.shard:
            raise ConfigError("shard is for trainings of all weights; leave it out beside lora")
        return self

    @model_validator(mode="after")
    def _by_samples(self) -> TrainConfig:
        """What is counted in samples says how many steps that is."""
        own, batch = self.optim, self.batch
        changes: dict[str, float] = {}
        if own.warmup_samples:
            changes["warmup"] = math.ceil(own.warmup_samples / batch)
        if own.ema_samples:
            changes["ema"] = 0.5 ** (batch / own.ema_samples)
        if changes:
            object.__setattr__(self, "optim", own.model_copy(update=changes))
        if self.samples:
            object.__setattr__(self, "steps", math.ceil(self.samples / batch))
        return self

    @property
    def folder(self) -> Path:
        return Path(self.run.out)

    def to_json(self) -> str:
        return json.dumps(self.model_dump(), indent=2)  # names in any bytes are escaped


def module_of(system: str) -> ModuleType:
    """The module of what is trained; ConfigError lists what can be."""
    system = FORMER.get(system, system)
    if system in SYSTEMS:
        return system_module(system)
    if system not in CODECS:
        raise ConfigError(f"system is {system!r}; choose {', '.join((*SYSTEMS, *CODECS))}")
    return import_module(CODECS[system])


def trainings(system: str) -> dict[str, dict[str, Any]]:
    """The presets of what is trained here; none of a system that is not."""
    return getattr(module_of(system), "TRAININGS", {})


def preset(name: str) -> dict[str, Any] | None:
    """The settings of a preset other than the defaults, its `system` among them.

    No module is imported that need not be: those of codecs are named as their preset is.
    """
    name = FORMER.get(name, name)
    for system in (name,) if name in CODECS else SYSTEMS:
        if name in (found := trainings(system)):
            return {"system": system, **found[name]}
    return None


def names() -> list[str]:
    """Of every preset."""
    return [name for system in SYSTEMS for name in trainings(system)] + [*CODECS]


def _kind(system: Any) -> type[TrainConfig]:
    if not isinstance(system, str):
        raise ConfigError(f"system is {system!r}; it should be a name")
    return TrainConfig[module_of(system).Training]  # type: ignore[misc]


def parsed(*tables: Mapping[str, Any]) -> TrainConfig:
    """The config of plain data, later tables above earlier ones; ConfigError in one line."""
    system = next((t["system"] for t in reversed(tables) if "system" in t), "unidiffuser")
    kind = _kind(system)
    system = FORMER.get(system, system)
    try:
        counted = (_counted_once(kind, table) for table in tables)
        return kind(**{"model": {}, **merged(kind, *counted), "system": system})
    except ValidationError as error:
        raise ConfigError(fault(error)) from None


COUNTED = {"steps": "samples", "warmup": "warmup_samples", "ema": "ema_samples"}
"""Settings by the step -> by the sample, which are above them."""


def _counted_once(kind: type[TrainConfig], table: Mapping[str, Any]) -> dict[str, Any]:
    """A table that says one of a pair by the step alone takes back what former ones say by the
    sample."""
    known, own = places(kind), {path for path, _ in _leaves(merged(kind, table))}
    pairs = ((known[step], known[sample]) for step, sample in COUNTED.items())
    back = {".".join(by): 0 for step, by in pairs if step in own and by not in own}
    return {**back, **table}


def _leaves(data: Mapping[str, Any], start: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """(path, value) of every value in nested data."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*start, name))
        else:
            yield (*start, name), value


def remembered(table: Mapping[str, Any]) -> TrainConfig:
    """How a model's last training went on, of its metadata: what it began with, where it ran, and
    settings that there are no more are left out."""
    known, kept = places(_kind(table["system"])), ("preset", "times", "drop")
    flat = {k: v for k, v in {**table, **table.get("model", {})}.items() if k != "model"}
    own = {FORMER_SETTINGS.get(name, name): value for name, value in flat.items()}
    paths = {name: known[name] for name in own if name in known and known[name][0] != "run"}
    read = [n for n, path in paths.items() if path[0] != "model" or path[1] in kept]
    return parsed({name: own[name] for name in read})


def resolve(
    preset_or_toml: str,
    overrides: Mapping[str, Any] | None = None,
    out: str | None = None,
    budget_s: float | None = None,
) -> TrainConfig:
    """A preset's name or a TOML file, with `key=value` overrides on top.

    A key is the path of a setting, such as `optim.lr`, or its last word alone.
    Raises ConfigError (one line) for unknown presets or keys, values of the wrong type or out of
    range, and settings that the training would not read.
    """
    given = {"out": out, "budget_s": budget_s}
    given = {**(overrides or {}), **{k: v for k, v in given.items() if v is not None}}
    base = preset(preset_or_toml) or _table(preset_or_toml)
    if given.get("system", base.get("system")) != base.get("system"):
        known = places(_kind(given["system"]))  # the preset is of another system
        base = {key: value for key, value in base.items() if key in known}
    return parsed(base, given)


def _table(name: str) -> dict[str, Any]:
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"{name!r} is neither a preset ({', '.join(names())}) nor a TOML file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def differences(former: TrainConfig, config: TrainConfig, but: set[str]) -> list[str]:
    """The settings that differ between two configs, `but` for some."""
    one, other = former.model_dump(), config.model_dump()

    def at(data: Any, path: tuple[str, ...]) -> Any:
        for word in path:
            data = data.get(word) if isinstance(data, dict) else None
        return data

    known = places(type(config)) | places(type(former))
    parts = {path[:-1] for path in known.values()}
    leaves = {name: path for name, path in known.items() if path not in parts}
    return [n for n, p in leaves.items() if n not in but and at(one, p) != at(other, p)]
