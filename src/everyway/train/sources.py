"""What a training learns from: data by name, as samples, as pictures, and as cached latents."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everyway.contracts import flat
from everyway.data.emoji import CURRICULUM, EmojiScenes
from everyway.data.folder import Folder
from everyway.data.lattice import LATTICES, Lattice
from everyway.data.listing import is_data
from everyway.data.sample import Sample, to_tensor
from everyway.data.styles import Styled, WithStyle
from everyway.layouts import convert
from everyway.media import medium
from everyway.system import System
from everyway.systems import SYSTEMS, system_module
from everyway.train import data_changes
from everyway.train import latents as cache
from everyway.train.config import ConfigError, TrainConfig
from everyway.train.devices import PartialState, agreed
from everyway.train.latents import Latents

CAPTIONS = 4
"""Captions of a sample that are cached, again from the first where it has fewer."""
WORDS_OF = 2000
"""Samples whose captions a vocabulary of whole words is collected from."""
TEST_SEED = 700_001
"""Of the samples that codecs are measured on, used for nothing else."""
KEPT = 20_000
"""Pictures of a folder that stay in memory while a codec trains on it."""
BUILT_IN = ("shapes", *LATTICES, "lattice-styled", "lattice-with-style", *CURRICULUM)
Note = Callable[[str], None]


@dataclass(frozen=True)
class Data:
    """What a fresh system asks of its data (`systems.TrainingData`)."""

    name: str
    seed: int
    unpaired: bool = False

    @cached_property
    def words(self) -> tuple[str, ...]:
        data = open_data(self.name, self.seed, unpaired=self.unpaired)
        said = getattr(data, "captions", lambda index: data.sample(index).captions)
        captions = [caption for index in range(WORDS_OF) for caption in said(index)]
        captions += [c for pair in getattr(data, "texts", [])[:WORDS_OF] for c in pair.captions]
        return tuple(sorted({word for c in captions for word in re.findall(r"\w+", c.lower())}))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        found = getattr(open_data(self.name, self.seed, captioned=False), "classes", ())
        if not found:
            raise ConfigError(f"data {self.name!r} has no classes; give a folder of a folder each")
        return found

    def opened(self, source: str) -> convert.Opened:
        return convert.open_model(source)


def open_data(
    name: str,
    seed: int,
    size: int = 64,
    captioned: bool = True,
    reads: Callable[[str], object] | None = None,
    unpaired: bool = False,
):
    """A built-in endless set or one of a system's own by name, in its own size, or a folder of
    pictures (or shards or a table of them), fitted to `size`.

    captioned, reads, unpaired: which pictures and captions of a folder are left out (`Folder`).
    """
    if name == "shapes":
        from everyway.data.shapes import Shapes

        return Shapes(seed=seed, languages=("en",))
    if name in LATTICES:
        return Lattice(seed=seed, **LATTICES[name])
    if name == "lattice-styled":
        return Styled(scenes=Lattice(seed=seed))
    if name == "lattice-with-style":
        return WithStyle(scenes=Lattice(seed=seed))
    if name in CURRICULUM:
        return EmojiScenes(seed=seed, variants=2, **CURRICULUM[name])
    if name in (own := of_systems()):
        return own[name](seed)
    check(name)
    return Folder(name, size, captioned, reads, unpaired)


def check(name: str) -> None:
    """ConfigError where there is no such data."""
    if is_built_in(name) or is_data(name):
        return
    known = ", ".join((*BUILT_IN, *of_systems()))
    raise ConfigError(f"data {name!r} is unknown; choose {known}, or give a folder")


def is_built_in(name: str) -> bool:
    """Whether it is the name of a set that is made here, whatever folder has that name, too."""
    return name in BUILT_IN or name in of_systems()


def refuse_two_meanings(name: str) -> None:
    """ConfigError where both a set that is made here and a folder have the name that was given."""
    if is_built_in(name) and is_data(name):
        raise ConfigError(
            f"data {name!r} is a built-in set, and a folder here has that name; give ./{name} for "
            "the folder, or rename it for the set"
        )


def is_own(name: str) -> bool:
    """Whether it is data of one's own, as `open_data` opens it."""
    return not is_built_in(name) and is_data(name)


def of_systems() -> dict[str, Callable[[int], Any]]:
    """Name -> what makes a data set of a seed, of those that systems bring."""
    own = (getattr(system_module(system), "DATA", {}) for system in SYSTEMS)
    return {name: make for table in own for name, make in table.items()}


def data_of(system: System, config: TrainConfig):
    """The data that a system is trained on, a folder's in its size and with its classes."""
    texts = "text" in system.raws
    reads = system.reads if texts else None
    own = config.source
    size, unpaired = image_size(system), own.unpaired > 0
    data = open_data(own.data, config.seed, size, texts, reads, unpaired)
    if unpaired and not isinstance(data, Folder):
        raise ConfigError(f"every picture of {own.data} has its captions; leave unpaired out")
    label = system.conditions.get("label")
    if isinstance(data, Folder) and label and label.codec.names:
        data.take_classes(label.codec.names)
    return data


