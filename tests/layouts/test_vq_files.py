"""The released files of VQ-Diffusion: every tensor accounted for, there and back to the byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from everyway.checkpoints.tensor_files import Entries, LayoutError, held
from everyway.layouts import file_layout, files
from everyway.layouts import vq_codec as vq_codec_layouts
from everyway.layouts import vq_network as vq_network_layouts
from everyway.layouts.table import LAYOUTS
from everyway.layouts.vq_diffusion import WHOLE
from everyway.systems import vq_diffusion
from published import read, same
from published_vq import (
    CODECS,
    MODELS,
    averages,
    codec_shapes,
    network_shapes,
    stored,
    tiny_codec,
    tiny_config,
    tiny_model,
    whole,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "vq"
SMALL = 200_000
"""Elements above which a tensor's bytes are compared by the slow test only."""
PRESETS = {"cub200": "coco"}
"""Released networks that are of the same sizes as another."""


def held_all(state: dict) -> Entries:
    return {name: held(tensor) for name, tensor in state.items()}


def opened(entries: Entries, part: str = "", hints: dict | None = None) -> file_layout.Part:
    rows = [row for row in LAYOUTS if part in ("", row.part)]
    return file_layout.read(entries, file_layout.recognised(entries, rows, Path("x")), hints or {})


def back(part: file_layout.Part) -> Entries:
    return file_layout.theirs(part.layout, part.entries, part.settings, part.aside, part.prefix)


def parts_of(entries: Entries) -> dict[str, file_layout.Part]:
    return {name: opened(own, name) for name, own in WHOLE.split(entries).items()}


