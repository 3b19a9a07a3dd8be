"""Others' layouts: every tensor accounted for both ways, what does not fit is one line."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from everyway.checkpoints.tensor_files import LayoutError, StoreError, held
from everyway.layouts import file_layout, files
from everyway.layouts.table import LAYOUTS
from published import (
    full,
    read,
    same,
    stored,
    tiny_autoencoder,
    tiny_caption,
    tiny_clip,
    tiny_network,
)

GOLDEN = Path(__file__).parents[1] / "golden"
DIGESTS = json.loads((GOLDEN / "layouts.json").read_text(encoding="utf-8"))
COUNTED = json.loads((GOLDEN / "foreign" / "layouts.json").read_text(encoding="utf-8"))
FULL = full()
SMALL = 200_000
"""Elements above which a tensor's bytes are compared by the slow test only."""
PRESETS = {
    "autoencoder_kl": "KL-f8",
    "caption_decoder": "GPT-2 small",
    "diffusers_unidiffuser_text_decoder": "GPT-2 small",
    "diffusers_unidiffuser_model_v1": "v1",
}


def held_all(state: dict) -> dict:
    return {name: held(tensor) for name, tensor in state.items()}


def opened(state: dict, hints: dict | None = None, layout: str = "") -> file_layout.Part:
    entries = held_all(state)
    if layout:
        return file_layout.read(entries, file_layout.named(LAYOUTS, layout), hints or {})
    return file_layout.read(
        entries, file_layout.recognised(entries, LAYOUTS, Path("x")), hints or {}
    )


def back(part: file_layout.Part) -> dict:
    made = file_layout.theirs(part.layout, part.entries, part.settings, part.aside, part.prefix)
    return read(made)


def refused(call, *args, error: type = LayoutError) -> str:
    with pytest.raises(error) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the released layouts ---------------------------------------------------------------------


@pytest.mark.parametrize("name", FULL)
def test_names_and_shapes_are_the_released_ones(name):
    shapes = FULL[name][1]
    lines = "\n".join(f"{k} {list(shapes[k])}" for k in sorted(shapes))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert digest == (DIGESTS[name] if name in DIGESTS else COUNTED[name]["sha256"])


def there_and_back(name: str, most: int) -> None:
    """Every tensor of at most so many elements is the same, byte for byte."""
    layout_name, shapes = FULL[name]
    source = stored(shapes)
    layout = file_layout.recognised(source, LAYOUTS, Path(name))
    assert layout.name == layout_name
    tied = {k for k in source if k.endswith("lm_head.weight")} if most < 10**7 else set()
    part = file_layout.read({k: v for k, v in source.items() if k not in tied}, layout, {})
    assert layout.preset(part.settings) == PRESETS.get(
        name, re.sub("^(uvit|unidiffuser)_", "", name)
    )
    made = file_layout.theirs(layout, part.entries, part.settings, part.aside, part.prefix)
    assert {k: v.shape for k, v in made.items()} == shapes
    compared = 0
    for key, entry in made.items():
        if torch.Size(entry.shape).numel() <= most:
            assert torch.equal(entry.read(), source[key].read()), key
            compared += 1
    assert compared == len(shapes) or most == SMALL and compared > len(shapes) / 3


@pytest.mark.parametrize("name", FULL)
def test_every_tensor_comes_back(name):
    there_and_back(name, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_every_byte_comes_back(name):
    there_and_back(name, 10**12)


# -- tiny files of every layout ---------------------------------------------------------------


def tiny_diffusers() -> dict:
    from everyway.layouts.unidiffuser import to_diffusers

    return to_diffusers({k: v.read() for k, v in opened(tiny_network()).entries.items()})


def tiny_text_decoder(heads: int = 1):
    """diffusers' module with random weights."""
    from diffusers.pipelines.deprecated.unidiffuser import UniDiffuserTextDecoder

    torch.manual_seed(1)
    sizes = dict(n_embd=64, n_layer=2, n_head=heads, n_positions=160, vocab_size=11)
    prefix = dict(prefix_length=77, prefix_inner_dim=64, prefix_hidden_dim=16)
    return UniDiffuserTextDecoder(**prefix, **sizes).eval()


def tiny_vae():
    from diffusers import AutoencoderKL

    torch.manual_seed(2)
    kinds = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }
    return AutoencoderKL(**kinds, block_out_channels=[32, 64], layers_per_block=1).eval()


