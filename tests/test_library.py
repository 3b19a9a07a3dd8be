"""Models out of files, folders and the hub: found, loaded in any number format, saved."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import everyway
from everyway import library
from everyway.apps import cli
from everyway.checkpoints import store
from everyway.contracts import Context, Query
from everyway.generate import Model, load
from everyway.layouts import convert, file_layout
from everyway.layouts import unidiffuser as unidiffuser_layouts
from everyway.layouts.caption import HEAD, TABLE
from everyway.layouts.table import LAYOUTS
from everyway.library import ModelError
from everyway.nets import precision
from formula import FOLDER, golden, normal
from published import (
    CLIP_TOKENS,
    GPT2_TOKENS,
    SIZES,
    full,
    network_shapes,
    stored,
    tiny_parts,
    write_tiny_files,
)
from published import tiny_network as network

PROMPT = "a red fox on blue"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """UniDiffuser v1 in the authors' files, tiny."""
    out = tmp_path_factory.mktemp("files")
    write_tiny_files(out)
    for name, tokens in (("clip.json", CLIP_TOKENS), ("gpt2.json", GPT2_TOKENS)):
        (out / name).write_text(tokens, encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def parts(files) -> dict[str, str]:
    return tiny_parts(files, tokenizer="clip.json", reader="gpt2.json")


@pytest.fixture(scope="module")
def source(files) -> str:
    return str(files / "uvit_v1.pth")


@pytest.fixture(scope="module")
def model(source, parts) -> Model:
    return load(source, "cpu", parts=parts)


def modules(model: Model) -> dict[str, torch.nn.Module]:
    return {"network": model.system.network, **model.system.codecs}


def pixels(model: Model, **request) -> np.ndarray:
    (made,) = model.generate(steps=2, **{"kind": "text-to-image", "text": PROMPT, **request})
    return np.array(made.image)


# -- where they come from ---------------------------------------------------------------------


def test_a_file_is_the_folder_that_it_converts_to(model, source, parts, tmp_path, capsys):
    words = [w for k, v in parts.items() for w in ("--part", f"{k}={v}")]
    assert cli.main(["convert", source, "--out", str(tmp_path / "kept"), *words]) == 0
    kept = load(str(tmp_path / "kept"), "cpu")
    assert np.array_equal(pixels(kept), pixels(model))
    assert (model.name, kept.name) == ("uvit_v1", "kept")
    assert kept.hash == store.fingerprint(tmp_path / "kept")


def test_a_lone_network_says_what_it_lacks(source, parts, files):
    with pytest.raises(ValueError, match="lacks codecs; give them: --part image=") as caught:
        load(source, "cpu")
    assert "--part reader=hf:openai-community/gpt2" in str(caught.value)
    with pytest.raises(ModelError, match="autoencoder_kl.pth is a part of a model; .* network="):
        load(str(files / "autoencoder_kl.pth"), "cpu")
    few = {k: v for k, v in parts.items() if k != "text_states"}
    with pytest.raises(ValueError, match="give them: --part text_states=[^ ]*$"):
        load(source, "cpu", parts=few)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("nothing",), "no model 'nothing'; shipped: .*or give a folder, a file"),
        (("no/file.pth",), "no file or folder"),
        (("nano", "cpu", "fp8"), "dtype 'fp8' is unknown; choose one of auto, fp32, bf16, fp16"),
        (("nano", "cpu", "fp32", "small"), "memory 'small' is unknown; choose one of auto, full"),
        (("nano", "moon"), "device 'moon' cannot be used"),
    ],
)
def test_mistakes_are_one_line(asked, said):
    with pytest.raises(ValueError, match=said) as caught:
        load(*asked)
    assert "\n" not in str(caught.value)


def test_the_hash_names_the_weights(model, source, parts, tmp_path):
    assert load(source, "cpu", "bf16", parts=parts).hash == model.hash
    state = network(1)
    state["decoder_pred.weight"] += 0.01
    torch.save(state, tmp_path / "uvit_v1.pth")
    assert load(str(tmp_path / "uvit_v1.pth"), "cpu", parts=parts).hash != model.hash
    assert load("nano").hash == store.fingerprint(library.SHIPPED / "nano")


