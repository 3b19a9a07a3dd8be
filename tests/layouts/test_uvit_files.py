"""What the released files of U-ViTs tell, what they cannot, and parts that are of other models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from everyway.checkpoints import store
from everyway.checkpoints.tensor_files import LayoutError, StoreError, held, open_pth
from everyway.generate import load
from everyway.layouts import convert
from everyway.layouts import table as layouts
from everyway.layouts import uvit as uvit_layouts
from everyway.layouts.file_layout import Shapes
from everyway.library import ModelError
from everyway.nets.tokens import Label
from everyway.systems import uvit
from published import network_shapes


def shapes_of(config):
    return Shapes(uvit_layouts.network_shapes(config))


@pytest.mark.parametrize("name", ["imagenet64_large", "imagenet256_large", "imagenet512_large"])
def test_heads_that_are_told_and_other_classes_keep_what_was_released(name):
    preset = uvit.PRESETS[name]
    assert uvit_layouts.inferred(shapes_of(preset), {"heads": preset.heads}) == preset
    fewer = (replace(s, classes=21) if isinstance(s, Label) else s for s in preset.layout)
    tuned = replace(preset, layout=tuple(fewer))
    assert uvit_layouts.inferred(shapes_of(tuned), {}) == tuned
    other = uvit_layouts.inferred(shapes_of(preset), {"heads": 8})
    assert (other.heads, other.time_scale) == (8, preset.time_scale)


def small(**options):
    return uvit.network(
        size=8, patch=2, channels=3, dim=32, depth=2, heads=2, classes=4, time_scale=999.0,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("options", [{"skip": "add"}, {"conv_first": True}, {"time": "norm"}])
def test_a_network_that_no_released_file_tells_is_not_written(options):
    (row,) = (layout for layout in layouts.LAYOUTS if layout.name == "uvit")
    assert row.fits({"network": small().to_json()})
    assert not row.fits({"network": small(**options).to_json()})
    assert not row.fits({"network": small().to_json(), "null_class": True})


def test_shards_beside_a_config_are_no_folder_of_ours(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert not convert.is_ours(tmp_path)
    (tmp_path / "network-0123abcd.safetensors").touch()
    assert convert.is_ours(tmp_path)


def test_no_part_of_a_former_model_stays(tmp_path):
    weights = {"a": torch.ones(2)}
    config = {"system": "", "config": {}}
    store.save(tmp_path, config, {"network": weights, "image": weights}, {})
    store.save(tmp_path, config, {"network": weights}, {})
    assert {p.name.split("-")[0] for p in tmp_path.glob("*.safetensors")} == {"network"}


def test_a_part_that_the_system_does_not_read_is_named(tmp_path):
    own = {"network": small().to_json(), "codec_config": {"image": {"used": [1]}}}
    network = uvit.network(size=8, patch=2, channels=4, dim=32, depth=2, heads=2, classes=4)
    own["network"] = network.to_json()
    model = convert.Opened(config={"system": "uvit", "config": own}, components={"network": {}})
    with pytest.raises(LayoutError, match="does not read .used.; leave that --part out"):
        convert.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("<!doctype html>", "web"),
    ],
)
def test_what_a_download_leaves_in_place_of_weights_is_named(tmp_path, text, what):
    path = tmp_path / "nnet_ema.pth"
    path.write_text(text)
    with pytest.raises(StoreError, match=f"{what}.*download them again"):
        open_pth(path)


def test_a_hint_that_nothing_reads_is_named(tmp_path):
    shapes = network_shapes(small(), uvit_layouts.KEYMAP)
    torch.save({k: torch.zeros(s) for k, s in shapes.items()}, tmp_path / "nnet.pth")
    with pytest.raises(LayoutError, match="--set drawn_size: .* has nothing that reads it"):
        convert.open_model(str(tmp_path / "nnet.pth"), hints={"drawn_size": "8"})
    found = convert.open_model(str(tmp_path / "nnet.pth"), hints={"heads": "2"})
    assert found.config["config"]["network"]["heads"] == 2


def test_a_codec_that_pixels_do_not_pass_through_is_named():
    own = {"network": small().to_json(), "codec_config": {"image": {"scale": 1.0}}}
    parts = {"network": {}, "image": {"a": held(torch.zeros(1))}}
    model = convert.Opened(config={"system": "uvit", "config": own}, components=parts)
    with pytest.raises(LayoutError, match="does not read .image.; leave that --part out"):
        convert.restored(model)


def test_weights_that_are_no_numbers_draw_nothing():
    model = load("nano", device="cpu")
    with torch.no_grad():
        next(model.system.network.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        model.generate(kind="text-to-image", text="a red ring top on blue", steps=2)
