"""Versatile Diffusion's network as published: the released names of 2023 and 2022, and diffusers'
two networks, each with its own data and context layers.

Source: Xu et al., "Versatile Diffusion: Text, Images and Variations All in One Diffusion Model",
2022, arXiv 2211.08332.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from everyway.checkpoints.tensor_files import E, Entries, LayoutError
from everyway.layouts.file_layout import FileLayout, Settings, Shapes, Whole, shapes_of
from everyway.layouts.keymap import Table, exactly, inside, without
from everyway.nets.multiflow import (
    DATA,
    Layer,
    Maps,
    MultiFlow,
    MultiFlowConfig,
    Vectors,
    layers,
)
from everyway.systems import versatile

Sizes = tuple[int, int, int]
"""Levels, residual blocks of each, and levels with context layers."""

_RESIDUAL: Table = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("skip", "skip_connection"),
)
_DIFFUSERS_RESIDUAL: Table = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("time", "time_emb_proj"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("skip", "conv_shortcut"),
)
_ATTENTION: Table = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj", "to_out.0"))
_BLOCK: Table = (
    *inside("attn", "attn1", _ATTENTION),
    *inside("cross", "attn2", _ATTENTION),
    ("norm_attn", "norm1"),
    ("norm_cross", "norm2"),
    ("norm_mlp", "norm3"),
    ("mlp.fc1", "ff.net.0.proj"),
    ("mlp.fc2", "ff.net.2"),
)
_TRANSFORMER: Table = (
    ("norm", "norm"),
    ("proj_in", "proj_in"),
    ("proj_out", "proj_out"),
    *inside("layers.0", "transformer_blocks.0", _BLOCK),
)


# -- ways to name layers ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Naming:
    """How a file names the layers of one kind, in which "{kind}" stands for it.

    kind: a pattern of names that have one, and which.
    sizes: (kind, names) -> sizes of the network.  places: the beginnings of names, of all data and
    context layers in the order in which they run.  residual: rows of a residual block.
    down, up, head: what follows the place of such a layer; of vectors nothing follows a sampler's.
    time: (ours, theirs) of the time layers.
    """

    kind: str
    sizes: Callable[[str, Collection[str]], Sizes]
    places: Callable[[Sequence[Layer]], Iterator[str]]
    residual: Table
    down: str
    up: str
    head: tuple[str, str]
    time: Table

    def rows(self, kind: str, sizes: Sizes, flat: bool) -> Table:
        """(ours, theirs) of one kind's layers.  flat: whether its data layers are of vectors."""
        out: list[tuple[str, str]] = []
        numbers = {"data": count(), "context": count()}
        order = _order(sizes)
        for layer, place in zip(order, self.places(order), strict=True):
            part = "context" if layer.kind == "context" else "data"
            ours, theirs = f"{kind}_{part}.{next(numbers[part])}", place.format(kind=kind)
            match layer.kind:
                case "residual":
                    out += inside(ours, theirs, self.residual)
                case "context":
                    out += inside(ours, theirs, _TRANSFORMER)
                case "head":
                    out += [(f"{ours}.{n}", theirs + last) for n, last in zip("02", self.head)]
                case "down" | "up" if not flat:
                    out.append((ours, theirs + getattr(self, layer.kind)))
                case _:
                    out.append((ours, theirs))
        return tuple(out)


def _order(sizes: Sizes) -> tuple[Layer, ...]:
    """The layers that have weights, in the order in which they run."""
    levels, depth, attending = sizes
    config = MultiFlowConfig(
        data=(), contexts={}, dim=1, heads=1,
        multipliers=(1,) * levels, depth=depth, attending=attending,
    )  # fmt: skip
    return tuple(layer for layer in layers(config) if layer.kind in (*DATA, "context"))


def _numbered(names: Collection[str], template: str) -> int:
    """How many numbers stand for {i} in names that begin like this."""
    pattern = re.compile(re.escape(template).replace(r"\{i\}", r"(\d+)") + r"\.")
    return len({m[1] for name in names if (m := pattern.match(name))})


def _sized(levels: int, depth: int, attended: int) -> Sizes:
    """attended: context layers on the way in.  LayoutError for what no network has."""
    if levels < 1 or depth < 1 or attended % depth or attended > levels * depth:
        raise LayoutError("the file's layers are not those of a multi-flow network; get it anew")
    return levels, depth, attended // depth