def test_opening_nano_imports_no_codecs():
    import subprocess
    import sys

    code = (
        "import sys, everyway\n"
        "everyway.load('nano')\n"
        "heavy = {'transformers', 'diffusers', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_hub_is_asked_only_by_name(monkeypatch, tmp_path):
    """Neither a mistyped folder, nor a part, nor a recipe's codecs."""
    import huggingface_hub

    def refused(*asked, **more):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no folder 'runs/mnie'; .* give hf:runs/mnie for a model"):
        load("runs/mnie")
    with pytest.raises(ValueError, match="there is no file or folder 'some/codec'"):
        load("nano", parts={"image": "some/codec"})


def test_a_run_folder_is_its_model(tmp_path, monkeypatch):
    """By the training's name, in notes and records, from within the folder too."""
    shutil.copytree(library.SHIPPED / "nano", tmp_path / "mine/model")
    (tmp_path / "mine/config.json").write_text('{"preset": "nano"}')
    monkeypatch.chdir(tmp_path / "mine")
    for path in (tmp_path / "mine", "model", "../mine", ".", Path("model")):
        made = load(path, "cpu")
        assert made.name == "mine" and made.note.startswith("mine: ")
    assert made.hash == load("nano").hash and library.folder_of("../mine").name == "model"
    assert made.generate(kind="text", steps=1)[0].metadata["model"] == "mine"


# -- where they go to -------------------------------------------------------------------------


def test_saved_and_loaded_again(model, tmp_path):
    model.save_pretrained(tmp_path / "own")
    again = everyway.Model.from_pretrained(str(tmp_path / "own"), device="cpu")
    assert np.array_equal(pixels(again), pixels(model))
    for name, module in modules(again).items():
        state = modules(model)[name].state_dict()
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    card = (tmp_path / "own" / "README.md").read_text()
    assert "uvit_v1.pth" in card and "no pretrained part" not in card


@pytest.mark.parametrize("name", ["nano", "mini", "mini-vq"])
def test_a_model_is_saved_as_it_was(tmp_path, name):
    """In as many bytes and under the same hash, though it was computed with in float32."""
    load(name, "cpu").save_pretrained(tmp_path / name)
    assert store.fingerprint(tmp_path / name) == store.fingerprint(library.SHIPPED / name)
    ours, theirs = (
        {p.name: p.stat().st_size for p in folder.glob("*.safetensors")}
        for folder in (tmp_path / name, library.SHIPPED / name)
    )
    assert ours.items() <= theirs.items()


def test_a_changed_model_keeps_every_number(tmp_path):
    nano = load("nano", "cpu")
    weight = next(nano.system.network.parameters())
    with torch.no_grad():
        weight += 1e-4
    nano.save_pretrained(tmp_path / "own")
    again = load(tmp_path / "own", "cpu")
    assert torch.equal(next(again.system.network.parameters()), weight)
    assert again.hash != load("nano").hash


def test_a_model_is_shown_in_a_line(nano):
    said = f"{nano!r}"
    assert "\n" not in said and "nano" in said and "text-to-image" in said and len(said) < 200


def test_what_is_shared_is_not_saved_twice(tmp_path):
    nano = load("nano")
    nano.save_pretrained(tmp_path / "nano")
    assert np.array_equal(
        *(pixels(m, text="a red ring top on blue") for m in (nano, load(str(tmp_path / "nano"))))
    )


def test_the_hub_is_asked_by_its_own_client(model, monkeypatch, tmp_path):
    import huggingface_hub

    hub, made = tmp_path / "hub", []

    def upload(repo_id, folder_path):
        shutil.copytree(folder_path, hub / repo_id)
        return f"https://hub/{repo_id}"

    def download(repo_id, allow_patterns):
        return str(hub / repo_id)

    monkeypatch.setattr(huggingface_hub, "create_repo", lambda name, **asked: made.append(name))
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert model.push_to_hub("me/mine") == "https://hub/me/mine" and made == ["me/mine"]
    again = Model.from_pretrained("hf:me/mine", device="cpu")
    assert again.name == "mine" and np.array_equal(pixels(again), pixels(model))


def test_tied_weights_are_stored_once(model, tmp_path):
    """As they are converted, as a loaded model is saved, and as a training saves them."""
    from safetensors import safe_open

    text = model.system.codecs["text"]
    model.save_pretrained(tmp_path / "saved")
    store.save(tmp_path / "trained", {}, {"text": text.state_dict()}, {}, torch.float32)
    opened = convert.open_model(str(tmp_path / "saved"))
    convert.save(opened, tmp_path / "converted")
    for name in ("saved", "trained", "converted"):
        (path,) = (tmp_path / name).glob("text-*.safetensors")
        with safe_open(path, "pt") as file:
            names = set(file.keys())
        assert (HEAD in names) + (TABLE in names) == 1, name
        for read in (store.open_folder, store.load):
            assert set(read(tmp_path / name)[1]["text"]) == set(text.state_dict())
        tensors = store.load(tmp_path / name)[1]["text"]
        assert torch.equal(tensors[HEAD], text.decoder.lm_head.weight)
    again = load(str(tmp_path / "converted"), "cpu").system.codecs["text"].decoder
    assert again.lm_head.weight is again.transformer.wte.weight


# -- number formats ---------------------------------------------------------------------------


def rounded(model: Model, dtype: torch.dtype) -> Model:
    """The float32 model with weights that `dtype` can hold."""
    for module in modules(model).values():
        for parameter in module.parameters():
            parameter.copy_(parameter.to(dtype))
    return model


def answers(model: Model) -> dict[str, torch.Tensor]:
    """What every network of a model makes of one picture, one text and one state."""
    system = model.system
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    states = system.encode({"image": picture, "text": [PROMPT]})
    times = {clock: torch.full((1,), 0.5).double() for clock in ("image", "text")}
    clean = system.denoiser()([Query(states=states, times=times)])[0]
    out = {f"encoded {k}": v for k, v in states.items()} | {
        f"clean {k}": v for k, v in clean.items()
    }
    decoded = system.decode(states)
    return out | {"decoded": decoded["image"], "text": decoded["text"]}


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_where_half_precision_is_slow_only_the_weights_are_rounded(
    source, parts, monkeypatch, dtype
):
    monkeypatch.setattr(precision, "fast", lambda dtype, device: False)
    half = load(source, "cpu", dtype, parts=parts)
    for module in modules(half).values():
        assert {p.dtype for p in module.parameters()} == {library.DTYPES[dtype]}
    exact = answers(rounded(load(source, "cpu", parts=parts), library.DTYPES[dtype]))
    found = answers(half)
    text = exact.pop("text"), found.pop("text")
    assert text[0] == text[1]
    for name, value in exact.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], value), name


