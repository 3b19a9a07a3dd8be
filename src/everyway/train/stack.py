"""The whole stack from a folder in one command: codecs that can show and say it, and the system.

PRESETS says how codecs are made for each preset: fitted in seconds, or trained where codecs=trained
asks for it.  `planned` measures the codecs that are at hand, chooses, and finds the price; `run`
does what the price says.  The same command again goes on, since the run folder holds what was
chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from everyway.checkpoints import codec_folder
from everyway.data.folder import Folder
from everyway.system import System
from everyway.systems import SYSTEMS
from everyway.systems.unidiffuser import CODEC_FOLDER
from everyway.train import devices, fitted_folder, folder, price, sources, trained_folder
from everyway.train.config import ConfigError, TrainConfig, resolve
from everyway.train.fitted_folder import FINE, FITTED, PARTS, SAMPLE, Fitted, Room, described
from everyway.train.folder import TrainingProgress
from everyway.train.loop import train
from everyway.train.price import Lines, Price
from everyway.train.suited import Suited, suited
from everyway.train.systems import prepared

ON_FEW: dict[str, Any] = dict(
    lr=5e-3, weight_decay=0.0, warmup_samples=6_400, ema_samples=16_000,
)  # fmt: skip
"""Settings of trainings on codecs of a folder, whose latents are few numbers that say much.  They
replace the preset's own; lengths are counted in samples."""
ON_TASKS: dict[str, Any] = dict(shift=4.0, to_image=0.42, to_text=0.30, joint=0.18, drop=0.0)
"""Further such settings, of the training times of a UniDiffuser."""
BY_STEPS = {"codec-image": 0.25, "encoder": 0.1, "text": 0.15}
"""Trainings of the codecs of a UniDiffuser, each with its share of a budget, in order."""


@dataclass(frozen=True, kw_only=True)
class Making:
    """How the codecs of a folder are made for a preset.

    room: the largest codecs that it can read.  fitted: the codecs that it reads, all of which can
    be fitted.
    trained: the trainings that make them, or some of them, for codecs=trained: in order, each with
    its share of a budget.  Empty where codecs can only be fitted.
    shipped: the model whose codecs are used where the folder that the preset names has none; ""
    for a preset with plain codecs.
    settings: of a training on such codecs, in place of the preset's own.
    """

    room: Room
    fitted: tuple[str, ...] = PARTS
    trained: Mapping[str, float] = field(default_factory=dict)
    shipped: str = ""
    settings: Mapping[str, Any]