def image_size(system: System) -> int:
    """Side in pixels of the pictures that it reads."""
    return system_module(system.name).image_size(system.config)


# -- samples in order, for codecs ---------------------------------------------------------------

Samples = Callable[[range], list[Sample]]
"""Numbers -> samples, the same for the same number, without end."""


def streams(
    config: TrainConfig,
    size: int = 64,
    captioned: bool = False,
    reads: Callable[[str], object] | None = None,
) -> tuple[Samples, Samples]:
    """(samples to learn from, samples to be measured on), fitted to `size` pixels.

    captioned, reads: as of `open_data`.
    Of a folder every tenth picture is for measuring, and the others come in a new order each turn.
    """
    name = config.source.data
    if is_built_in(name):
        learn, test = (open_data(name, seed) for seed in (config.seed, TEST_SEED))
        return (lambda at: [learn.sample(i) for i in at]), (lambda at: [test.sample(i) for i in at])
    data = open_data(name, config.seed, size, captioned, reads)
    read = lru_cache(maxsize=KEPT)(data.sample)
    numbers = np.arange(len(data))
    held_out = numbers % 10 == 9
    test_numbers = numbers[held_out] if held_out.any() else numbers
    return _turns(read, numbers[~held_out], config.seed), _turns(read, test_numbers, config.seed)


