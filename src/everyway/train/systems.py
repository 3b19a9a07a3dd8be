"""A system as a learner: its network, taught by the one objective on cached latents."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from everyway import library, lora, objective
from everyway.checkpoints import codec_folder, store
from everyway.checkpoints.card import write_card
from everyway.contracts import Bundle, Process, Times
from everyway.layouts import convert
from everyway.process.times import importance, remember
from everyway.process.training_times import Importance
from everyway.request import LORA
from everyway.settings import Settings
from everyway.sheet import Section, sheet
from everyway.system import System
from everyway.train import sources
from everyway.train.config import ConfigError, TrainConfig
from everyway.train.latents import Latents
from everyway.train.learner import Learner, RowNoise, Share
from everyway.train.state import diverged

LACKING = "lacking."
HISTORY, COUNTS = "importance.history", "importance.counts"


def prepared(config: TrainConfig) -> System:
    """The system to train, its network seeded by config.seed or taken from config.model.init.

    Raises ConfigError where it does not go with the settings.
    """
    torch.manual_seed(config.seed)  # initial weights only; every later draw has its own generator
    own = config.model
    if not own.init:
        source = config.source
        system = own.system(sources.Data(source.data, config.seed, source.unpaired > 0))
    else:
        from everyway.generate import load

        former = load(own.init, device="cpu", dtype="fp32").system
        if former.name != config.system:
            raise ConfigError(f"init={own.init!r} is a {former.name}; set system={former.name}")
        system = own.started(former)
    system.network.requires_grad_(True)
    if rank := config.adapter.lora:
        layers = lora.linear_layers(system.network, config.adapter.words)
        lora.check_rank(system.network, rank, layers)
        lora.add(system.network, rank, config.adapter.alpha, layers, config.seed)
    if isinstance(own.times, Importance):
        _token_steps(system)
    if own.times.min_snr and system.tokens:
        raise ConfigError("min_snr is for continuous states, and tokens have no SNR; leave it out")
    return system


def _token_steps(system: System) -> int:
    """Steps of the token process whose times are drawn by importance."""
    steps = {process.steps for process in system.tokens.values()}
    if len(system.tokens) < len(system.modalities) or len(steps) != 1:
        raise ConfigError("times=importance is for systems of tokens alone; choose uniform")
    return steps.pop()


def lacking_of(encoded: Bundle) -> Bundle:
    """Raw data -> (B,) bool, the samples of a batch that have none of it, where any may."""
    return {k.removeprefix(LACKING): v for k, v in encoded.items() if k.startswith(LACKING)}


class SystemLearner(Learner):
    """The network of `system`, on `latents`; of one with a LoRA that alone is its state.

    base: the hash of the model that a LoRA is of.
    """

    partial = True

    def __init__(self, system: System, latents: Latents, config: TrainConfig) -> None:
        super().__init__()
        self.system, self.latents, self.config = system, latents, config
        self.network = system.network
        self.index: Tensor | None = None
        self.lone = sum(map(len, latents.lacking.values()))
        self.base = library.hash_of(config.model.init) if config.adapter.lora else ""
        self.skips = not config.model.drop or len(system.networks) > 1  # learned nulls, experts
        if isinstance(config.model.times, Importance):
            count = _token_steps(system)
            self.memory = {HISTORY: torch.zeros(count), COUNTS: torch.zeros(count)}

    def batch(self, share: Share) -> tuple[Bundle, Bundle, Times, Tensor | None, RowNoise]:
        source, noise = share.generator("samples"), share.noise()
        times, weights = self._times(share, source, noise)
        encoded = self.encoded(share, source, times["text"] > 0 if "text" in times else None)
        if lacking := lacking_of(encoded):
            times = self._freed(times, torch.stack([*lacking.values()]).any(0), noise)
        if hasattr(self.config.model, "prepared"):
            encoded = self.config.model.prepared(self.system, encoded, noise)
        x0 = {k: v for k, v in encoded.items() if k in self.system.modalities}
        return x0, encoded, times, weights, noise

    def encoded(self, share: Share, source: torch.Generator, made: Tensor | None) -> Bundle:
        """Samples of the cache, drawn from `source`, on the device.

        made: (B,) bool, whose text is made: those state everything.
        """
        rows = self._rows(share.size, source)[share.rows]
        variants = torch.rand(share.size, generator=source)[share.rows]
        if made is not None:
            whole = variants * self.latents.complete
            variants = torch.where(made.to(variants.device), whole, variants)
        found = self.latents.rows(rows, variants)
        if self.lone:
            found |= {f"{LACKING}{k}": none for k, none in self.latents.lack(rows).items()}
        return {k: v.to(share.device) for k, v in found.items()}

    def _rows(self, size: int, source: torch.Generator) -> Tensor:
        """(size,) numbers of samples, of which a share `unpaired` lack something, if any do."""
        rows = torch.randint(len(self.latents) - self.lone, (size,), generator=source)
        if not self.lone:
            return rows
        others = len(self.latents) - 1 - torch.randint(self.lone, (size,), generator=source)
        alone = torch.rand(size, generator=source) < self.config.source.unpaired
        return torch.where(alone, others, rows)

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        x0, encoded, times, weights, noise = batch
        drop, samples = self.config.model.drop, len(next(iter(x0.values())))
        drop = dict(drop) if isinstance(drop, Settings) else drop
        lacking = lacking_of(encoded)
        contexts = objective.contexts_of(self.system, encoded, noise, drop, samples, lacking)
        min_snr = self.config.model.times.min_snr
        losses = objective.losses(self.system, x0, times, noise, contexts, lacking, min_snr)
        return objective.total(self.system, losses, weights), losses

    @property
    def clocks(self) -> dict[str, Process]:
        """Clock -> the process of a modality on it."""
        return {m.clock: m.process for m in self.system.modalities.values()}

    def _times(
        self, share: Share, source: torch.Generator, noise: RowNoise
    ) -> tuple[Times, Tensor | None]:
        """(clock -> times on the device, weight of each sample or None)."""
        distribution = self.config.model.times
        if not isinstance(distribution, Importance):
            return distribution.draw(noise, self.clocks, share.count), None
        odds = importance(self.memory[HISTORY], self.memory[COUNTS])
        self.index = torch.multinomial(odds, share.size, replacement=True, generator=source)
        index = self.index[share.rows]
        t = ((index.double() + 1) / len(odds)).to(share.device)
        return dict.fromkeys(self.clocks, t), (1 / (len(odds) * odds[index])).to(share.device)

    def _freed(self, times: Times, alone: Tensor, noise: RowNoise) -> Times:
        """Times of the samples `alone` (B,) bool that no task fixes, since they have but a side."""
        distribution = self.config.model.times
        if isinstance(distribution, Importance):  # of one clock, which no task fixes
            return times
        free = distribution.free.draw(noise, self.clocks, len(alone))
        return {clock: torch.where(alone, free[clock], t) for clock, t in times.items()}

    def learn(self, step: int, losses: Mapping[str, Tensor]) -> None:
        if self.index is None:
            return
        found = torch.stack([*losses.values()]).sum(0)
        if not found.isfinite().all():
            raise diverged(step + 1)  # no time could be drawn by such a history
        remember(self.memory[HISTORY], self.memory[COUNTS], self.index, found)

    def state_dict(self, *args: Any, **named: Any) -> dict[str, Tensor]:
        whole = super().state_dict(*args, **named)
        return {k: v for k, v in whole.items() if lora.is_matrix(k)} if self.base else whole

    def load_state_dict(self, state: Mapping[str, Tensor], *args: Any, **named: Any) -> Any:
        base = super().state_dict() if self.base else {}
        return super().load_state_dict({**base, **state}, *args, **named)

    def show(self, weights: Mapping[str, Tensor]) -> Image.Image:
        return sheet(self._samples(weights), across=1)

    def compare(self, weights: Mapping[str, Tensor]) -> Image.Image:
        own = prepared(self.config).network.state_dict()
        start = {name: own[name.removeprefix("network.")] for name in weights}
        pairs = zip(self._samples(start, "before"), self._samples(weights, "after"))
        return sheet([section for pair in pairs for section in pair], across=2)

    def _samples(self, weights: Mapping[str, Tensor], when: str = "") -> list[Section]:
        from everyway.train.samples import samples

        data = sources.data_of(self.system, self.config)
        metadata = {"training": {"data": self.config.source.data}}
        return samples(self.system, _of_network(weights), data, metadata, when)

    def export(self, weights: Mapping[str, Tensor], run: Mapping[str, Any], out: Path) -> None:
        """The averaged network and the codecs as a model folder, OUT/model, or a LoRA's file."""
        if self.base:
            return self._export_lora(weights, run, out / LORA)
        config, folder = self.config, out / "model"
        tensors = self.system.weights(_of_network(weights))
        begun, data = origins(config, self.system), config.source.data
        licence = {"licence": config.run.licence} if config.run.licence else {}
        metadata = {
            **begun,
            **licence,
            "name": config.model.preset,
            **({"about": f"{data}, of the system's own"} if data in sources.of_systems() else {}),
            "image_size": sources.image_size(self.system),
            "losses": run["losses"],
            "history": [*begun["history"], {k: v for k, v in run.items() if k != "losses"}],
            "training": {**config.model_dump(), "data": data},
        }
        dtype = convert.DTYPES[config.run.weights]
        document = {"system": self.system.name, "config": dict(self.system.config)}
        store.save(folder, document, tensors, metadata, dtype, self.system.deltas)
        write_card(folder)

    def _export_lora(
        self, weights: Mapping[str, Tensor], run: Mapping[str, Any], path: Path
    ) -> None:
        config = self.config
        dtype = convert.DTYPES[config.run.weights]
        facts = {
            "base": library.name_of(config.model.init),
            "base_hash": self.base,
            "system": self.system.name,
            "rank": config.adapter.lora,
            "alpha": config.adapter.alpha,
            **run,
            **({"licence": config.run.licence} if config.run.licence else {}),
            "training": config.model_dump(),
        }
        with store.writing(path):
            lora.write(path, {k: v.to(dtype) for k, v in _of_network(weights).items()}, facts)

    def exported(self, out: Path) -> int:
        return lora.steps_of(out / LORA) if self.base else steps_of(out / "model")


