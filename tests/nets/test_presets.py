"""Published sizes: parameter counts, and tensor names and shapes through the key maps."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from everyway.checkpoints.tensor_files import LayoutError, check
from everyway.layouts import unidiffuser as unidiffuser_layouts
from everyway.layouts import uvit as uvit_layouts
from everyway.layouts.keymap import to_ours, to_theirs
from everyway.nets.uvit import UViT, UViTConfig
from everyway.systems import uvit

PARAMETERS = {
    "cifar10_small": 44_255_328,
    "celeba64_small": 44_292_228,
    "imagenet64_mid": 130_940_292,
    "imagenet64_large": 286_827_652,
    "imagenet256_large": 286_763_172,
    "imagenet256_huge": 500_832_016,
    "imagenet512_large": 286_861_524,
    "imagenet512_huge": 500_942_656,
    "mscoco_small": 44_692_644,
    "mscoco_small_deep": 58_345_636,
}
MILLIONS = {44, 45, 58, 131, 287, 501, 952}
"""Sizes as the papers tell them."""
# sha256 of the sorted "name shape" lines of every published layout
LAYOUTS = json.loads(
    (Path(__file__).parents[1] / "golden" / "layouts.json").read_text(encoding="utf-8")
)


def meta(config: UViTConfig) -> UViT:
    with torch.device("meta"):
        return UViT(config)


def digest(shapes: dict[str, tuple[int, ...]]) -> str:
    lines = "\n".join(f"{k} {list(shapes[k])}" for k in sorted(shapes))
    return hashlib.sha256(lines.encode()).hexdigest()


def networks():
    for name, config in uvit.PRESETS.items():
        yield f"uvit_{name}", config, uvit_layouts.KEYMAP, PARAMETERS[name]
    for version, count in ((0, 952_504_912), (1, 952_509_520)):
        config = unidiffuser_layouts.published(version=version)
        yield f"unidiffuser_v{version}", config, unidiffuser_layouts.KEYMAP, count


@pytest.mark.parametrize("name, config, table, count", networks())
def test_published_layout(name, config, table, count):
    network = meta(config)
    assert sum(p.numel() for p in network.parameters()) == count
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    theirs = to_theirs(shapes, table)
    assert digest(theirs) == LAYOUTS[name]
    assert to_ours(theirs, table) == shapes


def test_counts_are_those_of_the_papers():
    conditioning = {min(MILLIONS, key=lambda m: abs(count - 1e6 * m)) for *_, count in networks()}
    assert conditioning == MILLIONS
    for name, _, _, count in networks():
        assert min(abs(count - 1e6 * m) for m in MILLIONS) < 0.51e6, name


def test_config_survives_json():
    for config in (*uvit.PRESETS.values(), unidiffuser_layouts.published()):
        assert UViTConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_faults_of_a_foreign_file_are_listed():
    with pytest.raises(LayoutError, match="unknown to this layout: nonsense"):
        to_ours({"nonsense": 1, "pos_embed": 2}, uvit_layouts.KEYMAP)
    with pytest.raises(LayoutError, match="missing: a; extra: c; misshapen: b"):
        check({"b": (1,), "c": (1,)}, {"a": (1,), "b": (2,)})


@pytest.mark.parametrize("option", [{"skip": "odd"}, {"norm": "odd"}, {"heads": 3}])
def test_a_bad_config_is_one_clear_line(option):
    base = dict(size=8, patch=2, channels=3, dim=64, depth=4, heads=4)
    with pytest.raises(ValueError) as caught:
        uvit.network(**base | option)
    assert "\n" not in str(caught.value)