PRESETS = {
    "nano": Making(
        room=Room(side=64, grids=(4, 8), channels=192, length=32),
        trained=BY_STEPS,
        settings=ON_FEW | ON_TASKS,
    ),
    "mini": Making(
        room=Room(side=96, grids=(4, 6, 8), channels=192, length=48),
        trained=BY_STEPS,
        shipped="mini",
        settings=ON_FEW | ON_TASKS,
    ),
    "small": Making(
        room=Room(side=128, grids=(8, 16), channels=192, length=77),
        trained=BY_STEPS,
        shipped="mini",
        settings=ON_FEW | ON_TASKS,
    ),
    "mini-vq": Making(
        room=Room(side=96, grids=(4, 8, 16), channels=64, length=48, codes=512),
        fitted=("text", "image_vq"),
        trained={"codec-vq": 0.4},
        shipped="mini-vq",
        settings=ON_FEW,
    ),
    "nano-versatile": Making(
        room=Room(side=64, grids=(4, 8), channels=192, length=32),
        fitted=("image", "text"),
        settings=ON_FEW,
    ),
    "mini-versatile": Making(
        room=Room(side=96, grids=(4, 6, 8), channels=192, length=48),
        fitted=("image", "text"),
        settings=ON_FEW,
    ),
    "mini-ediffi": Making(
        room=Room(side=96, grids=(4, 6, 8), channels=192, length=48),
        settings=ON_FEW,
    ),
}
"""Preset -> how its codecs are made of a folder."""
FIT, TRAIN = "fitted", "trained"
"""Values of the setting `codecs` that name no folder, but say how codecs are made."""
FOLDERS = ("codecs", "tokens")
"""Settings that name a folder of codecs."""
ENDLESS = 1_000_000_000
"""Steps of a training that ends with its budget."""
BYTES = 40
"""Memory for each number of a picture while codecs are fitted, in float32 and float64."""
LOOKED_AT = 64
"""How many pictures and captions codecs are measured on."""
HOPELESS = Suited(psnr_db=18.0, exact=0.1)
"""A training that starts from a model is refused if its codecs do less than this."""
Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which codecs a training will have.

    codecs, stages: as of a `Price`.  folder: the codecs to rehearse with.  about: lines for people.
    seconds: of making them.  bytes: of memory that making them takes beyond the trial's.
    """

    codecs: str = ""
    folder: str = ""
    about: Lines = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    bytes: int = 0


def resolved(
    preset: str, overrides: Mapping[str, Any], out: str | None, budget_s: float | None
) -> TrainConfig:
    """As `config.resolve`, with the settings of PRESETS where codecs may be made.  A budget without
    steps or samples is the only end.

    Raises ConfigError for data that is not there, and for codecs that cannot be made as asked.
    """
    given = dict(overrides)
    if budget_s and not {"steps", "samples"} & given.keys():
        given["steps"] = ENDLESS
    config = resolve(preset, given, out, budget_s)
    if config.system in SYSTEMS:
        sources.check(config.source.data)  # else a run folder would seem to be of other settings
        _refuse_making(config)
    making = _making(config)
    if making is None or _begun(config):
        return config
    return resolve(preset, {**making.settings, **given}, out, budget_s)


def _begun(config: TrainConfig) -> bool:
    """Whether its run folder has a training without a price, as those of former versions."""
    out = config.folder
    return (out / folder.STATE).exists() and not (out / price.FILE).exists()


def is_planned(config: TrainConfig, read: bool) -> bool:
    """Whether a training has a price: that of a system, if it has a budget, may need codecs, or
    somebody is to `read` the price.  One that was begun without a price goes on without."""
    begun = (config.folder / folder.STATE).exists()
    if config.system not in SYSTEMS or (begun and price.held(config) is None):
        return False
    return read or config.budget_s > 0 or _making(config) is not None


def planned(asked: TrainConfig, began: float | None = None) -> Price:
    """The price of this training, that of the run folder or else a new one.

    began: the time from which its budget counts, as of `time.time()`; by default now.
    Raises ConfigError where the codecs of a model to start from cannot serve the data, or where a
    budget leaves no time to learn in.
    """
    if found := price.held(asked):
        torch.set_num_threads(found.threads)
        return found
    began = time.time() if began is None else began
    process = devices.joined(asked.run.device)
    with price.rehearsing(asked.folder, process) as place:
        choice = chosen(asked, place, process.is_main_process)
        process.wait_for_everyone()
        config = tried = asked
        if choice.codecs:
            config = _with_codecs(asked, str(asked.folder / "codecs"))
            tried = _with_codecs(asked, choice.folder)
        folder.compare(config)
        known = {"codecs": choice.codecs, "stages": choice.stages, "about": choice.about}
        known["seconds"] = choice.seconds
        made = price.priced(asked, config, tried, place, began, choice.bytes, **known)
        return devices.agreed(made)


def run(
    plan: Price,
    progress: Callable[[TrainingProgress], None] | None = None,
    note: Note = lambda line: None,
) -> dict[str, Any]:
    """Does what a price says, from where a former run of it was stopped; returns what `train`
    does."""
    config = plan.settings()
    process = devices.joined(config.run.device)
    first = process.is_main_process
    with folder.locked(config.folder) if first else nullcontext():
        if first:
            plan.save()
            if plan.codecs:
                _make(plan, config, note)
        process.wait_for_everyone()
        if stopped := trained_folder.run(config, plan.stages, progress, note):
            return stopped
    return train(config, progress, note)


def chosen(config: TrainConfig, place: Path, writes: bool = True) -> Choice:
    """The codecs that serve the data: those at hand, or new ones.

    place: where new ones are tried; only the process that `writes` writes there.
    Raises ConfigError where the codecs of a model to start from cannot serve the data.
    """
    if config.system not in SYSTEMS or not sources.is_own(config.source.data):
        return Choice()
    making, out = _making(config), place / "codecs"
    if making and _asked(config) == TRAIN:
        return _trained(config, making, place, writes)
    if making and _asked(config) == FIT:
        return _fitted(config, _trial(config, making), _on_data(config), out, writes)
    system = _at_hand(config)
    found = _measured(system, config)
    about = _on_data(config, "text" in system.raws) | _on_codecs(found, _whose(config))
    serves = found.shows and found.says
    if config.model.init and not serves:
        _refuse_hopeless(config, found)
    if making is None:
        mend = {} if serves else {"codecs": [("", _how_to_mend(config))]}
        return Choice(about=about | mend)
    trial = _trial(config, making)
    if not serves or _better(trial, found, system):
        return _fitted(config, trial, about, out, writes)
    if not _needs_shipped(config, making):
        return Choice(about=about)
    if writes:
        copy(system, out)
    return Choice(codecs="shipped", folder=str(out), about=about)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Codecs fitted to some of the data.  seconds: how long that took."""

    made: Mapping[str, Fitted]
    seconds: float

    @property
    def image(self) -> Fitted:
        return self.made["image_vq"] if "image_vq" in self.made else self.made["image"]