TINY = {
    "unidiffuser": tiny_network,
    "unidiffuser-diffusers": tiny_diffusers,
    "autoencoder-kl": tiny_autoencoder,
    "autoencoder-kl-diffusers": lambda: tiny_vae().state_dict(),
    "caption-decoder": tiny_caption,
    "caption-decoder-diffusers": lambda: tiny_text_decoder().state_dict(),
    "clip-image": lambda: tiny_clip("image").state_dict(),
}


@pytest.mark.parametrize("layout", TINY)
def test_tiny_files_come_back_to_the_byte(layout):
    state = TINY[layout]()
    part = opened(state)
    assert part.layout.name == layout
    assert same(back(part), {k: v for k, v in state.items() if "clip.visual" not in k})


def test_names_of_clips_text_may_lack_their_beginning():
    """transformers 5 leaves it out, files have it."""
    state = tiny_clip("text").state_dict()
    named = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}
    assert same(back(opened(named)), named)
    assert same(back(opened(state, layout="clip-text")), named)


def test_a_whole_clip_gives_either_encoder():
    parts = {"image": tiny_clip("image").state_dict(), "text": tiny_clip("text").state_dict()}
    text = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in parts["text"].items()}
    whole = (
        parts["image"]
        | text
        | {"logit_scale": torch.ones(()), "text_projection.weight": torch.ones(2, 2)}
    )
    assert same(back(opened(whole, layout="clip-text")), text)
    assert opened(whole, layout="clip-text").dropped == len(parts["image"]) + 2
    assert same(back(opened(whole, layout="clip-image")), parts["image"])


def test_older_names_of_an_autoencoder():
    state = tiny_vae().state_dict()
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = dict(state)
    for ours, theirs in older.items():
        renamed = {k.replace(f".{ours}.", f".{theirs}."): v for k, v in renamed.items()}
    assert renamed.keys() != state.keys()
    assert same(back(opened(renamed)), state)


def test_prefix_mask_and_clip_of_the_released_captions():
    part = opened(tiny_caption())
    assert part.prefix == "module." and part.dropped == 1 and len(part.aside) == 4
    plain = {k.removeprefix("module."): v for k, v in tiny_caption().items()}
    assert opened(plain).prefix == "" and same(
        back(opened(plain)), {k: v for k, v in plain.items() if k != "clip.visual.proj"}
    )


def test_a_tied_layer_may_be_missing_but_not_differ():
    state = tiny_caption()
    head = "module.gpt.lm_head.weight"
    part = opened({k: v for k, v in state.items() if k != head})
    assert torch.equal(back(part)[head], state[head])
    assert "tied" in refused(opened, state | {head: state[head] + 1})


def test_unused_copies_of_diffusers_are_kept_as_they_are():
    state = tiny_diffusers()
    key = "transformer.pos_embed.proj.weight"
    changed = state | {key: state[key] + 1}
    assert same(back(opened(changed)), changed)
    lone = {k: v for k, v in state.items() if not k.startswith("transformer.pos_embed")}
    assert same(back(opened(lone)), state)


# -- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(classes=11),
        dict(context=(77, 24)),
        dict(time_mlp=True, conv=False),
        dict(skip="none"),
        dict(qkv_bias=True, mlp_ratio=2),
        dict(channels=3, time_scale=999.0),
    ],
    ids=str,
)
def test_settings_of_a_uvit_are_in_its_shapes(options):
    from everyway.layouts import uvit as uvit_layouts
    from everyway.nets.uvit import UViTConfig
    from everyway.systems import uvit
    from published import network_shapes

    sizes = dict(size=16, patch=4, channels=4, dim=128, depth=4, heads=4)
    config = uvit.network(**sizes | options)
    part = file_layout.read(
        stored(network_shapes(config, uvit_layouts.KEYMAP)),
        file_layout.named(LAYOUTS, "uvit"),
        {"heads": "4"},
    )
    assert UViTConfig.from_json(part.settings["network"]) == config
    assert part.layout.preset(part.settings) == ""


