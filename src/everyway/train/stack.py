"""The whole stack from a folder in one command: codecs that can show and say it, and the system.

`planned` measures what is at hand, chooses, and asks the price; `run` does what the price says.
The same command again goes on: what was chosen stands in the run folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from everyway.checkpoints import codec_folder
from everyway.data.folder import Folder
from everyway.data.listing import is_data
from everyway.system import System
from everyway.systems import SYSTEMS
from everyway.systems.unidiffuser import CODEC_FOLDER, SIZES
from everyway.train import devices, fitted_folder, folder, price, sources
from everyway.train.config import ConfigError, TrainConfig, resolve
from everyway.train.fitted_folder import FITTED, SAMPLE, Room
from everyway.train.folder import TrainingProgress
from everyway.train.loop import train
from everyway.train.price import Lines, Price
from everyway.train.suited import Suited, suited
from everyway.train.systems import prepared

ROOMS = {
    "nano": Room(side=64, grids=(4, 8), channels=192, length=32),
    "mini": Room(side=96, grids=(4, 6, 8), channels=192, length=48),
    "small": Room(side=128, grids=(8, 16), channels=192, length=77),
}
"""What the presets have room for whose codecs are fitted to a folder."""
SHIPPED = "mini"
"""Whose codecs are at hand where a preset names none that are there."""
FOLDER: dict[str, Any] = dict(
    lr=5e-3, weight_decay=0.0, warmup_samples=6_400, ema_samples=16_000, shift=4.0, to_image=0.42,
    to_text=0.30, joint=0.18, drop=0.0,
)  # fmt: skip
"""Of trainings on the codecs of a folder, which are few numbers that say much, above the preset's
own; all counted in samples."""
ENDLESS = 1_000_000_000
"""Steps where a budget is the end."""
BYTES = 40
"""Of memory, for each number of a picture, while codecs are fitted: in float32 and float64."""
LOOKED_AT = 64
"""Pictures, and captions, that codecs are measured on."""
HOPELESS = Suited(psnr_db=18.0, exact=0.1)
"""Less of either, and a training that starts from a model is refused."""
Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """codecs: as of a Price.  folder: of those to rehearse with.  about: lines for people.
    seconds: of making them.  bytes: that it takes beyond those of the trial."""

    codecs: str = ""
    folder: str = ""
    about: Lines = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: int = 0


def resolved(
    preset: str, overrides: Mapping[str, Any], out: str | None, budget_s: float | None
) -> TrainConfig:
    """As `config.resolve`, with FOLDER where codecs may be fitted, and as many steps as a budget
    has time for where neither steps nor samples are set.  ConfigError for data that is not there:
    no codecs are chosen for it, so that a run folder of it would seem to be of other settings."""
    given = dict(overrides)
    if budget_s and not {"steps", "samples"} & given.keys():
        given["steps"] = ENDLESS
    config = resolve(preset, given, out, budget_s)
    if config.system in SYSTEMS:
        sources.check(config.source.data)
    if not _fits(config) or _begun(config):
        return config
    return resolve(preset, {**FOLDER, **given}, out, budget_s)


def _begun(config: TrainConfig) -> bool:
    """Whether its run folder has a training that was not planned, as none were before."""
    out = config.folder
    return (out / folder.STATE).exists() and not (out / price.FILE).exists()


def is_planned(config: TrainConfig, read: bool) -> bool:
    """Whether a training is measured first: of a system, where it has a budget, may need codecs, or
    somebody is to `read` what it takes.  One that was begun without goes on without."""
    begun = (config.folder / folder.STATE).exists()
    if config.system not in SYSTEMS or (begun and price.held(config) is None):
        return False
    return read or config.budget_s > 0 or _fits(config)


def planned(asked: TrainConfig, began: float | None = None) -> Price:
    """What this training will do and take; it is measured unless the run folder has it.

    began: when that began which a budget counts, as of `time.time()`; by default now.
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
        known = {"codecs": choice.codecs, "about": choice.about, "seconds": choice.seconds}
        made = price.priced(asked, config, tried, place, began, choice.bytes, **known)
        return devices.agreed(made)


def run(
    plan: Price,
    progress: Callable[[TrainingProgress], None] | None = None,
    note: Note = lambda line: None,
) -> dict[str, Any]:
    """Does what a price says, from where a former run of it was stopped; answers as `train`."""
    config = plan.settings()
    process = devices.joined(config.run.device)
    if process.is_main_process:
        with folder.locked(config.folder):
            plan.save()
            if plan.codecs:
                _make(plan.codecs, config, note)
    process.wait_for_everyone()
    return train(config, progress, note)