def _trial(config: TrainConfig, making: Making) -> Trial:
    began = time.monotonic()
    made = fitted_folder.fit(config.source.data, making.room, SAMPLE, making.fitted)
    return Trial(made=made, seconds=time.monotonic() - began)


def _better(trial: Trial, found: Suited, system: System) -> bool:
    """Whether fitted codecs are better than those of a system, which serve, too: they show more, or
    FINE is enough where those are plain codecs, which have more numbers than pictures need."""
    shown = trial.image.metadata["psnr_db"]
    return shown > found.psnr_db or (not system.codecs and shown >= FINE)


def _fitted(config: TrainConfig, trial: Trial, about: Lines, out: Path, writes: bool) -> Choice:
    """New codecs will be fitted to the folder; those of the trial are rehearsed with."""
    if writes:
        fitted_folder.write(trial.made, out)
    lines = {n: [*about.get(n, []), ("new", line)] for n, line in described(trial.made).items()}
    count = len(Folder(config.source.data, captioned=True))
    tried, fitted = min(SAMPLE, count), min(FITTED, count)
    return Choice(
        codecs=FIT,
        folder=str(out),
        about=about | lines,
        seconds={"codecs": trial.seconds * fitted / tried},
        bytes=(fitted - tried) * 3 * trial.image.settings["side"] ** 2 * BYTES,
    )


def _trained(config: TrainConfig, making: Making, place: Path, writes: bool) -> Choice:
    """New codecs will be trained, each as long as `trained_folder.rehearsed` says."""
    trial = _with_codecs(config, str(place / "codecs"))
    about, began = _on_data(config), time.monotonic()
    if writes and (parts := _only_fitted(making)):
        made = fitted_folder.fit(config.source.data, making.room, SAMPLE, parts)
        fitted_folder.write(made, place / "codecs")
        about |= {name: [("new", line)] for name, line in described(made).items()}
    fitting = time.monotonic() - began
    stages, spent = trained_folder.rehearsed(trial, making.trained, place)
    return Choice(
        codecs=TRAIN,
        folder=trial.model.codecs,
        about=about,
        seconds={"codecs": fitting + spent},
        stages=stages,
    )


def copy(system: System, out: Path) -> None:
    """Writes the codecs of a system as a folder of codecs.  Raises StoreError."""
    own = system.config
    settings = own.get("codec_config") or {"image": own["codec"], "text": own["text"]}
    for name, known in settings.items():
        part = "image_vq" if name in system.tokens else name
        codec_folder.write(out, part, system.codecs[name], known, {})


def _make(plan: Price, config: TrainConfig, note: Note) -> None:
    """Fits or copies the codecs that no training makes, unless all of them are there."""
    making, out = PRESETS[config.model.preset], Path(config.model.codecs)
    parts = _only_fitted(making) if plan.codecs == TRAIN else making.fitted
    if codec_folder.metadata(out).keys() >= {*parts}:
        return
    if plan.codecs == "shipped":
        copy(_shipped(making), out)
        return
    made = fitted_folder.fit(config.source.data, making.room, FITTED, parts)
    fitted_folder.write(made, out)
    for name, line in described(made).items():
        note(f"{name}: {line}")


def _only_fitted(making: Making) -> tuple[str, ...]:
    """The codecs that no training makes."""
    made = {trained_folder.MADE[training] for training in making.trained}
    return tuple(part for part in making.fitted if part not in made)


def _making(config: TrainConfig) -> Making | None:
    """How codecs may be made; None for a preset, data or settings for which they are not."""
    own = config.model
    if config.system not in SYSTEMS or own.init or not sources.is_own(config.source.data):
        return None
    named = {getattr(own, name, "") for name in FOLDERS}
    return PRESETS.get(own.preset) if named <= {"", CODEC_FOLDER, FIT, TRAIN} else None