def _turns(read: Callable[[int], Sample], numbers: np.ndarray, seed: int) -> Samples:
    @lru_cache(maxsize=2)
    def order(turn: int) -> np.ndarray:
        return np.random.default_rng((seed, turn)).permutation(numbers)

    return lambda at: [read(int(order(i // len(numbers))[i % len(numbers)])) for i in at]


def pictures(samples: list[Sample]) -> Tensor:
    """(B, 3, H, W) in [-1, 1]."""
    return to_tensor([s.image for s in samples])


# -- latents, for systems -----------------------------------------------------------------------


def cached(system: System, config: TrainConfig, note: Note = lambda line: None) -> Latents:
    """config.source.cache samples through the codecs, kept in the run folder or where it says.

    Encoded on the training's device, by all processes in turn; told about by `note`.
    """
    state, source = PartialState(), config.source
    data = data_of(system, config)
    if source.flip and "text" in system.raws and not isinstance(data, Folder):
        raise ConfigError(
            f"flip mirrors pictures, and captions of {source.data} say left and right"
        )
    rows = chosen(system, config, data)
    if isinstance(data, Folder) and state.is_main_process:
        data_changes.tell(config.folder, data, note, _counted(system, data))
    if getattr(data, "by_class", False) and "text" in system.raws:
        note("no picture has a caption: the names of the classes are taken for them")
    key = agreed(_fingerprint(system, config, rows) if state.is_main_process else "")
    where = Path(source.latents) if source.latents else config.folder
    folder = where / f"latents-{key}"
    for codec in system.codecs.values():
        codec.to(state.device)
    try:
        made = cache.encode(
            folder,
            rows.sample,
            lambda samples: encode(system, samples),
            len(rows),
            rank=state.process_index,
            processes=state.num_processes,
            progress=lambda done, count: note(f"encoded {done:,} of {count:,} samples"),
        )
        return replace(made, complete=getattr(data, "complete", 1.0), lacking=rows.lacking)
    finally:
        for codec in system.codecs.values():
            codec.to("cpu")
        if isinstance(data, Folder) and (data.faults or data.broken or rows.pairs < data.total):
            note(data.usage(rows.pairs))


def _counted(system: System, data: Folder) -> str:
    """Changes where a network for this data is another: by its config, and what labels mean."""
    classes = data.classes if "label" in system.raws else ()
    own = json.dumps([system.config, classes], sort_keys=True, default=repr)
    return hashlib.sha256(own.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The samples of a cache by number: pairs, then pictures without a caption, then captions
    without a picture.

    pairs, pictures, texts: how many of each.  flip: each pair is followed by its mirror image.
    """

    data: Any
    pairs: int
    pictures: int = 0
    texts: int = 0
    flip: bool = False

    def __len__(self) -> int:
        return self.paired + self.pictures + self.texts

    @property
    def paired(self) -> int:
        return self.pairs * (1 + self.flip)

    @property
    def lacking(self) -> dict[str, range]:
        """Raw data -> the samples that have none of it, and another one's in its place."""
        middle = self.paired + self.pictures
        found = {"text": range(self.paired, middle), "image": range(middle, len(self))}
        return {name: rows for name, rows in found.items() if rows}

    def sample(self, row: int) -> Sample:
        if row < self.paired:
            return sample_at(self.data, row, self.pairs, self.flip)
        row -= self.paired
        if row < self.pictures:
            return self.data.picture(row * len(self.data.pictures) // self.pictures)
        row -= self.pictures
        return self.data.text(row * len(self.data.texts) // self.texts)


def chosen(system: System, config: TrainConfig, data) -> Chosen:
    """At most `cache` samples of each kind, of a folder spread evenly.

    Raises ConfigError where a system cannot learn from what is unpaired.
    """
    source, parts = config.source, {}
    pairs = min(source.cache, len(data)) if isinstance(data, Folder) else source.cache
    if source.unpaired:
        states = {m.source for m in system.modalities.values()}
        read = [c for c in system.conditions.values() if c.source in ("image", "text")]
        bound = any(not c.nulls for c in read) or getattr(config.model, "flows", None)
        if bound or "text" not in system.raws or config.system not in SYSTEMS:
            raise ConfigError(
                f"{config.system} learns nothing from a picture or a caption alone; leave unpaired "
                "out"
            )
        parts = {"pictures": min(source.cache, len(data.pictures))}
        if "text" in states:
            parts["texts"] = min(source.cache, len(data.texts))
    return Chosen(data=data, pairs=pairs, flip=source.flip, **parts)


def sample_at(data, row: int, count: int, flip: bool = False) -> Sample:
    """Row `row` of a cache: of endless data its samples in order, of a folder `count` pictures
    spread evenly over it.  flip: each is followed by its mirror image.
    """
    row, mirrored = divmod(row, 2) if flip else (row, 0)
    step = len(data) / count if isinstance(data, Folder) else 1
    sample = data.sample(int(row * step))
    return replace(sample, image=sample.image[:, ::-1]) if mirrored else sample


def encode(system: System, samples: list[Sample]) -> dict[str, Tensor]:
    """modality -> (B, V, ...): one variant of what a sample has once, one of each caption; and
    what the conditions read, as `contracts.flat` has it.

    Raises ConfigError for what the system reads and the samples do not have.
    """
    once = _encoded(system, _raw(system, samples)) | _of_some(system, samples)
    out = {k: v[:, None] for k, v in once.items()}
    if "text" not in system.raws:
        return out
    said = [[s.captions[v % len(s.captions)] for s in samples] for v in range(CAPTIONS)]
    texts = [_encoded(system, {"text": captions}) for captions in said]
    return out | {k: torch.stack([t[k] for t in texts], 1) for k in texts[0]}


def _labels(samples: list[Sample]) -> list[int]:
    for sample in samples:
        if sample.label is None:
            raise ConfigError(f"{sample.key} has no class; put pictures into a folder a class")
    return [sample.label for sample in samples]


def _raw(system: System, samples: list[Sample]) -> dict[str, Any]:
    """What all samples have once, by name.  A condition that they do not have is its null."""
    raw: dict[str, Any] = {"image": pictures(samples)} if "image" in system.raws else {}
    if "label" in system.raws:
        raw["label"] = _labels(samples)
    for name in sorted(system.raws & samples[0].raw.keys()):
        if all(sample.raw[name] is not None for sample in samples):
            raw[name] = _read(system, name, samples)
    if missing := {m.source for m in system.modalities.values()} - {*raw, "text"}:
        raise ConfigError(
            f"the data has no {', '.join(sorted(missing))}, which {system.name} is made of; choose "
            "other data"
        )
    return raw


def _read(system: System, name: str, samples: list[Sample]) -> Any:
    """A batch of the raw data of this name."""
    kind = medium(name, system.media)
    values = [kind.read(sample.raw[name], name) for sample in samples]
    return kind.tensor(values, image_size(system))


def _of_some(system: System, samples: list[Sample]) -> dict[str, Tensor]:
    """What conditions read that some samples have and others, with None, do not: those have its
    null."""
    out: dict[str, Tensor] = {}
    for name in sorted(system.raws & samples[0].raw.keys()):
        own = [k for k, sample in enumerate(samples) if sample.raw[name] is not None]
        if len(own) == len(samples):
            continue
        names, nulls = system.contexts_of(name), system.null_contexts(len(samples))
        out |= {k: v.clone() for k, v in flat({n: nulls[n] for n in names}).items()}
        if own:
            read = _read(system, name, [samples[k] for k in own])
            for key, value in flat(system.contexts({name: read})).items():
                out[key][own] = value
    return out


def _encoded(system: System, raw: dict[str, Any]) -> dict[str, Tensor]:
    """As states, and as what the conditions read."""
    return system.encode(raw) | flat(system.contexts(raw))


def _fingerprint(system: System, config: TrainConfig, rows: Chosen) -> str:
    """What the cache depends on: the samples, of a folder its files, and what the codecs make of
    the first ones on a CPU.

    A decoder that was trained on behind its latent does not make a cache stale.
    """
    source = config.source
    identity = f"{source.data} {config.seed} {source.cache} {source.flip} {cache.SHARD} {CAPTIONS}"
    digest = hashlib.sha256(os.fsencode(identity))
    if isinstance(rows.data, Folder):
        digest.update(rows.data.stamp().encode())
    first = [rows.sample(row) for row in range(min(4, rows.pairs))]
    for name, states in sorted(encode(system, first).items()):
        digest.update(name.encode())
        kind = torch.float16 if states.is_floating_point() else torch.int32
        digest.update(states.to(kind).numpy().tobytes())
    return digest.hexdigest()[:12]