def steps_of(folder: Path) -> int:
    """Of the training that a model folder is of; -1 where there is none, or a file is missing."""
    try:
        held = store.document(folder)
        files = [store.component(folder, name, d) for name, d in held["sha256"].items()]
        return held["facts"]["history"][-1]["steps"] if all(f.is_file() for f in files) else -1
    except (store.StoreError, LookupError, TypeError):
        return -1


def origins(config: TrainConfig, system: System) -> dict[str, Any]:
    """What a run starts from, for its model's card: its parent, history and codecs, and the source
    of weights that others published."""
    own = config.model
    if own.init:
        from everyway.library import metadata_of

        metadata = {"history": [], "codecs": {}, **metadata_of(own.init)}
        kept = {
            k: v for k, v in metadata.items() if k in ("history", "codecs", "source", "licence")
        }
        path = Path(own.init)
        return kept | {"init": path.parent.name if path.name == "model" else path.name}
    codecs = own.codecs if system.codecs else ""  # plain ones come from no folder
    made = codec_folder.metadata(Path(codecs)) if codecs else {}
    source = {}
    if codecs and not made and os.path.exists(codecs):
        source = convert.open_model(codecs).metadata.get("source", {})
    published = {k: v for k, v in source.items() if k != "network"}
    return {"history": [], "codecs": made} | ({"source": published} if published else {})


def _of_network(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("network."): v for k, v in weights.items() if k.startswith("network.")}