def test_where_it_is_fast_it_is_computed_in(model, source, parts, monkeypatch):
    """Largest difference over largest value, of the network's clean estimates too."""
    monkeypatch.setattr(precision, "fast", lambda dtype, device: True)
    half = load(source, "cpu", "bf16", parts=parts)
    exact, found = answers(model), answers(half)
    for name in exact.keys() - {"text"}:
        difference = (exact[name] - found[name].float()).norm() / exact[name].norm()
        assert 0 < difference < 4e-2, (name, difference)  # 2^-8 a layer; norms over few channels
    assert pixels(half).shape == (64, 64, 3)


def test_shipped_models_run_in_float32_on_a_cpu(nano, monkeypatch):
    assert {p.dtype for p in nano.system.network.parameters()} == {torch.float32}
    assert nano.load_options == {"dtype": "fp32"}
    monkeypatch.setattr(precision, "fast", lambda dtype, device: False)
    half = load("nano", "cpu", "bf16")
    text = "a red ring top on blue"
    a, b = (pixels(m, text=text).astype(float) for m in (nano, half))
    assert abs(a - b).max() <= 1  # shipped in bf16: nothing is rounded again


def test_tokens_and_shared_codecs_in_half_precision(monkeypatch):
    """VQ-Diffusion over U-ViT, and over its own transformer, under the casting of weights."""
    from everyway.nets.token_transformer import TokenTransformer, TokenTransformerConfig
    from everyway.nets.uvit import UViT
    from everyway.systems import vq_diffusion

    sizes = dict(codes=16, side=4, dim=32, depth=2, heads=2)
    table = TokenTransformerConfig(**sizes, condition="text", text_length=3, text_dim=8)
    networks = [
        TokenTransformer(replace(table, learned_null=True)),
        TokenTransformer(replace(table, mlp="conv", time="abs")),
        UViT(vq_diffusion.uvit(**sizes, text=(3, 8))),
    ]
    asked = {"text": Context(tokens=torch.randn(2, 3, 8))}
    states, times = {"image": torch.randint(17, (2, 16))}, {"image": torch.rand(2).double()}
    monkeypatch.setattr(precision, "fast", lambda dtype, device: False)
    for net in networks:
        net.bfloat16()
        with torch.no_grad(), precision.computing(net):
            found = net(states, times, asked)["image"]
        with torch.no_grad():
            assert torch.equal(net.float()(states, times, asked)["image"], found)


