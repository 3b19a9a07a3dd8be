"""From a TrainConfig to what the loop needs: a system with frozen codecs, and cached latents."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from everyway.contracts import flat
from everyway.data import latents as cache
from everyway.data.emoji import LESSONS, EmojiScenes
from everyway.data.folder import Folder
from everyway.data.latents import Latents
from everyway.data.lattice import LATTICES, Lattice
from everyway.data.listing import are_shards
from everyway.data.sample import to_tensor
from everyway.errors import UsageError
from everyway.layouts import convert
from everyway.system import System
from everyway.systems import builder, system_module, unidiffuser
from everyway.train.config import ConfigError, TrainConfig
from everyway.train.parallel import World

CAPTIONS = 4
"""Captions of a sample that are cached, again from the first where it has fewer."""


def prepare(config: TrainConfig, world: World | None = None) -> tuple[System, Latents]:
    """The system to train, its network seeded by config.seed or taken from config.init."""
    torch.manual_seed(config.seed)  # initial weights only; every later draw has its own generator
    if config.init:
        system = started_from(config.init, patch=config.patch, depth=config.depth)
    else:
        system = build_system(config)
    if world and world.size > 1:
        if world.first:
            cached(system, config)
        world.agreed(0.0)  # the others wait for the file
    return system, cached(system, config)


def started_from(model: str, **other: int) -> System:
    """A model's own system, codecs and all, its network ready to be trained on.

    other: patch and depth that the network shall have; 0 is its own.  What does not fit then starts
    afresh.  Raises ConfigError for what it cannot have.
    """
    from everyway.generate import load

    system = load(model, device="cpu").system
    if other := {name: value for name, value in other.items() if value}:
        former = system
        if not other.keys() <= former.config.keys():
            raise ConfigError(f"{model} keeps its own {' and '.join(other)}; leave them out")
        try:
            system = builder(former.name)({**former.config, **other})
        except UsageError as error:
            raise ConfigError(str(error)) from None
        for name, codec in former.codecs.items():
            system.codecs[name].load_state_dict(codec.state_dict())
        system.network.take(former.network)
    system.network.requires_grad_(True)
    return system


def origins(config: TrainConfig) -> dict[str, Any]:
    """What a run starts from, for its model's card: history and codecs, and the source of weights
    that others published."""
    if config.init:
        from everyway.library import facts_of

        facts = {"history": [], "codecs": {}, **facts_of(config.init)}
        return {k: v for k, v in facts.items() if k in ("history", "codecs", "source")}
    files = sorted(Path(config.codecs).glob("*.facts.json")) if config.codecs else []
    codecs = {p.name.split(".")[0]: json.loads(p.read_text("utf-8")) for p in files}
    source = {} if files or not config.codecs else convert.open_model(config.codecs).facts
    published = {k: v for k, v in source.get("source", {}).items() if k != "network"}
    return {"history": [], "codecs": codecs} | ({"source": published} if published else {})


def build_system(config: TrainConfig) -> System:
    """The preset's system; trained codecs are read from config.codecs."""
    if config.system == "uvit":
        from everyway.train import uvit

        return uvit.system_of(config)
    if config.preset == "nano":
        return unidiffuser.build(unidiffuser.nano(vocabulary(config)))
    if config.preset == "mini":
        from everyway.train.codecs import config_of, restore

        folder = Path(config.codecs)
        system = unidiffuser.build(unidiffuser.mini(config_of(folder)))
        restore(folder, {n: m.codec for n, m in system.modalities.items()})
        return system
    if config.preset == "mini-vq":
        return mini_vq(config)
    raise ConfigError(f"preset {config.preset!r} is unknown; choose nano, mini or mini-vq")


def mini_vq(config: TrainConfig) -> System:
    """The codec of config.tokens, told by the text codec of config.codecs, or of `mini`, whose
    weights it then shares."""
    from everyway.checkpoints import store
    from everyway.generate import load
    from everyway.library import SHIPPED
    from everyway.systems import vq_diffusion
    from everyway.train import vq
    from everyway.train.codecs import config_of, restore

    picture, shared = vq.load(Path(config.tokens)), {}
    if config.codecs:
        text = config_of(Path(config.codecs))["text"]
    else:
        mini = load("mini", device="cpu").system
        text = mini.config["codec_config"]["text"]
        shared = {"text": f"mini@{store.document(SHIPPED / 'mini')['sha256']['text']}"}
    tokens = vq.config_of(Path(config.tokens))
    system = vq_diffusion.build(vq_diffusion.mini(tokens, text, shared))
    system.codecs["image"].load_state_dict(picture.state_dict())
    if config.codecs:
        restore(Path(config.codecs), {"text": system.codecs["text"]})
    else:
        system.codecs["text"].load_state_dict(mini.codecs["text"].state_dict())
    return system