def chosen(config: TrainConfig, place: Path, writes: bool = True) -> Choice:
    """The codecs that serve the data: those at hand, or new ones, of which `place` gets a trial if
    this is the process that `writes`."""
    if config.system not in SYSTEMS or not is_data(config.source.data):
        return Choice()
    system = _at_hand(config)
    pairs, found = _measured(system, config)
    whose = config.model.init or (SHIPPED if _needs_shipped(config) else config.model.preset)
    about: Lines = {"data": [("", pairs)]}
    if found.psnr_db is not None:
        about["image"] = [(f"codec of {whose}", found.seen)]
    if found.exact is not None:
        about["text"] = [(f"codec of {whose}", found.said)]
    serves = found.shows and found.says
    if config.model.init and not serves:
        _refuse_hopeless(config, found)
    if not _fits(config):
        if not serves:
            about["codecs"] = [("", _how_to_mend(config))]
        return Choice(about=about)
    return _trial(config, system, found, about, place / "codecs", writes)


def _trial(
    config: TrainConfig,
    system: System,
    found: Suited,
    about: Lines,
    out: Path,
    writes: bool,
) -> Choice:
    """Codecs fitted to some of the data, or those at hand if they serve and show it as well."""
    began = time.monotonic()
    made = fitted_folder.fit(config.source.data, ROOMS[config.model.preset], SAMPLE)
    spent = time.monotonic() - began
    if found.shows and found.says and found.psnr_db >= made["image"].metadata["psnr_db"]:
        if not _needs_shipped(config):
            return Choice(about=about)
        if writes:
            copy(system, out)
        return Choice(codecs="shipped", folder=str(out), about=about)
    if writes:
        fitted_folder.write(made, out)
    for name, line in fitted_folder.described(made).items():
        about[name] = [*about.get(name, []), ("new", line)]
    count = len(Folder(config.source.data, captioned=True))
    tried, fitted = min(SAMPLE, count), min(FITTED, count)
    numbers = 3 * made["image"].settings["side"] ** 2
    return Choice(
        codecs="fitted",
        folder=str(out),
        about=about,
        seconds={"codecs": spent * fitted / tried},
        bytes=(fitted - tried) * numbers * BYTES,
    )


def copy(system: System, out: Path) -> None:
    """The codecs of a system as a folder of codecs."""
    for name, settings in system.config["codec_config"].items():
        codec_folder.write(out, name, system.codecs[name], settings, {})


def _make(kind: str, config: TrainConfig, note: Note) -> None:
    """The codecs, unless all of them are there."""
    out = Path(config.model.codecs)
    if len(codec_folder.metadata(out)) == 3:
        return
    if kind == "shipped":
        copy(_shipped(), out)
        return
    made = fitted_folder.fit(config.source.data, ROOMS[config.model.preset], FITTED)
    fitted_folder.write(made, out)
    for name, line in fitted_folder.described(made).items():
        note(f"{name}: {line}")


def _fits(config: TrainConfig) -> bool:
    """Whether codecs may be fitted: to a folder, for a preset that has none of the user's own."""
    own = config.model
    named = getattr(own, "codecs", "") not in ("", CODEC_FOLDER)
    small = config.system == "unidiffuser" and own.preset in SIZES
    return small and is_data(config.source.data) and not own.init and not named


def _needs_shipped(config: TrainConfig) -> bool:
    """Whether a preset reads trained codecs, and none are where it looks for them."""
    own = config.model
    return _fits(config) and own.preset != "nano" and not Path(own.codecs, "text.json").exists()


def _shipped() -> System:
    from everyway.generate import load

    return load(SHIPPED, device="cpu", dtype="fp32").system


def _at_hand(config: TrainConfig) -> System:
    return _shipped() if _needs_shipped(config) else prepared(config)


def _measured(system: System, config: TrainConfig) -> tuple[str, Suited]:
    """A line on the data, and how the codecs of a system serve it."""
    texts = "text" in system.raws
    unpaired = config.source.unpaired > 0
    data = Folder(config.source.data, sources.image_size(system), texts, unpaired=unpaired)
    count = min(LOOKED_AT, len(data))
    samples = [sources.sample_at(data, k, count) for k in range(count)]
    captions = [c for s in samples for c in s.captions[:1]] if texts else []
    said = sum(len(data.captions(k)) for k in range(len(data)))
    line = f"{len(data):,} pictures, their middles, with {said:,} captions"
    looked_at, cut = data.cut(LOOKED_AT)
    if cut:
        line = f"{line}; {cut} of {looked_at} lose more than a quarter to that"
    if data.pictures or data.texts:
        line = f"{line}; alone {len(data.pictures):,} pictures and {len(data.texts):,} captions"
    if left := data.total - len(data) - len(data.pictures):
        line = f"{line}; {left:,} are left out (everyway data check says why)"
    return line, suited(system, samples, captions)


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
    model = config.model.model_copy(update={"codecs": path})
    return config.model_copy(update={"model": model})