@pytest.mark.parametrize("version", [0, 1])
def test_settings_of_a_unidiffuser_are_in_its_shapes(version):
    from everyway.layouts.unidiffuser import published
    from everyway.systems.unidiffuser import full as whole

    part = opened(tiny_network(version))
    sizes = dict(size=8, text=(77, 16), embed_dim=32, dim=64, depth=4, heads=1)
    assert whole(part.settings, {}).network() == published(version=version, **sizes)
    assert whole({**part.settings, "heads": 2}, {}).network() != published(version=version, **sizes)


def test_what_no_shapes_show_comes_from_the_config_beside_the_file():
    part = opened(tiny_text_decoder(2).state_dict(), dict(tiny_text_decoder(2).config))
    assert part.settings["decoder"]["n_head"] == 2
    assert part.settings["decoder"]["activation_function"] == "gelu_new"
    hints = {"scaling_factor": 0.5, "norm_num_groups": 16}
    settings = opened(tiny_vae().state_dict(), hints).settings
    assert settings["scale"] == 0.5 and settings["autoencoder"]["norm_num_groups"] == 16


@pytest.mark.parametrize("heads", [0, None, "many"])
def test_a_config_beside_the_weights_that_cannot_be_used_is_named(tmp_path, heads):
    from everyway.layouts.convert import open_model

    decoder = tiny_text_decoder(2)
    torch.save(decoder.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(dict(decoder.config) | {"n_head": heads}))
    line = refused(open_model, str(tmp_path))
    assert "config.json as caption-decoder-diffusers" in line and "mend it" in line


# -- what does not fit ------------------------------------------------------------------------


def test_wrong_files_are_one_line_that_lists_what_is_wrong():
    state = tiny_network()
    some = "in_blocks.1.attn.qkv.weight"
    cases = {
        "missing: in_blocks.1.attn.qkv.weight": {k: v for k, v in state.items() if k != some},
        "unknown to this layout: nonsense": state | {"nonsense": torch.zeros(1)},
        "extra: in_blocks.1.norm1.weight": state | {"in_blocks.1.norm1.weight": torch.zeros(64)},
        f"misshapen: {some}: (9, 64) instead of (192, 64)": state | {some: torch.zeros(9, 64)},
        "are no square": state | {"pos_embed": torch.zeros(1, 85, 64)},
        "missing: embed.text.weight": {k: v for k, v in state.items() if "text_embed" not in k},
    }
    for said, wrong in cases.items():
        assert said in refused(opened, wrong), said


def test_many_faults_are_cut_short():
    state = {k: v for k, v in tiny_network().items() if "out_blocks.0" not in k}
    line = refused(opened, state)
    assert "missing: out_blocks.0.attn.proj.bias" in line and "and 7 more" in line


@pytest.mark.parametrize("layout", TINY)
def test_a_file_under_another_layout_is_refused(layout):
    """But under one of the same marks, which is the same file for another system."""
    state, own = TINY[layout](), file_layout.named(LAYOUTS, layout)
    for other in LAYOUTS:
        if other.marks != own.marks:
            refused(opened, state, {}, other.name)


def test_a_file_of_no_layout_lists_the_layouts():
    assert all(row.name in refused(opened, {"a": torch.ones(1)}) for row in LAYOUTS)
    line = refused(file_layout.named, LAYOUTS, "uvitt", error=ValueError)
    assert "'uvitt' is unknown" in line and "caption-decoder" in line


def test_a_measured_codec_has_no_published_layout():
    part = opened(tiny_autoencoder())
    part.entries["whiten.shift"] = held(torch.ones(4))
    assert "cannot hold" in refused(back, part)


# -- files and folders ------------------------------------------------------------------------