def refused(call, *args) -> str:
    with pytest.raises(LayoutError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def compare(found: Entries, source: Entries, most: int) -> None:
    """Names and shapes and formats of all, bytes of those of at most so many elements."""
    assert found.keys() == source.keys()
    compared = 0
    for name, entry in found.items():
        assert (entry.shape, entry.dtype) == (source[name].shape, source[name].dtype), name
        if torch.Size(entry.shape).numel() <= most:
            assert torch.equal(entry.read(), source[name].read()), name
            compared += 1
    assert compared > len(source) / 3 and (most == SMALL or compared == len(source))


# -- what follows from the settings -----------------------------------------------------------


def test_schedules_are_the_authors():
    """To a last bit of float32, in which the logarithms of processors differ."""
    with np.load(GOLDEN / "a_schedule.npz") as file:
        keys = [key for key in file.files if key.startswith("f32.")]
        assert len(keys) == 32
        for key in keys:
            _, steps, codes, name = key.split(".")
            made = vq_network_layouts.schedule(int(codes[1:]), int(steps[1:]))[name]
            np.testing.assert_allclose(made, file[key], rtol=1.2e-7, err_msg=key)


def test_a_file_of_another_schedule_is_refused():
    model = tiny_model("none")
    drifted = model | {"transformer.log_at": model["transformer.log_at"] * (1 + 1e-6)}
    assert back(parts_of(held_all(drifted))["network"])  # of averages, off in the last bits
    for name in ("log_at", "log_cumprod_ct"):
        wrong = model | {f"transformer.{name}": model[f"transformer.{name}"] - 0.01}
        assert f"{name} is not what this layout's settings give" in refused(
            parts_of, held_all(wrong)
        )
    wrong = model | {"transformer.log_at": torch.zeros(50)}
    assert "misshapen: log_at: (50,) instead of (100,)" in refused(parts_of, held_all(wrong))
    text = tiny_model("text")
    mask = "transformer.transformer.blocks.0.attn2.mask"
    wrong = text | {mask: torch.ones_like(text[mask])}
    assert "blocks.0.attn2.mask is not" in refused(parts_of, held_all(wrong))


def test_a_network_that_was_never_in_such_a_file_gets_all_of_its_tensors():
    part = parts_of(held_all(tiny_model("text")))["network"]
    made = file_layout.theirs(part.layout, part.entries, part.settings)
    assert made.keys() == back(part).keys()
    assert not made["Lt_history"].read().any() and part.aside["Lt_history"].read().any()


# -- the released layouts ---------------------------------------------------------------------


def there_and_back(name: str, most: int) -> None:
    source = whole(name)
    parts = parts_of(source)
    hints = vq_diffusion.PRESETS[name].condition
    assert parts.keys() == {"network", "image"} | ({"text_states"} if hints == "text" else set())
    assert parts["network"].layout.preset(parts["network"].settings) == PRESETS.get(name, name)
    assert parts["image"].layout.preset(parts["image"].settings) == MODELS[name][1]
    if hints == "text":
        assert parts["text_states"].layout.preset(parts["text_states"].settings) == "CLIP B/32"
    assert sum(part.dropped for part in parts.values()) == 0
    compare(WHOLE.join({name: back(part) for name, part in parts.items()}), source, most)


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_of_a_whole_file_comes_back(name):
    there_and_back(name, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco_learnable", "ffhq"])
def test_every_byte_of_a_whole_file_comes_back(name):
    there_and_back(name, 10**12)


@pytest.mark.parametrize("name", ["openimages", "imagenet", "ffhq", "ithq"])
def test_every_byte_of_a_lone_codec_comes_back(name):
    """FFHQ's lies in the file of a larger model, whose other tensors are left out."""
    source = stored(codec_shapes(name))
    beside = {"transformer.head.weight": held(torch.ones(2))} if name == "ffhq" else {}
    loss = "first_stage_model.loss.weight" if name == "ffhq" else "loss.weight"
    part = opened({**source, **beside, loss: held(torch.ones(2))})
    assert part.layout.preset(part.settings) == name
    assert part.dropped == len(beside) + 1
    assert part.prefix == ("first_stage_model." if name == "ffhq" else "")
    compare(back(part), source, 10**12 if name == "ithq" else SMALL)


def test_diffusers_codec_and_its_older_names():
    source = stored(codec_shapes("diffusers_ithq"))
    older = {CODECS["legacy"].get(k, k): v for k, v in source.items()}
    assert len(CODECS["legacy"]) == 56 and older.keys() != source.keys()
    for entries in (source, older):
        part = opened(entries)
        assert part.layout.name == "vq-codec-diffusers"
        assert part.layout.preset(part.settings) == "ithq of diffusers"
        compare(back(part), source, SMALL)


@pytest.mark.parametrize("most", [SMALL, pytest.param(10**12, marks=pytest.mark.slow)])
def test_diffusers_network_and_null(most):
    source = stored(network_shapes("diffusers_ithq_transformer"))
    part = opened(source)
    assert part.layout.preset(part.settings) == "ithq"
    assert {**part.settings, "learned_null": True} == vq_diffusion.PRESETS["ithq"].to_json()
    compare(back(part), source, most)
    null = opened(stored(network_shapes("diffusers_ithq_learned_cf")))
    assert null.layout.name == "vq-null-diffusers" and null.settings["learned_null"]
    compare(back(null), stored(network_shapes("diffusers_ithq_learned_cf")), most)


@pytest.mark.parametrize("name", MODELS)
def test_an_average_alone_is_the_model_without_its_codec(name):
    model = whole(name)
    start = "transformer."
    ema = {k.removeprefix(start): v for k, v in model.items() if k.startswith(start)}
    found, both = WHOLE.split(ema), WHOLE.split(model)
    both.pop("image")
    assert {k: v.keys() for k, v in found.items()} == {k: v.keys() for k, v in both.items()}


# -- which weights of a file ------------------------------------------------------------------


def test_averages_take_the_place_of_what_they_are_of(tmp_path):
    model = tiny_model("text", null=True)
    ema = averages(model)
    beside = {"last_epoch": 3, "last_iter": 9, "optimizer_and_scheduler": {"lr": 1.0}}
    torch.save({"model": model, "ema": ema, **beside}, tmp_path / "a.pth")
    found = read(files.open_tensors(tmp_path / "a.pth")[0])
    expected = model | {f"transformer.{k}": v for k, v in ema.items()}
    assert same(found, expected) and not same(found, model)
    assert same(read(files.open_tensors(tmp_path / "a.pth", "model")[0]), model)
    assert same(read(files.open_tensors(tmp_path / "a.pth", "ema")[0]), ema)
    strange = {**ema, "stranger": torch.ones(1)}  # averages of something else are taken alone
    torch.save({"model": model, "ema": strange}, tmp_path / "b.pth")
    assert same(read(files.open_tensors(tmp_path / "b.pth")[0]), strange)


def test_what_is_written_holds_its_averages_without_taking_room_twice(tmp_path):
    model = tiny_model("text", null=True)
    path = file_layout.write_whole(tmp_path, WHOLE, WHOLE.split(held_all(model)))
    found = torch.load(path, weights_only=True)
    assert same(found["model"], model)
    start = "transformer."
    assert same(
        found["ema"], {k.removeprefix(start): v for k, v in model.items() if k.startswith(start)}
    )
    alone = sum(v.nbytes for v in model.values())
    assert path.stat().st_size < 1.3 * alone


# -- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hints", "null"),
    [("text", False), ("text", True), ("class", False), ("class", True), ("none", False)],
)
def test_settings_are_in_the_shapes(hints, null):
    parts = parts_of(held_all(tiny_model(hints, null)))
    assert parts["network"].settings == tiny_config(hints, null).to_json()
    assert parts["network"].layout.preset(parts["network"].settings) == ""


def test_settings_that_no_shapes_show_are_told():
    entries = WHOLE.split(held_all(tiny_model("none")))["network"]
    hints = opened(entries, hints={"heads": "4", "side": "8"}).settings
    assert (hints["heads"], hints["side"], hints["table_side"]) == (4, 8, 0)
    with pytest.raises(ValueError, match="cannot be divided among 5 heads"):
        opened(entries, hints={"heads": 5})
    codec = opened(held_all(tiny_codec("ema")), hints={"norm_num_groups": 8}).settings
    assert codec["encoder"]["norm_num_groups"] == codec["decoder"]["norm_num_groups"] == 8


@pytest.mark.parametrize("kind", ["gumbel", "nearest", "ema"])
def test_tiny_codecs_of_every_kind_come_back(kind):
    state = tiny_codec(kind)
    part = opened(held_all(state))
    assert part.layout.name == f"vq-codec-{kind}"
    assert part.settings["quantiser"] == {"kind": kind, "codes": 40, "dim": 8}
    assert same(read(back(part)), state)


def test_a_whole_clip_gives_its_text():
    state = WHOLE.split(held_all(tiny_model("text")))["text_states"]
    images = {"visual.proj": held(torch.ones(2, 2)), "logit_scale": held(torch.ones(()))}
    part = opened({**state, **images})
    assert part.dropped == 2 and part.settings["projection"] == 64
    compare(back(part), state, 10**12)


def test_moving_averages_have_no_place_in_diffusers():
    part = opened(held_all(tiny_codec("ema")))
    row = file_layout.named(LAYOUTS, "vq-codec-diffusers")
    theirs = file_layout.theirs(row, part.entries, part.settings)
    again = opened(theirs)
    assert again.settings["quantiser"] == {"kind": "nearest", "codes": 40, "dim": 8}
    assert again.entries.keys() == {k for k in part.entries if "cluster" not in k}
    assert row.fits(part.settings) and not row.fits(opened(held_all(tiny_codec("gumbel"))).settings)


# -- what does not fit ------------------------------------------------------------------------


def test_wrong_files_are_one_line_that_lists_what_is_wrong():
    model = tiny_model("text")
    block = "transformer.transformer.blocks.1"
    cases = {
        "missing: transformer.blocks.1.attn1.key.bias": {
            k: v for k, v in model.items() if k != f"{block}.attn1.key.bias"
        },
        "unknown to this layout: transformer.blocks.1.more": model
        | {f"{block}.more": torch.ones(1)},
        "misshapen: transformer.blocks.1.ln2.bias": model | {f"{block}.ln2.bias": torch.ones(3)},
        "extra: transformer.blocks.7.attn2.mask": model
        | {"transformer.transformer.blocks.7.attn2.mask": torch.ones(1, 1, 64, 64)},
        "discriminator.weight is of no part": model | {"discriminator.weight": torch.ones(1)},
        "two different quantize.embed.weight": model
        | {"content_codec.dec.quantize.embed.weight": torch.zeros(40, 8)},
        "missing: quantize.proj.bias": {
            k: v for k, v in model.items() if k != "content_codec.dec.quantize.proj.bias"
        },
        "unknown to this layout: more": model | {"content_codec.more": torch.ones(1)},
        "missing: transformer.resblocks.0.ln_1.bias": {
            k: v for k, v in model.items() if "resblocks.0.ln_1.bias" not in k
        },
    }
    for said, wrong in cases.items():
        assert said in refused(parts_of, held_all(wrong)), said


@pytest.mark.parametrize("kind", ["gumbel", "nearest", "ema"])
def test_a_file_under_another_layout_is_refused(kind):
    state = held_all(tiny_codec(kind))
    for row in LAYOUTS:
        if row.name != f"vq-codec-{kind}":
            refused(file_layout.read, state, row, {})


def test_other_files_are_not_taken_for_a_whole():
    assert WHOLE.split(held_all(tiny_codec("ema"))) == {}
    assert vq_codec_layouts.preset(opened(held_all(tiny_codec("ema"))).settings) == ""
