"""Every published file of Versatile Diffusion: names and shapes, there and back, wrong ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from everyway.checkpoints.tensor_files import LayoutError, held
from everyway.layouts import convert, file_layout, versatile
from everyway.layouts.file_layout import shapes_of
from everyway.layouts.table import LAYOUTS, WHOLES
from everyway.nets.multiflow import MultiFlow, MultiFlowConfig
from everyway.systems import versatile as system
from formula import filled
from published_versatile import FOLDER, SMALL, context, fill, given, own, time, write_tiny_files

DIGESTS = json.loads((FOLDER / "layouts.json").read_text(encoding="utf-8"))
ROWS = {row.name: row for row in LAYOUTS}


def digest(rows):
    lines = "\n".join(f"{k} {rows[k]}" for k in sorted(rows))
    return [len(rows), hashlib.sha256(lines.encode()).hexdigest()]


def shapes(entries):
    return {k: list(e.shape) for k, e in entries.items()}


def empty(rows):
    """Entries of these shapes, all of one number in memory."""
    return {k: held(torch.zeros(()).expand(shape)) for k, shape in rows.items()}


def network_of(config: MultiFlowConfig):
    """Our names of layers -> entries, of a whole network."""
    made = shapes_of(lambda: MultiFlow(config))
    return empty({k.removeprefix("parts."): v for k, v in made.items()})


@pytest.fixture(scope="module")
def full():
    return network_of(system.FOUR_FLOW)


# -- names and shapes -------------------------------------------------------------------------


def test_the_network_has_the_released_names(full):
    made = versatile.to_file(full, versatile.RELEASED)
    assert digest(shapes(made)) == DIGESTS["versatile"]
    first = versatile.to_file(full, versatile.FIRST)
    names = {id(e): k for k, e in made.items()}
    pairs = {f"model.{k}": names[id(e)] for k, e in first.items()}
    assert digest(pairs) == DIGESTS["2022 to 2023"]
    for kind in ("image", "text"):
        own = {k: e for k, e in full.items() if k.startswith((f"{kind}_", "time."))}
        theirs = versatile.to_file(own, versatile.DIFFUSERS)
        assert digest(shapes(theirs)) == DIGESTS[f"{kind}_unet"]
        pairs = {names[id(e)]: k for k, e in theirs.items()}
        assert digest(pairs) == DIGESTS[f"2023 to diffusers {kind}"]


PARTS = {
    "versatile": "versatile",
    "versatile-2022": "",
    "versatile-image-diffusers": "image_unet",
    "versatile-text-diffusers": "text_unet",
}


@pytest.mark.parametrize("name", PARTS)
def test_a_network_s_file_there_and_back(full, name):
    layout = ROWS[name]
    own = {k: e for k, e in full.items() if k.startswith(layout.places + layout.shared)}
    entries = layout.to_theirs(own)
    part = file_layout.read(entries, layout, {})
    assert shapes(part.entries) == shapes(own)
    made = file_layout.theirs(layout, part.entries, part.settings, part.aside, part.prefix)
    assert shapes(made) == shapes(entries)
    wanted = system.FOUR_FLOW.to_json()
    if layout.part == "network":
        assert part.settings["network"] == wanted and layout.preset(part.settings) == "four-flow"
    else:
        kind = layout.part.removesuffix("_unet")
        assert part.settings["network"]["contexts"] == {kind: 768}
        config = layout.their_config(part.settings)
        assert config["block_out_channels"] == [320, 640, 1280, 1280]
        assert config["down_block_types"][0].startswith("CrossAttnDownBlock")


@pytest.mark.parametrize("name", ["optimus", "clip-image-context", "clip-text-context"])
def test_a_codec_s_file_there_and_back(name):
    layout = ROWS[name]
    bare = {"optimus": "optimus", "clip-image-context": "image_encoder"}.get(name, "text_encoder")
    entries = empty(_codec_shapes(layout))
    masks = {f"decoder.transformer.h.{n}.attn.bias": (1, 1, 1024, 1024) for n in range(12)}
    entries |= empty(masks) if name == "optimus" else {}
    assert digest(shapes(entries)) == DIGESTS[bare]
    entries.pop("decoder.lm_head.weight", None)  # tied; it comes back
    part = file_layout.read(entries, layout, {})
    made = file_layout.theirs(layout, part.entries, part.settings, part.aside, part.prefix)
    assert digest(shapes(made)) == DIGESTS[bare]
    assert layout.preset(part.settings)


def _codec_shapes(layout):
    from everyway.codecs.encoders import CLIP_L14_TEXT, CLIP_L14_VISION

    bert = {"vocab_size": 28996}
    settings = {
        "text": {"encoder": bert, "decoder": {"vocab_size": 50260}, "dim": 768},
        "image_condition": {"vision": CLIP_L14_VISION},
        "text_condition": {"text": CLIP_L14_TEXT},
    }[layout.component]
    return shapes(layout.to_theirs(empty(layout.expected(settings))))


def whole(number: int):
    """The file of 2022 or the state of 2023, of all parts."""
    starts = {2022: versatile._2022, 2023: versatile._2023}[number]
    naming = {2022: versatile.FIRST, 2023: versatile.RELEASED}[number]
    out = versatile.to_file(network_of(system.FOUR_FLOW), naming)
    out = {f"model.{k}": e for k, e in out.items()} if number == 2022 else dict(out)
    codecs = {
        "image": "autoencoder-kl",
        "text": "optimus",
        "image_condition": "clip-image-context",
        "text_condition": "clip-text-context",
    }
    for part, name in codecs.items():
        if part == "image":
            from everyway.codecs.image_vae import STABLE_DIFFUSION

            expected = ROWS[name].expected({"autoencoder": STABLE_DIFFUSION})
            own = shapes(ROWS[name].to_theirs(empty(expected)))
        else:
            own = _codec_shapes(ROWS[name])
        for start in {starts[part]} | ({"ctx.image.model.", "ctx.text.model."} & {*starts.values()}
                                       if part.endswith("condition") else set()):  # fmt: skip
            out |= empty({start + k: v for k, v in own.items()})
    masks = {f"decoder.transformer.h.{n}.attn.bias": (1, 1, 1024, 1024) for n in range(12)}
    out |= empty({starts["text"] + k: v for k, v in masks.items()})
    for start in {starts["image_condition"], starts["text_condition"]}:
        ids = {"text_model": (1, 77), "vision_model": (1, 257)}
        out |= empty({f"{start}{k}.embeddings.position_ids": v for k, v in ids.items()})
        out |= empty({f"{start}logit_scale": ()})
    return out | empty(dict.fromkeys(BUFFERS, (1000,)))


BUFFERS = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip


@pytest.mark.parametrize(
    ("number", "name"), [(2022, "versatile_2022"), (2023, "versatile_2023_whole")]
)
def test_a_file_of_all_parts(number, name):
    entries = whole(number)
    assert digest(shapes(entries)) == DIGESTS[name]
    del entries[next(k for k in entries if k.endswith("lm_head.weight"))]  # tied; it comes back
    parts = next(filter(None, (kind.split(entries) for kind in WHOLES)))
    made = {}
    for part, held_there in parts.items():
        rows = [row for row in LAYOUTS if row.part == part]
        chosen = file_layout.recognised(held_there, rows, Path(part))
        found = file_layout.read(held_there, chosen, {})
        layout = found.layout
        made[part] = file_layout.theirs(layout, found.entries, found.settings, found.aside)
        assert (found.dropped > 0) == part.endswith("condition")  # of CLIP, the other tower
    if number == 2022:
        assert digest(shapes(versatile.join(made))) == DIGESTS[name]


# -- tiny files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    """Every tensor under its released name, filled."""
    rows = versatile.to_file(network_of(SMALL), versatile.RELEASED)
    return {k: filled(k, e.shape) for k, e in rows.items()}


def test_a_file_is_a_network_and_the_folder_gives_it_back(tiny, tmp_path):
    torch.save(tiny, tmp_path / "vd.pth")
    model = convert.open_model(str(tmp_path / "vd.pth"), hints={"heads": "4"})
    assert model.config["system"] == "versatile"
    assert model.components.keys() == {
        f"network.{n}" for n in ("time", "image_data", "text_data", "image_context", "text_context")
    }
    missing = convert.missing_parts(model)
    assert (
        missing[0] == "image=kl-f8.pth" and "tokenizer=hf:openai/clip-vit-large-patch14" in missing
    )
    convert.save(model, tmp_path / "ours", torch.float16)
    again = convert.open_model(str(tmp_path / "ours"))
    written = convert.write_back(again, "authors", tmp_path / "back")
    assert [p.name for p in written] == ["vd-four-flow-v1-0.pth"]
    back = torch.load(written[0], weights_only=True)
    assert back.keys() == tiny.keys()
    assert all(torch.equal(back[k], v.half()) for k, v in tiny.items())


def test_diffusers_two_networks_are_one(tiny, tmp_path):
    model = convert.Opened(config={"system": "", "config": {}}, components={})
    entries = {k: held(v) for k, v in tiny.items()}
    ours = versatile.from_file(entries, versatile.RELEASED)
    for kind in ("image", "text"):
        row = ROWS[f"versatile-{kind}-diffusers"]
        own = {k: v for k, v in ours.items() if k.startswith(row.places + row.shared)}
        part = file_layout.read(row.to_theirs(own), row, {"heads": 4})
        model = convert._with_part(model, part, tmp_path, "")
    flows = system.read(model.config["config"]).flows
    assert flows.to_json() == {**SMALL.to_json(), "data": flows.to_json()["data"]}
    for name, part in model.components.items():
        start = name.removeprefix("network.")
        assert all(torch.equal(v.read(), ours[f"{start}.{k}"].read()) for k, v in part.items())
    assert sum(map(len, model.components.values())) == len(ours)
    written = convert.write_back(model, "diffusers", tmp_path)
    assert [p.parent.name for p in written] == ["image_unet", "text_unet"]
    other = {k: held(v.read() + 1) for k, v in part_of(ours, "text").items()}
    row = ROWS["versatile-text-diffusers"]
    changed = file_layout.read(row.to_theirs(other), row, {"heads": 4})
    with pytest.raises(LayoutError, match="time.0.bias .* give parts of one model"):
        convert._with_part(model, changed, tmp_path, "")


def part_of(ours, kind):
    return {k: v for k, v in ours.items() if k.startswith((f"{kind}_", "time."))}


def test_a_pipeline_of_diffusers_lacks_the_codec_of_texts_alone(tmp_path):
    file, parts = write_tiny_files(tmp_path)
    model = convert.open_model(str(file), parts=parts, hints={"heads": "4", "drawn_size": "8"})
    assert convert.missing_parts(model) == []
    written = convert.write_back(model, "diffusers", tmp_path / "pipeline")
    assert {p.parent.name for p in written} == {
        "image_unet", "text_unet", "vae", "image_encoder", "text_encoder"
    }  # fmt: skip
    (tmp_path / "pipeline/tokenizer").mkdir()
    spec = Path(parts["tokenizer"]).read_text(encoding="utf-8")
    (tmp_path / "pipeline/tokenizer/tokenizer.json").write_text(spec, encoding="utf-8")
    (tmp_path / "pipeline/model_index.json").write_text("{}", encoding="utf-8")
    again = convert.open_model(str(tmp_path / "pipeline"))
    assert [p.partition("=")[0] for p in convert.missing_parts(again)] == [
        "text", "word_pieces", "reader"
    ]  # fmt: skip
    rest = {name: parts[name] for name in ("text", "word_pieces", "reader")}
    whole = convert.open_model(str(tmp_path / "pipeline"), parts=rest)
    assert whole.config["config"]["network"] == model.config["config"]["network"]
    for name, entries in model.components.items():
        assert whole.components[name].keys() == entries.keys()
        assert all(
            torch.equal(whole.components[name][k].read(), e.read()) for k, e in entries.items()
        )


def test_the_file_of_2022_holds_a_whole_model(tmp_path):
    file, parts = write_tiny_files(tmp_path)
    hints = {"heads": "4", "drawn_size": "8"}
    model = convert.open_model(str(file), parts=parts, hints=hints)
    (written,) = convert.write_back(model, "authors-2022", tmp_path / "2022")
    names = torch.load(written, weights_only=True).keys()
    assert {n.partition(".")[0] for n in names} == {"model", "autokl", "optimus", "clip"}
    tables = {name: parts[name] for name in ("tokenizer", "word_pieces", "reader")}
    again = convert.open_model(str(written), parts=tables, hints=hints)
    assert convert.missing_parts(again) == []
    for name, entries in model.components.items():
        own = again.components[name]
        assert all(torch.equal(own[k].read(), e.read()) for k, e in entries.items())


@pytest.mark.parametrize("lost", ["diffuser.text.data_blocks.6.0.skip_connection.weight", "all"])
def test_a_wrong_file_is_one_line(tiny, lost, tmp_path):
    entries = {k: v for k, v in tiny.items() if k != lost}
    if lost == "all":
        entries = {k.replace("data_blocks", "blocks"): v for k, v in tiny.items()}
    torch.save(entries, tmp_path / "vd.pth")
    with pytest.raises(LayoutError) as caught:
        convert.open_model(str(tmp_path / "vd.pth"))
    assert "\n" not in str(caught.value)
    if lost != "all":
        assert f"missing: {lost}" in str(caught.value)


def test_a_file_of_layers_of_other_depths_is_refused(tiny):
    last = "text.data_blocks.10."
    text = {k: held(v) for k, v in tiny.items() if "text" in k and last not in k}
    image = {k: held(v) for k, v in tiny.items() if "image" in k}
    with pytest.raises(LayoutError):
        file_layout.read({**image, **text}, ROWS["versatile"], {})


# -- diffusers' own code ----------------------------------------------------------------------


def flat_network(config):
    pytest.importorskip("diffusers")
    try:
        from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import (
            UNetFlatConditionModel,
        )
    except ImportError:
        pytest.skip("this diffusers has no UNetFlatConditionModel")
    return UNetFlatConditionModel(**config)


@pytest.mark.parametrize("kind", ["image", "text"])
@torch.no_grad()
def test_diffusers_networks_make_the_same(kind):
    from diffusers import UNet2DConditionModel

    ours = fill(MultiFlow(SMALL))
    row = ROWS[f"versatile-{kind}-diffusers"]
    theirs = row.to_theirs(part_of(own(ours), kind))
    config = row.their_config({"network": SMALL.to_json()})
    config = {k: v for k, v in config.items() if k != "_class_name"}
    network = UNet2DConditionModel(**config) if kind == "image" else flat_network(config)
    network.load_state_dict(theirs)
    x, c = given(f"x_{kind}"), context(f"c_{kind}")
    wanted = ours({kind: x}, {kind: time([13, 801])}, {kind: c})[kind]
    shown = x if kind == "image" else x[..., None, None]
    made = network.eval()(shown, torch.tensor([13, 801]), encoder_hidden_states=c.tokens).sample
    assert float((made.reshape(wanted.shape) - wanted).abs().max()) < 1e-4