def test_the_average_is_taken_where_a_file_has_several_weights(tmp_path):
    nets = {name: {"w": torch.full((2,), float(n))} for n, name in enumerate(("nnet", "ema", "x"))}
    torch.save({**nets, "step": torch.tensor(5), "optimizer": {"state": {}}}, tmp_path / "a.pth")
    for wanted, value in (("", 1.0), ("nnet", 0.0), ("x", 2.0)):
        found, hints, _ = files.open_tensors(tmp_path / "a.pth", wanted)
        assert found["w"].read()[0] == value and hints == {}
    line = refused(files.open_tensors, tmp_path / "a.pth", "emma")
    assert "'emma'" in line and "nnet, ema, x" in line


def test_the_larger_set_is_taken_where_no_name_is_known(tmp_path):
    torch.save(
        {"step": torch.tensor(1), "g": {"a": torch.ones(1), "b": torch.ones(1)}}, tmp_path / "a.pth"
    )
    assert set(files.open_tensors(tmp_path / "a.pth")[0]) == {"a", "b"}
    torch.save([torch.ones(1)], tmp_path / "b.pth")
    assert "no tensors by name" in refused(files.open_tensors, tmp_path / "b.pth")


def test_folders_of_all_kinds_are_opened(tmp_path):
    state = {"a": torch.ones(2), "b": torch.zeros(3)}
    for name in ("one", "shards", "old", "training"):
        (tmp_path / name).mkdir()
    save_file(state, tmp_path / "one" / "model.safetensors")
    (tmp_path / "one" / "config.json").write_text('{"heads": 3}')
    for key, value in state.items():
        save_file({key: value}, tmp_path / "shards" / f"{key}.safetensors")
    places = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    index = tmp_path / "shards" / "model.safetensors.index.json"
    index.write_text(json.dumps(places))
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    torch.save(state, tmp_path / "training" / "nnet_ema.pth")
    torch.save({"a": torch.zeros(2)}, tmp_path / "training" / "nnet.pth")
    for name in ("one", "shards", "old", "training"):
        assert same(read(files.open_tensors(tmp_path / name)[0]), state)
    assert files.open_tensors(tmp_path / "one")[1] == {"heads": 3}
    index.write_text(json.dumps({"weight_map": {"c": "a.safetensors"}}))
    assert "lack c" in refused(files.open_tensors, tmp_path / "shards", error=StoreError)
    index.write_text("{}")
    assert "names no files" in refused(files.open_tensors, tmp_path / "shards", error=StoreError)
    (tmp_path / "one" / "config.json").write_text("{")
    assert "cannot be read" in refused(files.open_tensors, tmp_path / "one", error=StoreError)
    assert "no file" in refused(files.open_tensors, tmp_path / "none", error=ValueError)
    assert "no weights" in refused(files.open_tensors, tmp_path, error=ValueError)


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    part = opened(tiny_network())

    def full_disk(path, entries):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(file_layout, "write_pth", full_disk)
    line = refused(file_layout.write, tmp_path, part.layout, {}, part.settings, error=StoreError)
    assert "No space left" in line and not list(tmp_path.iterdir())


# -- diffusers --------------------------------------------------------------------------------


def test_text_decoder_of_diffusers_gives_the_same(tmp_path):
    """The same random weights: largest difference over largest value."""
    from transformers import GPT2Config, GPT2LMHeadModel

    peer = tiny_text_decoder(4)
    part = opened(peer.state_dict(), dict(peer.config))
    ours = read(part.entries)
    own = GPT2LMHeadModel(GPT2Config(**part.settings["decoder"])).eval()
    own.load_state_dict(
        {k.removeprefix("decoder."): v for k, v in ours.items() if k.startswith("decoder.")}
    )
    ids, hidden = torch.tensor([[1, 5, 3, 9]]), torch.randn(1, 77, 64)
    narrow = torch.nn.functional.linear(hidden, ours["narrow.weight"], ours["narrow.bias"])
    wide = torch.nn.functional.linear(narrow, ours["widen.weight"], ours["widen.bias"])
    with torch.no_grad():
        expected = peer(ids, hidden)[0].logits
        found = own(inputs_embeds=torch.cat([wide, own.transformer.wte(ids)], 1)).logits
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4