def vocabulary(config: TrainConfig) -> tuple[str, ...]:
    """Every word of the first 2,000 samples' captions, sorted."""
    import re

    words: set[str] = set()
    data = open_data(config.data, config.seed)
    for index in range(2000):
        said = data.captions(index) if isinstance(data, Folder) else data.sample(index).captions
        words |= {word for caption in said for word in re.findall(r"\w+", caption.lower())}
    return tuple(sorted(words))


def data_of(system: System, config: TrainConfig):
    """The data that a system is trained on, a folder's in its size."""
    reads = system.reads if "text" in system.raws else None
    return open_data(config.data, config.seed, image_size(system), "text" in system.raws, reads)


def image_size(system: System) -> int:
    """Side in pixels of the pictures that it reads."""
    return system_module(system.name).image_size(system.config)


def open_data(
    name: str,
    seed: int,
    size: int = 64,
    captioned: bool = True,
    reads: Callable[[str], object] | None = None,
):
    """A built-in endless set by name, in its own size, or a folder of pictures (or shards of them),
    fitted to `size`.

    captioned, reads: which pictures and captions of a folder are left out (`Folder`).
    """
    if name == "shapes":
        from everyway.data.shapes import Shapes

        return Shapes(seed=seed, languages=("en",))
    if name in LATTICES:
        return Lattice(seed=seed, whole=LATTICES[name])
    if name in LESSONS:
        return EmojiScenes(seed=seed, variants=2, **LESSONS[name])
    if os.path.isdir(name) or are_shards(name):
        return Folder(name, size, captioned, reads)
    known = ", ".join(["shapes", *LATTICES, *LESSONS])
    raise ConfigError(f"data {name!r} is unknown; choose {known}, or give a folder")


def cached(system: System, config: TrainConfig) -> Latents:
    """config.cache samples through the codecs, kept in the run folder for the next session."""
    data = data_of(system, config)
    key = _fingerprint(system, config, data)
    path = Path(config.out) / f"latents-{key}.safetensors"
    if path.exists():
        return cache.load(path)
    if config.flip and "text" in system.raws and not isinstance(data, Folder):
        raise ConfigError(
            f"flip mirrors pictures, and captions of {config.data} say left and right"
        )
    count = min(config.cache, len(data)) if isinstance(data, Folder) else config.cache
    made = cache.encode_all(
        lambda part: encode(system, part),
        _samples(data, count, bool(config.flip)),
        count * (1 + config.flip),
        {"data": config.data, "seed": str(config.seed), "codecs": key},
    )
    made.save(path)
    if isinstance(data, Folder) and (data.faults or data.broken or count < data.total):
        logging.getLogger(__name__).warning(data.usage(count))
    return made


def encode(system: System, samples: list) -> dict[str, torch.Tensor]:
    """modality -> (B, V, ...): one variant of a picture, one of each caption.

    Raises ConfigError for a picture without a class where the system is told one.
    """
    images = to_tensor([s.image for s in samples])
    out = {k: v[:, None] for k, v in system.encode({"image": images}).items()}
    if "label" in system.raws:
        told = flat(system.contexts({"label": _labels(samples)}))
        out |= {k: v[:, None] for k, v in told.items()}
    if "text" not in system.raws:
        return out
    said = [[s.captions[v % len(s.captions)] for s in samples] for v in range(CAPTIONS)]
    texts = [_words(system, captions) for captions in said]
    return out | {k: torch.stack([t[k] for t in texts], 1) for k in texts[0]}


def _labels(samples: list) -> list[int]:
    for sample in samples:
        if sample.label is None:
            raise ConfigError(f"{sample.key} has no class; put pictures into a folder a class")
    return [sample.label for sample in samples]


def _words(system: System, captions: list[str]) -> dict[str, torch.Tensor]:
    """The text as states, and as what the conditions are told."""
    return system.encode({"text": captions}) | flat(system.contexts({"text": captions}))


def _samples(data, count: int, flip: bool) -> Iterator:
    """The first `count` of endless data; of a folder `count` pictures spread evenly over it.

    flip: each is followed by its mirror image.
    """
    step = len(data) / count if isinstance(data, Folder) else 1
    for index in range(count):
        sample = data.sample(int(index * step))
        yield sample
        if flip:
            yield replace(sample, image=sample.image[:, ::-1])


def _fingerprint(system: System, config: TrainConfig, data) -> str:
    """What the cache depends on: the samples, of a folder its files, and what the codecs make of
    the first ones.

    A decoder that was trained on behind its latent does not make a cache stale.
    """
    flipped = " flipped" if config.flip else ""
    digest = hashlib.sha256(os.fsencode(f"{config.data} {config.seed} {config.cache}{flipped}"))
    if isinstance(data, Folder):
        digest.update(data.stamp().encode())
    first = list(_samples(data, 4, bool(config.flip)))
    for name, states in sorted(encode(system, first).items()):
        digest.update(name.encode())
        kind = torch.float16 if states.is_floating_point() else torch.int16
        digest.update(states.to(kind).numpy().tobytes())
    return digest.hexdigest()[:12]