def _in_order(data: str, residual: str, context: str) -> Callable[[str, Collection[str]], Sizes]:
    """Sizes where each set of layers is counted from 0: templates of {kind} and {i}."""

    def sizes(kind: str, names: Collection[str]) -> Sizes:
        place = data.replace("{kind}", kind)
        total = _numbered(names, place)
        first = f"{residual.replace('{kind}', kind)}.weight"
        blocks = [first.replace("{i}", str(n)) in names for n in range(total)]
        run = next((n for n in range(1, total) if not blocks[n]), 1) - 1
        depth = (run - 3) // 2 if run + 2 == total else run  # of one level none comes between
        attended = _numbered(names, context.replace("{kind}", kind))
        levels = (total - 2) // (2 * depth + 3) if depth > 0 else 0
        return _sized(levels, depth, depth * ((attended - 1) // (2 * depth + 1)))

    return sizes


def _released_places(order: Sequence[Layer]) -> Iterator[str]:
    numbers = {"data": count(), "context": count()}
    for layer in order:
        part = "context" if layer.kind == "context" else "data"
        yield f"diffuser.{{kind}}.{part}_blocks.{next(numbers[part])}.0"


def _first_sizes(kind: str, names: Collection[str]) -> Sizes:
    """Of the names of 2022."""
    block = f"{_FIRST.format(kind=kind)}input_blocks.{{i}}"
    total = _numbered(names, block)
    blocks = [f"{block}.0.in_layers.0.weight".format(i=n) in names for n in range(total)]
    depth = next((n for n in range(1, total) if not blocks[n]), total) - 1
    attended = _numbered(names, f"{block}.1")
    return _sized(total // (depth + 1), depth, attended)


_FIRST = "diffusion_model.unet_{kind}."


def _first_places(order: Sequence[Layer]) -> Iterator[str]:
    """Counted along each way; what follows a residual block is numbered within its entry."""
    numbers = {"in": -1, "middle": 0, "out": -1}
    inside_ = 0
    for layer in order:
        if layer.way == "middle":
            yield f"{_FIRST}middle_block.{numbers['middle']}"
            numbers["middle"] += 1
        elif layer.kind == "head":
            yield f"{_FIRST}out"
        else:
            follows = layer.kind in ("context", "up")
            inside_ = inside_ + 1 if follows else 0
            numbers[layer.way] += not follows
            yield f"{_FIRST}{layer.way}put_blocks.{numbers[layer.way]}.{inside_}"


def _diffusers_sizes(kind: str, names: Collection[str]) -> Sizes:
    levels, depth = (_numbered(names, t) for t in ("down_blocks.{i}", "down_blocks.0.resnets.{i}"))
    attended = (_numbered(names, f"down_blocks.{n}.attentions.{{i}}") for n in range(levels))
    return _sized(levels, depth, sum(attended))


def _diffusers_places(order: Sequence[Layer]) -> Iterator[str]:
    names = {"residual": "resnets", "context": "attentions", "down": "downsamplers"}
    names |= {"up": "upsamplers"}
    last = max(layer.level for layer in order)
    numbers: dict[str, count] = {}
    for layer in order:
        if layer.kind in ("stem", "head"):
            yield "conv_in" if layer.kind == "stem" else "conv_"
            continue
        block = {
            "in": f"down_blocks.{layer.level}",
            "middle": "mid_block",
            "out": f"up_blocks.{last - layer.level}",
        }[layer.way]
        place = f"{block}.{names[layer.kind]}"
        yield f"{place}.{next(numbers.setdefault(place, count()))}"


OURS = _in_order("{kind}_data.{i}", "{kind}_data.{i}.norm1", "{kind}_context.{i}")
_DATA = "diffuser.{kind}.data_blocks.{i}"
RELEASED = Naming(
    kind=r"diffuser\.(\w+)\.data_blocks\.",
    sizes=_in_order(_DATA, f"{_DATA}.0.in_layers.0", "diffuser.{kind}.context_blocks.{i}"),
    places=_released_places,
    residual=_RESIDUAL,
    down=".op",
    up=".conv",
    head=(".0", ".2"),
    time=tuple((f"time.{n}", f"diffuser.image.time_embed.{n}") for n in "02"),
)
FIRST = Naming(
    kind=r"diffusion_model\.unet_(\w+?)\.",
    sizes=_first_sizes,
    places=_first_places,
    residual=_RESIDUAL,
    down=".op",
    up=".conv",
    head=(".0", ".2"),
    time=tuple((f"time.{n}", f"diffusion_model.time_embed.{n}") for n in "02"),
)
DIFFUSERS = Naming(
    kind="",
    sizes=_diffusers_sizes,
    places=_diffusers_places,
    residual=_DIFFUSERS_RESIDUAL,
    down=".conv",
    up=".conv",
    head=("norm_out", "out"),
    time=(("time.0", "time_embedding.linear_1"), ("time.2", "time_embedding.linear_2")),
)


def from_file(entries: Mapping[str, E], naming: Naming, kinds: Sequence[str] = ()) -> dict[str, E]:
    """A file's names -> ours.  kinds: of its layers, where no name tells.  LayoutError for names
    that are unknown."""
    table = list(naming.time)
    for kind in kinds or kinds_of(entries, naming.kind):
        sizes = naming.sizes(kind, entries)
        table += naming.rows(kind, sizes, flat=False) + naming.rows(kind, sizes, flat=True)
    return exactly(entries, [(theirs, ours) for ours, theirs in table])


def to_file(entries: Mapping[str, E], naming: Naming) -> dict[str, E]:
    """The inverse of `from_file`, of a network's layers of any kinds."""
    table = list(naming.time)
    for kind in kinds_of(entries):
        flat = len(entries[f"{kind}_data.0.weight"].shape) == 2
        table += naming.rows(kind, OURS(kind, entries), flat)
    return exactly(entries, table)


def kinds_of(names: Collection[str], pattern: str = r"(\w+)_data\.") -> list[str]:
    """Of layers that names are of, in their order."""
    found = (re.match(pattern, name) for name in names)
    return list(dict.fromkeys(m[1] for m in found if m))


# -- the layouts of the network ---------------------------------------------------------------


def inferred(shapes: Shapes, given: Settings) -> dict[str, Any]:
    """The network's config by our names and shapes of its layers.

    given: heads (diffusers: attention_head_dim, which is their number there), 8 as published where
    it is not told; drawn_size, the side of the image states.  LayoutError for kinds of different
    sizes.
    """
    kinds = kinds_of(shapes)
    dim = shapes["time.0.weight"][1]
    sizes = {kind: OURS(kind, shapes) for kind in kinds}
    if len(set(sizes.values())) != 1:
        raise LayoutError(f"the layers of {' and '.join(kinds)} are not of one network")
    _, depth, attending = next(iter(sizes.values()))
    config = MultiFlowConfig(
        data=tuple(_data(kind, shapes, dim) for kind in kinds),
        contexts={k: shapes[f"{k}_context.0.layers.0.cross.k.weight"][1] for k in kinds},
        dim=dim,
        multipliers=tuple(_widths(kinds[0], shapes, next(iter(sizes.values())), dim)),
        depth=depth,
        attending=attending,
        heads=int(given.get("heads", given.get("attention_head_dim", 8))),
    )
    drawn = {"image_size": int(given["drawn_size"])} if "drawn_size" in given else {}
    return {"network": config.to_json(), **drawn}


def _data(kind: str, shapes: Shapes, dim: int) -> Maps | Vectors:
    stem = shapes[f"{kind}_data.0.weight"]
    if len(stem) == 4:
        return Maps(name=kind, channels=stem[1])
    return Vectors(name=kind, shape=(1, stem[1]), places=stem[0] // dim)


def _widths(kind: str, shapes: Shapes, sizes: Sizes, dim: int) -> Iterator[int]:
    """Of each level, in units of dim."""
    places = max(1, shapes[f"{kind}_data.0.weight"][0] // dim)
    data = [layer for layer in _order(sizes) if layer.kind in DATA]
    for level in range(sizes[0]):
        own = (
            n for n, d in enumerate(data) if (d.kind, d.way, d.level) == ("residual", "in", level)
        )
        yield shapes[f"{kind}_data.{next(own)}.conv1.weight"][0] // (dim * places)


def _expected(settings: Settings, kinds: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """kinds: of which the file holds the layers; all where there are none."""
    config = MultiFlowConfig.from_json(settings["network"])
    made = without("parts.", shapes_of(lambda: MultiFlow(config)))
    starts = tuple(f"{kind}_" for kind in kinds)
    return {k: v for k, v in made.items() if not kinds or k.startswith(("time.", *starts))}


def _fits(settings: Settings) -> bool:
    """Whether published files can tell what the network is: a state and a context of each kind, the
    former of maps or of one vector."""
    config = MultiFlowConfig.from_json(settings["network"])
    plain = all(isinstance(d, Maps) or d.shape[:-1] in ((), (1,)) for d in config.data)
    return plain and {d.name for d in config.data} == {*config.contexts}


def _preset(settings: Settings) -> str:
    return "four-flow" if settings["network"] == versatile.FOUR_FLOW.to_json() else ""


SCHEDULE = (
    r"(sqrt_(one_minus_|recip_|recipm1_)?|log_one_minus_)?alphas_cumprod(_prev)?",
    "betas",
    r"posterior_(variance|log_variance_clipped|mean_coef[12])",
)
"""Numbers of the noise schedule, which follow from the config."""
_NETWORK: Mapping[str, Any] = {
    "component": "network",
    "nested": True,
    "system": "versatile",
    "settings": inferred,
    "hints": ("heads", "drawn_size"),
    "fits": _fits,
    "preset": _preset,
}
_ALL: Mapping[str, Any] = {"part": "network", "expected": _expected, "aside": SCHEDULE, **_NETWORK}


def _of_diffusers(kind: str, mark: str) -> FileLayout:
    """One of diffusers' two networks.  mark: a name that the other one has not."""
    return FileLayout(
        name=f"versatile-{kind}-diffusers",
        origin="diffusers",
        part=f"{kind}_unet",
        places=(f"{kind}_data.", f"{kind}_context."),
        shared=("time.",),
        marks=("conv_in.weight", "down_blocks.0.attentions.0.proj_in.weight", mark),
        to_ours=partial(from_file, naming=DIFFUSERS, kinds=(kind,)),
        to_theirs=partial(to_file, naming=DIFFUSERS),
        expected=partial(_expected, kinds=(kind,)),
        file=f"{kind}_unet/diffusion_pytorch_model.safetensors",
        their_config=partial(_diffusers_config, kind),
        **_NETWORK,
    )


def _diffusers_config(kind: str, settings: Settings) -> dict[str, Any]:
    """The config.json of one of diffusers' networks."""
    config = MultiFlowConfig.from_json(settings["network"])
    (data,) = (d for d in config.data if d.name == kind)
    flat = isinstance(data, Vectors)
    last = "Flat" if flat else "2D"
    levels = range(len(config.multipliers))
    down = [f"{'CrossAttn' * (n < config.attending)}DownBlock{last}" for n in levels]
    channels = [data.shape[-1], 1, 1] if flat else data.channels
    return {
        "_class_name": "UNetFlatConditionModel" if flat else "UNet2DConditionModel",
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "block_out_channels": [config.dim * m for m in config.multipliers],
        "layers_per_block": config.depth,
        "attention_head_dim": config.heads,
        "cross_attention_dim": config.contexts[kind],
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


LAYOUTS = (
    FileLayout(
        name="versatile",
        origin="authors",
        marks=("diffuser.image.time_embed.0.weight",),
        to_ours=partial(from_file, naming=RELEASED),
        to_theirs=partial(to_file, naming=RELEASED),
        file="vd-four-flow-v1-0.pth",
        **_ALL,
    ),
    FileLayout(
        name="versatile-2022",
        origin="authors-2022",
        marks=("diffusion_model.time_embed.0.weight", "diffusion_model.unet_image.out.2.weight"),
        to_ours=partial(from_file, naming=FIRST),
        to_theirs=partial(to_file, naming=FIRST),
        file="vd-four-flow-v1-0-deprecated.pth",
        **_ALL,
    ),
    _of_diffusers("image", "down_blocks.0.downsamplers.0.conv.weight"),
    _of_diffusers("text", "down_blocks.0.downsamplers.0.weight"),
)


# -- files of all parts -----------------------------------------------------------------------

_2022 = {
    "image": "autokl.",
    "text": "optimus.",
    "image_condition": "clip.model.",
    "text_condition": "clip.model.",
    "network": "model.",
}
_2023 = {
    "image": "vae.image.",
    "text": "vae.text.",
    "image_condition": "ctx.image.model.",
    "text_condition": "ctx.text.model.",
    "network": "diffuser.",
}
"""Part -> how its names begin.  A part of CLIP is given all of CLIP, and takes its own."""


def split(entries: Entries, starts: Mapping[str, str], bare: bool) -> dict[str, Entries]:
    """Part -> its tensors; {} of a file that has not all parts.  bare: whether a network's names go
    without their beginning.  What begins otherwise is the network's."""
    made: dict[str, Entries] = {part: {} for part in ("network", *starts)}
    for name, entry in entries.items():
        owners = [part for part, start in starts.items() if name.startswith(start)]
        for part in owners or ["network"]:
            kept = part == "network" and not bare
            made[part][name if kept else name.removeprefix(starts[part])] = entry
    return made if all(made.values()) else {}


def join(parts: Mapping[str, Entries]) -> Entries:
    """The file of 2022, of its parts."""
    out: Entries = {}
    for part, entries in parts.items():
        for name, entry in entries.items():
            loose = part == "network" and any(re.fullmatch(p, name) for p in SCHEDULE)
            out[name if loose or name.startswith(_2022[part]) else _2022[part] + name] = entry
    return out


WHOLES = (
    Whole(
        origin="authors-2022",
        system="versatile",
        also=("autoencoder-kl", "optimus", "clip-image-context", "clip-text-context"),
        split=partial(split, starts=_2022, bare=True),
        join=join,
        file="vd-four-flow-v1-0-deprecated.pth",
    ),
    Whole(
        origin="",  # the whole of 2023 was never released, and is only read
        system="versatile",
        split=partial(split, starts=_2023, bare=False),
        join=join,
        file="",
    ),
)
