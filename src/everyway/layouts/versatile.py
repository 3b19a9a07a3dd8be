"""Versatile Diffusion's network as published: the released names of 2023 and 2022, and diffusers'
two networks, each with its own data and context layers.

Source: Xu et al., "Versatile Diffusion: Text, Images and Variations All in One Diffusion Model",
2022, arXiv 2211.08332.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from everyway.checkpoints.tensor_files import E, LayoutError
from everyway.layouts.keymap import Table, inside, to_ours, to_theirs
from everyway.nets.multiflow import DATA, Layer, MultiFlowConfig, layers

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
    *inside("layers.{i}", "transformer_blocks.{i}", _BLOCK),
)


# -- ways to name layers ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Naming:
    """How a file names the layers of one kind, in which "{kind}" stands for it.

    sizes: (kind, names) -> sizes of the network.  places: the beginnings of names, of all data and
    context layers in the order in which they run.  residual: rows of a residual block.
    down, up, head: what follows the place of such a layer; of vectors nothing follows a sampler's.
    time: (ours, theirs) of the time layers.
    """

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
    sizes=_in_order(_DATA, f"{_DATA}.0.in_layers.0", "diffuser.{kind}.context_blocks.{i}"),
    places=_released_places,
    residual=_RESIDUAL,
    down=".op",
    up=".conv",
    head=(".0", ".2"),
    time=(("time.{i}", "diffuser.image.time_embed.{i}"),),
)
FIRST = Naming(
    sizes=_first_sizes,
    places=_first_places,
    residual=_RESIDUAL,
    down=".op",
    up=".conv",
    head=(".0", ".2"),
    time=(("time.{i}", "diffusion_model.time_embed.{i}"),),
)
DIFFUSERS = Naming(
    sizes=_diffusers_sizes,
    places=_diffusers_places,
    residual=_DIFFUSERS_RESIDUAL,
    down=".conv",
    up=".conv",
    head=("norm_out", "out"),
    time=(("time.0", "time_embedding.linear_1"), ("time.2", "time_embedding.linear_2")),
)


def from_file(entries: Mapping[str, E], naming: Naming, kinds: Sequence[str]) -> dict[str, E]:
    """A file's names -> ours.  LayoutError for names unknown there."""
    table = list(naming.time)
    for kind in kinds:
        sizes = naming.sizes(kind, entries)
        table += naming.rows(kind, sizes, flat=False) + naming.rows(kind, sizes, flat=True)
    return to_ours(entries, tuple(dict.fromkeys(table)))


def to_file(entries: Mapping[str, E], naming: Naming) -> dict[str, E]:
    """The inverse of `from_file`, of a network's layers of any kinds."""
    table = list(naming.time)
    for kind in kinds_of(entries):
        flat = len(entries[f"{kind}_data.0.weight"].shape) == 2
        table += naming.rows(kind, OURS(kind, entries), flat)
    return to_theirs(entries, tuple(table))


def kinds_of(names: Collection[str]) -> list[str]:
    """Of our names of layers, in their order."""
    found = (re.match(r"(\w+)_data\.", name) for name in names)
    return list(dict.fromkeys(m[1] for m in found if m))