def _asked(config: TrainConfig) -> str:
    return getattr(config.model, "codecs", "")


def _refuse_making(config: TrainConfig) -> None:
    """ConfigError for codecs that cannot be made as `codecs` asks."""
    wanted = _asked(config)
    if wanted not in (FIT, TRAIN):
        return
    can = [name for name, making in PRESETS.items() if making.trained or wanted == FIT]
    if config.model.preset not in can:
        raise ConfigError(f"codecs={wanted} is for {', '.join(can)}; leave it out")
    if not sources.is_own(config.source.data):
        raise ConfigError(f"codecs={wanted} needs pictures of your own; give --data FOLDER")


def _needs_shipped(config: TrainConfig, making: Making) -> bool:
    """Whether a preset reads codecs of a folder, and none are where it looks for them."""
    where = getattr(config.model, "tokens", config.model.codecs)
    return bool(making.shipped) and not Path(where, f"{making.fitted[-1]}.json").exists()


def _shipped(making: Making) -> System:
    from everyway.generate import load

    return load(making.shipped, device="cpu", dtype="fp32").system


def _at_hand(config: TrainConfig) -> System:
    making = _making(config)
    needed = making is not None and _needs_shipped(config, making)
    return _shipped(making) if needed else prepared(config)


def _measured(system: System, config: TrainConfig) -> Suited:
    """How the codecs of a system serve the data, in pictures as large as new codecs would read."""
    texts, making, side = "text" in system.raws, _making(config), sources.image_size(system)
    if making:
        side = max(side, fitted_folder.picture_side(config.source.data, making.room))
    unpaired = config.source.unpaired > 0
    data = Folder(config.source.data, side, captioned=texts, unpaired=unpaired)
    count = min(LOOKED_AT, len(data))
    samples = [sources.sample_at(data, k, count) for k in range(count)]
    captions = [c for s in samples for c in s.captions[:1]] if texts else []
    return suited(system, samples, captions)


def _on_data(config: TrainConfig, captioned: bool = True) -> Lines:
    """A line on the data."""
    unpaired = config.source.unpaired > 0
    data = Folder(config.source.data, captioned=captioned, unpaired=unpaired)
    said = sum(len(data.captions(k)) for k in range(len(data)))
    line = f"{len(data):,} pictures, their middles, with {said:,} captions"
    looked_at, cut = data.cut(LOOKED_AT)
    if cut:
        line = f"{line}; {cut} of {looked_at} lose more than a quarter to that"
    if data.pictures or data.texts:
        line = f"{line}; alone {len(data.pictures):,} pictures and {len(data.texts):,} captions"
    if left := data.total - len(data) - len(data.pictures):
        line = f"{line}; {left:,} are left out (everyway data check says why)"
    return {"data": [("", line)]}


def _on_codecs(found: Suited, whose: str) -> Lines:
    """Lines on how the codecs of a model serve the data."""
    shown = {} if found.psnr_db is None else {"image": [(f"codec of {whose}", found.seen)]}
    return shown | ({} if found.exact is None else {"text": [(f"codec of {whose}", found.said)]})


def _whose(config: TrainConfig) -> str:
    """The model or preset whose codecs are at hand."""
    making = _making(config)
    if making and _needs_shipped(config, making):
        return making.shipped
    return config.model.init or config.model.preset


def _refuse_hopeless(config: TrainConfig, found: Suited) -> None:
    shown, said = found.psnr_db, found.exact
    blind = shown is not None and shown < HOPELESS.psnr_db
    if blind or (said is not None and said < HOPELESS.exact):
        why = "; ".join([found.seen] * (shown is not None) + [found.said] * (said is not None))
        raise ConfigError(
            f"the codecs of init={config.model.init!r} cannot serve this data ({why}); leave init "
            "out, and codecs are fitted to it"
        )


def _how_to_mend(config: TrainConfig) -> str:
    if config.model.init:
        return "these stay, since the model that it starts from reads them; leave init out for new"
    return "these stay; everyway train mini fits its own to a folder"


def _with_codecs(config: TrainConfig, path: str) -> TrainConfig:
    model = config.model
    own = {name: path for name in FOLDERS if name in type(model).model_fields}
    return config.model_copy(update={"model": model.model_copy(update=own)})