def relative(found: torch.Tensor, meta: dict, arrays: dict, key: str) -> float:
    """Largest difference over largest value, of the elements that the golden has."""
    expected = arrays[f"out.{key}"].ravel()
    own = found.float().flatten()[:: meta["outputs"][key]["stride"]].numpy()
    print(key, abs(own - expected).max() / abs(expected).max())
    return abs(own - expected).max() / abs(expected).max()


def given(row: dict) -> torch.Tensor:
    return normal(row["key"], tuple(row["shape"]))


def half(layout: str, file: str, make) -> torch.nn.Module:
    """A published part in bf16, made by `make` of its settings and filled by the formula."""
    part = file_layout.read(stored(full()[file][1]), file_layout.named(LAYOUTS, layout), {})
    with store.unfilled():
        module = make(part.settings)
    entries = {k: v for k, v in part.entries.items() if not k.startswith("whiten.")}
    return store.fill(module, entries, torch.bfloat16).eval()


@pytest.mark.slow
@pytest.mark.parametrize("version", [0, 1])
def test_the_published_networks_in_bf16(version):
    """952M parameters in 1.9 GB, against the authors' numbers in float32."""
    from everyway.nets.uvit import UViT

    published = unidiffuser_layouts.published(version=version)
    net = half("unidiffuser", f"unidiffuser_v{version}", lambda settings: UViT(published))
    meta, arrays = golden(f"real_unidiffuser_v{version}", FOLDER.with_name("uvit_real"))
    own = meta["inputs"]
    ours = {"img": "image", "clip_img": "image_embed", "text": "text"}
    times = {"image": own["t_img"], "text": own["t_text"]}
    times = {c: torch.tensor(t, dtype=torch.float64) / 1000 for c, t in times.items()}
    contexts = {}
    if version == 1:
        contexts["data_type"] = Context(tokens=torch.tensor(own["data_type"]))
    with torch.inference_mode(), precision.computing(net):
        found = net({o: given(own[t]) for t, o in ours.items()}, times, contexts)
    for theirs, name in ours.items():
        assert relative(found[name], meta, arrays, theirs) < 2e-2


@pytest.mark.slow
def test_the_published_caption_decoder_in_bf16():
    from torch import nn
    from transformers import GPT2Config, GPT2LMHeadModel

    def make(settings):
        parts = {"narrow": nn.Linear(768, 64), "widen": nn.Linear(64, 768)}
        decoder = GPT2LMHeadModel(GPT2Config(**settings["decoder"]))
        return nn.ModuleDict({**parts, "decoder": decoder})

    codec = half("caption-decoder", "caption_decoder", make)
    meta, arrays = golden("caption_real_gpt2_small", FOLDER.with_name("uvit_real"))
    tokens = torch.from_numpy(arrays["tokens"])
    with torch.inference_mode(), precision.computing(codec):
        hidden = codec["narrow"](given(meta["inputs"]["prefix768"]))
        former = codec["decoder"].transformer.wte(tokens)
        embedded = torch.cat([codec["widen"](hidden), former], 1)
        logits = codec["decoder"](inputs_embeds=embedded).logits
    for key, value in (("hidden", hidden), ("logits", logits)):
        assert relative(value, meta, arrays, key) < 2e-2


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", ["nearest", "ema", "gumbel"])
def test_image_tokens_in_half_precision(monkeypatch, kind, fast):
    """Codes are floats that no rounding may move, but where they are learned as parameters."""
    from everyway.codecs.image_vq import SMALL, ImageVQ

    monkeypatch.setattr(precision, "fast", lambda dtype, device: fast)
    torch.manual_seed(0)
    codec = ImageVQ(**{**SMALL, "quantiser": {"kind": kind, "codes": 32, "dim": 16}}).eval()
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        exact = codec.encode(picture)
        for parameter in codec.parameters():
            parameter.data = parameter.data.bfloat16()
        with precision.computing(codec):
            found, drawn = codec.encode(picture), codec.decode(exact)
    assert float((found == exact).float().mean()) > 0.8
    assert drawn.shape == picture.shape and drawn.isfinite().all()


def test_the_float32_path_enters_no_context(model):
    from contextlib import nullcontext

    assert isinstance(precision.computing(model.system.network), nullcontext)


# -- the command ------------------------------------------------------------------------------


def test_the_command_runs_published_files_and_replays_them(run, source, parts):
    given = [w for k, v in parts.items() for w in ("--part", f"{k}={v}")]
    words = ["generate", "image", "--text", PROMPT, "--steps", 2, "--model", source, *given]
    code, out, err = run(*words, "--dtype", "bf16", "--device", "cpu", "--json")
    assert code == 0, err
    assert err.startswith("out/00000.png  seed 0  ") and err.endswith(" s\n")
    answer = json.loads(out)
    assert answer["peak_bytes"] > 10**8 and answer["results"][0]["facts"]["forwards"] > 0
    note = load(source, dtype="bf16", device="cpu", parts=parts).note
    assert note.startswith("uvit_v1: 0.00 GB of weights in bf16") and "--memory full" in note
    assert answer["results"][0]["facts"]["loaded"] == {"dtype": "bf16", "parts": parts}
    code, out, err = run("replay", "out/00000.png")
    assert code == 0 and "bit for bit" in out, err


def test_the_command_names_what_is_missing(run, source):
    code, out, err = run("generate", "image", "--model", source)
    assert code == 2 and err.count("\n") == 1 and "give them: --part image=" in err and not out
    code, out, err = run("generate", "image", "--dtype", "fp8")
    assert code == 2 and "dtype 'fp8' is unknown" in err
    code, out, err = run("generate", "image", "--part", "image")
    assert code == 2 and "is not NAME=VALUE" in err


# -- memory -----------------------------------------------------------------------------------

MEASURE = """
import gc, json, sys
import everyway
from everyway.placement import CPU, peak_memory

small, large, dtype, parts = *sys.argv[1:4], json.loads(sys.argv[4])
everyway.load(small, "cpu", dtype, parts=parts)  # what is imported is there before
gc.collect()
begun = peak_memory(CPU)
system = everyway.load(large, "cpu", dtype, parts=parts).system
modules = (system.network, *system.codecs.values())
weights = sum(p.numel() * p.itemsize for m in modules for p in m.parameters())
print((peak_memory(CPU) - begun) / weights, weights)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_loading_takes_the_memory_of_the_weights(source, parts, tmp_path, dtype):
    """A network of 177M parameters with tiny codecs, from the authors' file and from a folder."""
    import subprocess
    import sys

    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is read from /proc")
    config = unidiffuser_layouts.published(version=1, **{**SIZES, "dim": 1024, "depth": 12})
    shapes = network_shapes(config, unidiffuser_layouts.KEYMAP)
    torch.save({k: torch.randn(shape) for k, shape in shapes.items()}, tmp_path / "large.pth")
    words = [w for k, v in parts.items() for w in ("--part", f"{k}={v}")]
    assert cli.main(["convert", f"{tmp_path}/large.pth", "--out", f"{tmp_path}/own", *words]) == 0
    for large, given in (("large.pth", parts), ("own", {})):
        argv = [source if given else "mini", tmp_path / large, dtype, json.dumps(given)]
        command = [sys.executable, "-c", MEASURE, *map(str, argv)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        grown, weights = map(float, done.stdout.split())
        print(large, dtype, f"{grown:.3f} of {weights / 1e6:.0f} MB")
        assert grown < 1.15
